import json

import pytest

from ragjax.errors import InputError
from ragjax.report.numbers import finite
from ragjax.report.read import read_run


def test_a_missing_summary_says_what_to_do(make_run):
    with pytest.raises(InputError, match=r"summary\.json.*ragjax compress"):
        read_run(make_run(summary=None))


def test_a_damaged_summary_is_refused(make_run):
    run = make_run()
    (run / "summary.json").write_text('{"teacher": {')
    with pytest.raises(InputError, match="must hold JSON"):
        read_run(run)
    (run / "summary.json").write_text("[1]")
    with pytest.raises(InputError, match="JSON object, found a list"):
        read_run(run)


def test_all_absent_models_are_named_at_once(make_run):
    with pytest.raises(InputError, match=r"teacher: expected.*None\n.*student: expected.*'x'"):
        read_run(make_run(summary={"student": "x"}))


def test_a_torn_last_line_is_passed_over_in_silence(make_run, metrics):
    run = make_run()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "student", "step": 410, "lo\xff')
    read = read_run(run)
    assert sum(map(len, read.metrics.values())) == len(metrics)
    assert read.unreadable == ()


def test_a_damaged_line_elsewhere_is_reported(make_run, metrics):
    run = make_run()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    read = read_run(run)
    assert sum(map(len, read.metrics.values())) == len(metrics) - 1
    assert read.unreadable == ("metrics.jsonl line 5",)


def test_of_a_step_run_twice_the_last_counts(make_run):
    lines = [{"stage": "student", "step": s, "loss": v} for s, v in ((10, 1.0), (20, 2.0), (10, 3.0))]
    found = read_run(make_run(metrics=lines)).metrics["student"]
    assert [(e["step"], e["loss"]) for e in found] == [(10, 3.0), (20, 2.0)]


def test_evaluation_lines_do_not_replace_training_lines(make_run):
    lines = [
        {"stage": "student", "step": 10, "loss": 1.0},
        {"stage": "student", "step": 10, "validation_loss": 2.0},
    ]
    assert len(read_run(make_run(metrics=lines)).metrics["student"]) == 2


def test_optional_files_of_the_wrong_kind_are_left_out_and_named(make_run):
    run = make_run(masks=[1], config="x")
    (run / "samples.json").write_text("[")
    read = read_run(run)
    assert (read.config, read.masks, read.samples) == ({}, [], [])
    assert read.unreadable == ("config.json", "masks.json", "samples.json")


def test_entries_of_the_wrong_kind_are_left_out(make_run):
    masks = {"student": [3, {"name": "a"}, {"name": "b", "size": 0, "zeros": 0}, {"size": 4, "zeros": 1}]}
    read = read_run(make_run(masks=masks, samples=[1, {"prompt": "p"}, {"prompt": 2, "student": "s"}]))
    assert [(z.matrix, z.layer, z.size, z.zeros) for z in read.masks] == [("?", None, 4, 1)]
    assert read.samples == [{"student": "s"}]


@pytest.mark.parametrize("value", [None, True, "3", [], json.loads("NaN"), json.loads("-Infinity"), 10**400])
def test_only_finite_numbers_are_figures(value):
    assert finite(value) is None
    assert finite(3) == 3
