"""Configs as files: read, refused, and compared."""

import json

import pytest

from ragjax.config import Compress, Pretrain, Sparsity, Student, Train, to_dict
from ragjax.config_file import differences, from_dict, read_config
from ragjax.errors import InputError


def test_a_resolved_config_reads_back_as_it_was():
    config = Compress(student=Student(layers=(0, 2, 5)), sparsity=Sparsity(target=0.5), train=Train(steps=77))
    values = json.loads(json.dumps(to_dict(config)))
    assert values.pop("kind") == "Compress"
    assert from_dict(Compress, values) == config


def test_the_json_of_a_run_is_a_config_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(Pretrain(seed=3))))
    assert read_config(file) == (Pretrain(seed=3), "")


def test_all_unknown_and_misfit_fields_are_named_at_once():
    with pytest.raises(InputError) as error:
        from_dict(Compress, {"train": {"lerning_rate": 1.0, "steps": "many"}, "sed": 1})
    told = str(error.value)
    assert "did you mean train.learning_rate" in told
    assert "train.steps must be int, found 'many'" in told
    assert "did you mean seed" in told


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seed": True}, "seed must be int, found True"),
        ({"train": {"learning_rate": True}}, "train.learning_rate must be float, found True"),
        ({"train": 3}, "train must be an object, found 3"),
        ({"sparsity": {"score": "best"}}, "sparsity.score must be one of 'magnitude', 'random', "),
        ({"sparsity": {"prunable": ["a", 1]}}, "sparsity.prunable must be"),
        ({"data": {"validation": 1}}, "data.validation must be str | None, found 1"),
    ],
)
def test_a_value_of_another_type_is_refused(values, said):
    with pytest.raises(InputError) as error:
        from_dict(Compress, values)
    assert said in str(error.value)


def test_a_whole_number_is_a_float():
    assert from_dict(Train, {"learning_rate": 1}).learning_rate == 1


def test_a_python_file_is_told_by_its_docstring(tmp_path):
    (tmp_path / "c.py").write_text(
        '"""For a rainy day."""\nfrom ragjax.config import Pretrain\nconfig = Pretrain(seed=4)\n'
    )
    assert read_config(tmp_path / "c.py") == (Pretrain(seed=4), "For a rainy day.")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.py", None, "is not a file"),
        ("empty.py", "x = 1", "must bind `config`"),
        ("other.py", "config = {}", "found dict"),
        ("torn.json", "{", "is not JSON"),
        ("kind.json", "{}", "`kind` of Compress or Pretrain"),
        ("a.yaml", "a: 1", "ends in .py or .json"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_config(tmp_path / name)


def test_differences_name_nested_fields():
    old, new = to_dict(Compress()), to_dict(Compress(train=Train(steps=10, warmup=1)))
    assert differences(old, new) == {"train.steps": (300, 10), "train.warmup": (20, 1)}


def test_differences_name_what_only_one_side_has():
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}) == {
        "a": (1, None), "b.c": (2, None), "b.d": (None, 3),
    }  # fmt: skip
