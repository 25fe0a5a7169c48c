import re
from itertools import pairwise

from ragjax.report import charts
from ragjax.report.charts import Bar, Mark, Series
from ragjax.report.frame import PLOT_HEIGHT


def line_chart(*series, **options):
    words = {"x_words": "{:g}".format, "y_words": "{:g}".format}
    return charts.line_chart(series, title="T", x_title="x", y_title="y", **words, **options)


def scatter(*marks):
    words = {"x_words": "{:g}".format, "y_words": "{:g}".format}
    return charts.scatter(marks, title="T", x_title="x", y_title="y", better="bottom left", **words)


def path(chart: str, key: str) -> str:
    return re.search(rf'<path d="([^"]*)" class="line {key}"', chart)[1]


def test_points_of_a_line_land_at_their_share_of_the_axes():
    # The axes run over 0 to 100 and 1 to 3; y grows upwards.
    chart = line_chart(Series("student", "Student", [(0, 3.0), (25, 2.0), (100, 1.0)]))
    assert path(chart, "student") == "M0.0 0.0L250.0 500.0L1000.0 1000.0"


def test_a_missing_value_breaks_the_line_and_is_marked_at_its_place():
    points = [(0, 3.0), (25, 2.0), (50, None), (75, 2.0), (100, 1.0)]
    chart = line_chart(Series("student", "Student", points))
    assert path(chart, "student") == "M0.0 0.0L250.0 500.0M750.0 500.0L1000.0 1000.0"
    assert re.search(r'<text x="50.00%" y="0" dy="4" class="broken">×<title>not finite', chart)


def test_what_is_cut_off_is_said():
    line = Series("student", "Student", [(0, 90.0), (50, 3.0), (100, 1.0)])
    assert "cut off" not in line_chart(line)
    cut = line_chart(line, y_range=(1.0, 3.0))
    assert "Values above 3 are cut off." in cut
    assert 'overflow="hidden"' in cut
    # 90 on an axis from 1 to 3: 43.5 times its length above the top.
    assert path(cut, "student").startswith("M0.0 -43500.0L500.0 0.0")


def test_long_lines_are_thinned_but_keep_their_extremes():
    points = [(i, 1.0 + (i % 7) / 10) for i in range(5000)]
    points[1234] = (1234, 50.0)
    points[3456] = (3456, -50.0)
    points[4000] = (4000, None)
    kept = charts.thinned(points)
    assert len(kept) <= charts.MOST_POINTS + 2
    assert {(1234, 50.0), (3456, -50.0), (4000, None)} <= set(kept)
    assert [p[0] for p in kept] == sorted(p[0] for p in kept)


def test_marks_land_at_their_share_of_the_axes():
    # x runs over 0 to 20; y over 30 to 50, and 15 % of that below for labels: 27 to 50.
    chart = scatter(Mark("teacher", "A", "a", 20, 30), Mark("student", "B", "b", 5, 50))
    places = re.findall(r'<svg x="([\d.]+)%" y="([\d.]+)%" overflow', chart)
    assert places == [("100.00", f"{100 * (1 - 3 / 23):.2f}"), ("25.00", "0.00")]


def test_an_axis_that_is_logarithmic_says_so():
    wide = scatter(Mark("teacher", "A", "a", 20, 30), Mark("student", "B", "b", 5, 300))
    assert "y (logarithmic)" in wide
    near = scatter(Mark("teacher", "A", "a", 20, 30), Mark("student", "B", "b", 5, 50))
    assert "logarithmic" not in near


def test_labels_of_close_marks_do_not_overlap():
    marks = [Mark("student", str(i), "n", 10, 30 + i / 100) for i in range(4)] + [
        Mark("teacher", "t", "n", 20, 60)
    ]
    chart = scatter(*marks)
    marked = re.findall(r'<svg x="[^"]*" y="([\d.]+)%".*?<text x="-?16" y="(-?[\d.]+)"', chart)
    heights = sorted(float(y) / 100 * PLOT_HEIGHT + float(shift) for y, shift in marked)
    assert len(heights) == 5
    assert all(b - a >= charts.LABEL_GAP - 0.5 for a, b in pairwise(heights))


def test_bars_are_as_long_as_their_values():
    chart = charts.bars([Bar("a", "A", 30, "30"), Bar("b", "B", 40, "40")], title="T")
    assert re.findall(r'<rect width="([\d.]+)%"', chart) == ["75.00", "100.00"]
    assert 'width="0.00%"' in charts.bars([Bar("a", "A", 0, "0")], title="T")


def test_a_chart_tells_a_screen_reader_what_it_shows():
    chart = line_chart(Series("student", "Student", [(0, 3.0), (1, None), (100, 1.5)]))
    assert 'role="img" aria-label="T. Student: from 3 to 1.5."' in chart


def test_a_line_joins_the_points_of_the_edge():
    words = {"x_words": "{:g}".format, "y_words": "{:g}".format, "title": "T", "x_title": "x", "y_title": "y"}
    marks = [Mark("teacher", "A", "a", 20, 30), Mark("student", "B", "b", 5, 50)]
    chart = charts.scatter(marks, better="bottom left", edge=[(5, 50), (20, 30)], **words)
    # As the marks: x over 0 to 20, y over 27 to 50.
    assert '<line x1="25.00%" y1="0.00%" x2="100.00%" y2="86.96%" class="edge">' in chart


def test_many_labels_stay_in_the_plot():
    marks = [Mark("student", f"m{i}", "", 10, 30 + i / 100) for i in range(9)]
    chart = scatter(*marks)
    marked = re.findall(r'<svg x="[^"]*" y="([\d.]+)%".*?<text x="-?16" y="(-?[\d.]+)"', chart)
    places = [float(y) / 100 * PLOT_HEIGHT + float(shift) for y, shift in marked]
    assert len(places) == 9
    assert min(places) >= 0
    assert max(places) <= PLOT_HEIGHT
