"""What `ragjax bench` kept, read again: damaged, of other models, of other text."""

import json

import pytest

from ragjax.report.bench import read_bench
from ragjax.report.read import read_run


@pytest.mark.parametrize("value", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "models": 3}'])
def test_a_damaged_file_is_named_and_left_out(make_run, value):
    run = make_run()
    (run / "bench.json").write_text(value)
    found = read_run(run)
    assert found.bench is None
    assert found.unreadable == ("bench.json",)


def test_a_run_that_was_not_benched_has_none(make_run):
    assert read_run(make_run()).bench is None


def test_models_are_called_by_their_roles_or_folders(make_run, make_bench):
    found = read_run(make_bench(make_run())).bench
    assert [model.name for model in found.models] == ["Teacher", "Student", "small"]
    assert [model.role for model in found.models] == ["teacher", "student", None]
    # Those of the run have the run's own perplexity and zeros.
    assert [model.perplexity for model in found.models] == [30.0, 31.5, 33.0]
    assert [model.zeros for model in found.models] == [0.0, 0.5, None]
    assert found.first == "Teacher"
    assert found.models[1].batch[8]["decode_ratio"] == 2.0


def test_two_folders_of_one_name_are_told_apart(make_run, make_bench):
    bench = make_bench(make_run())
    value = json.loads((bench / "bench.json").read_text())
    value["models"].append(value["models"][2] | {"model": "other/small"})
    (bench / "bench.json").write_text(json.dumps(value))
    names = [model.name for model in read_run(bench).bench.models]
    assert names[2:] == [value["models"][2]["model"], "other/small"]


def test_a_model_whose_files_changed_is_left_out_with_a_sentence(make_run, make_bench):
    run = make_bench(make_run())
    (run / "student" / "model.safetensors").write_bytes(b"tnedutS")
    (run.parent / "small" / "model.safetensors").write_bytes(b"larger than it was")
    found = read_run(run).bench
    assert [model.name for model in found.models] == ["Teacher"]
    assert [line.split(":")[0] for line in found.left_out] == ["Student", "small"]


def test_a_model_that_the_run_no_longer_measures_is_left_out_alone(make_run, make_bench):
    run = make_bench(make_run())
    value = json.loads((run / "bench.json").read_text())
    value["models"].append(value["models"][1] | {"role": "former"})
    (run / "bench.json").write_text(json.dumps(value))
    found = read_run(run).bench
    assert [model.name for model in found.models] == ["Teacher", "Student", "small"]
    assert found.left_out == ("Former: the run has no figures of it any more.",)


@pytest.mark.parametrize("given", [".", ".."])
def test_a_folder_that_was_not_named_is_called_by_its_name(make_run, make_bench, given):
    run = make_bench(make_run())
    value = json.loads((run / "bench.json").read_text())
    value["models"][2]["model"] = given
    (run / "bench.json").write_text(json.dumps(value))
    assert read_run(run).bench.models[2].name == "small"


def test_a_model_from_elsewhere_that_is_gone_was_what_it_was(make_run, make_bench):
    run = make_bench(make_run())
    (run.parent / "small" / "model.safetensors").unlink()
    (run.parent / "small").rmdir()
    assert len(read_run(run).bench.models) == 3


def test_a_teacher_from_elsewhere_that_is_gone_was_what_it_was(make_run, make_bench):
    run = make_bench(make_run())
    value = json.loads((run / "bench.json").read_text())
    value["models"][0]["folder"] = str(run.parent / "no longer there")
    (run / "bench.json").write_text(json.dumps(value))
    for file in (run / "teacher").iterdir():
        file.unlink()
    (run / "teacher").rmdir()
    found = read_run(run).bench
    assert [model.name for model in found.models] == ["Teacher", "Student", "small"]
    assert found.left_out == ()


def test_a_run_that_moved_keeps_its_figures(make_run, make_bench, tmp_path):
    run = make_bench(make_run()).rename(tmp_path / "elsewhere")
    assert len(read_run(run).bench.models) == 3


def test_perplexity_on_another_text_than_the_run_s_is_not_shown(make_run, make_bench, summary):
    summary["student"]["perplexity"] = 40.0
    run = make_run(summary=summary)
    make_bench(run)
    [*_, small] = read_run(run).bench.models
    assert small.perplexity is None
    assert "another text" in small.why


def test_a_role_that_is_none_and_names_that_are_paths_open_nothing(make_run, make_bench):
    run = make_bench(make_run())
    value = json.loads((run / "bench.json").read_text())
    value["models"][1]["files"][0]["name"] = "../small/model.safetensors"
    (run / "bench.json").write_text(json.dumps(value))
    assert len(read_run(run).bench.models) == 3
    value["models"][1]["role"] = "../small"
    (run / "bench.json").write_text(json.dumps(value))
    unreadable = []
    assert read_bench(run, read_run(run).models, unreadable) is None
    assert unreadable == ["bench.json"]
