import dataclasses
import json
import typing

import pytest

from ragjax.config import (
    Architecture,
    Compress,
    Data,
    Mesh,
    Pretrain,
    Sparsity,
    Student,
    Teacher,
    Train,
    to_dict,
)
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
    ("build", "said"),
    [
        (lambda: Train(steps=0), "steps must be at least 1"),
        (lambda: Train(batch_size=6, accumulate=4), "divisible by accumulate"),
        (lambda: Train(learning_rate=float("nan")), "learning_rate must be above 0"),
        (lambda: Train(warmup=300, steps=300), "warmup must be below steps"),
        (lambda: Sparsity(target=1.0), "target must be at least 0 and below 1"),
        (lambda: Sparsity(pattern="n_of_m", n=2, m=4, target=0.6), "set them alike"),
        (lambda: Sparsity(pattern="n_of_m", n=4, m=4), "n must be below m"),
        (lambda: Mesh(data=-1, fsdp=-1), "only one"),
        (lambda: Architecture(width=10, heads=3), "divisible by heads"),
        (lambda: Student(layers=(3, 1)), "rise without repeats"),
        (lambda: Data(train=""), "name a source"),
        (lambda: Compress(data=Data(sequence_length=512)), "must not exceed"),
        (
            lambda: Compress(teacher=Teacher(architecture=Architecture(layers=2)), student=Student(layers=3)),
            "more than",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_when_built(build, said):
    with pytest.raises(InputError, match=said):
        build()


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


def test_every_choice_in_the_schema_is_in_its_table():
    from ragjax.distillation.vocabulary import LOSSES
    from ragjax.sparsity.patterns import PATTERNS
    from ragjax.sparsity.schedules import SPARSITY_SCHEDULES
    from ragjax.sparsity.scores import SCORES
    from ragjax.training.optimizer import OPTIMIZERS

    hints = typing.get_type_hints(Sparsity)
    assert set(typing.get_args(hints["score"])) == set(SCORES)
    assert set(typing.get_args(hints["pattern"])) == set(PATTERNS)
    assert set(typing.get_args(hints["schedule"])) == set(SPARSITY_SCHEDULES)
    assert set(typing.get_args(typing.get_type_hints(Train)["optimizer"])) == set(OPTIMIZERS)
    fields = {f.name for f in dataclasses.fields(typing.get_type_hints(Compress)["distill"])}
    assert set(LOSSES) <= fields
