"""The section on what writing costs."""

import re
from dataclasses import replace

from ragjax.report.frontier import best, frontier
from ragjax.report.read import read_run


def words(section) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", section))


def test_no_figures_no_section(make_run):
    assert frontier(read_run(make_run())) is None


def test_the_best_are_those_that_no_other_beats():
    points = [(1, 9), (2, 5), (3, 6), (4, 1), (4, 2), (2, 5)]
    kept = best(points)
    assert kept == [(1, 9), (2, 5), (4, 1), (2, 5)]
    for point in points:
        beaten = any(x <= point[0] and y <= point[1] and (x, y) != point for x, y in points)
        assert (point in kept) != beaten


def test_every_model_is_a_point_and_a_row(make_run, make_bench):
    section = frontier(read_run(make_bench(make_run())))
    text = words(section)
    assert section.count('<figure class="chart">') == 2
    for name in ("Teacher", "Student", "small (onnx)"):
        # Two charts, the table of models, and two batches of the table of speeds.
        assert text.count(f" {name} ") >= 5, name
    assert "medians of 5 rounds, ratios to Teacher" in text
    assert "2026-11-02 on a machine" in text
    assert "Quality against writing speed, batch 1" in text
    assert "batch 8: 8 prompts at once" in text


def test_the_line_joins_the_best_by_speed_and_by_size(make_run, make_bench):
    section = frontier(read_run(make_bench(make_run())))
    by_speed, by_size = section.split('<figure class="chart">')[1:]
    # Faster is worse for all three; of the two that take the same bytes one is better.
    assert by_speed.count('class="edge"') == 2
    assert by_size.count('class="edge"') == 2


def test_what_has_no_perplexity_is_no_point_and_says_why(make_run, make_bench):
    run = read_run(make_bench(make_run()))
    *known, small = run.bench.models
    silent = replace(small, perplexity=None, why="its tokenizer is not the run's")
    run = replace(run, bench=replace(run.bench, models=(*known, silent)))
    section = frontier(run)
    assert 'class="mark other"' not in section
    assert "its tokenizer is not the run" in section


def test_one_point_is_no_chart(make_run, make_bench):
    run = read_run(make_bench(make_run()))
    run = replace(run, bench=replace(run.bench, models=run.bench.models[:1]))
    assert '<figure class="chart">' not in frontier(run)


def test_figures_of_other_models_are_said_to_be_so(make_run, make_bench):
    run = read_run(make_bench(make_run()))
    run = replace(run, bench=replace(run.bench, models=(), left_out=("Student: gone.",)))
    section = frontier(run)
    assert "of other models" in section
    assert "Left out: Student: gone. To have them back, measure again" in section
    assert "<table" not in section
