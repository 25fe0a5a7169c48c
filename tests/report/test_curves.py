import pytest

from ragjax.report import curves
from ragjax.report.charts import Series
from ragjax.report.read import read_run


def run_of(make_run, *lines):
    return read_run(make_run(metrics=[{"stage": "student", **line} for line in lines]))


def test_evaluations_lie_at_the_tokens_of_their_step(make_run):
    run = run_of(
        make_run,
        {"step": 10, "tokens": 1000, "loss": 4.0},
        {"step": 20, "tokens": 3000, "loss": 3.0},
        {"step": 15, "validation_loss": 3.6},
        {"step": 20, "validation_loss": 3.1},
        {"step": 30, "validation_loss": 3.0},
    )
    (line,) = curves.series(run, "validation_loss")
    assert line.points == [(2000, 3.6), (3000, 3.1), (4500, 3.0)]


def test_without_tokens_steps_take_their_place(make_run):
    run = run_of(make_run, {"step": 10, "loss": 4.0}, {"step": 20, "loss": 3.0})
    assert not curves.has_tokens(run)
    assert curves.series(run, "loss")[0].points == [(10, 4.0), (20, 3.0)]


def test_values_that_are_not_finite_break_a_line_and_alone_make_none(make_run):
    nan = float("nan")
    run = run_of(
        make_run, {"step": 1, "loss": 4.0, "x": nan}, {"step": 2, "loss": nan}, {"step": 3, "loss": 2.0}
    )
    assert curves.series(run, "loss")[0].points == [(1, 4.0), (2, None), (3, 2.0)]
    assert curves.series(run, "x") == []


def test_only_the_beginning_is_cut_and_only_where_it_towers():
    steep = Series("student", "Student", [(10, 9.0), (50, 3.0), (100, 2.0)])
    assert curves.settled_range([steep]) == (2.0, 3.0)
    flat = Series("student", "Student", [(10, 3.2), (50, 3.0), (100, 2.0)])
    assert curves.settled_range([flat]) == (2.0, 3.2)


def test_totals_of_a_stage(make_run):
    run = run_of(
        make_run,
        {"step": 10, "tokens": 1000, "time": 1.5, "tokens_per_second": 100, "skipped": 0},
        {"step": 20, "tokens": 2000, "time": 2.5, "tokens_per_second": 900, "skipped": 2},
        {"step": 30, "tokens": 3000, "time": 4.0, "tokens_per_second": 800, "skipped": 2},
    )
    assert curves.stage_totals(run.metrics["student"]) == pytest.approx(
        {"steps": 30, "tokens": 3000, "seconds": 4.0, "tokens_per_second": 800, "skipped": 2}
    )
