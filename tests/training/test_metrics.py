"""The metrics of a run that stopped and went on read like those of one that did not."""

import json

from ragjax.training.metrics import MetricsLog


def entries(log):
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_going_on_forgets_what_came_after_the_checkpoint_of_that_stage_alone(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for stage, steps in (("teacher", (1, 2, 9)), ("student", (1, 2, 3, 4))):
        for step in steps:
            log.write(stage, step, loss=float(step), time=10.0 * step)
    assert log.resume("student", 2) == 20.0
    assert [(e["stage"], e["step"]) for e in entries(log)] == [
        ("teacher", 1), ("teacher", 2), ("teacher", 9), ("student", 1), ("student", 2)
    ]  # fmt: skip


def test_seconds_are_those_of_the_last_line_of_a_stage(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert (log.resume("student", 0), log.seconds("student")) == (0.0, 0.0)
    log.write("teacher", 5, time=50.0)
    log.write("student", 1, time=1.5)
    log.write("student", 2, loss=1.0)
    assert (log.seconds("student"), log.seconds("teacher"), log.seconds("control")) == (1.5, 50.0, 0.0)


def test_lines_that_are_cut_off_or_no_entries_are_dropped(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("s", 1, loss=float("nan"))
    with log.path.open("a") as file:
        file.write('7\n"text"\n{"step": 2}\n{"stage": "s", "step": 3')
    log.resume("s", 5)
    assert entries(log) == [{"stage": "s", "step": 1, "loss": None}]


def test_a_host_that_does_not_write_leaves_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).write("s", 3, time=4.0)
    other = MetricsLog(path, writes=False)
    other.write("s", 4)
    assert other.resume("s", 1) == 0.0
    assert [e["step"] for e in entries(other)] == [3]
