import re

from ragjax.report import tables
from ragjax.report.read import Zeros, read_run


def plain(markup: str) -> str:
    return re.sub(r"<[^>]+>", "|", markup).replace("\u00a0", " ")


def row(table: str, title: str) -> str:
    return next(r for r in re.findall(r"<tr.*?</tr>", table) if title in r)


def test_changes_are_against_the_teacher_and_the_clear_winner_is_named(make_run):
    table = tables.comparison(read_run(make_run()))
    # 31.5, 33.6 and 45.2 against 30.
    assert re.findall(r"<small>([+−±][^<]*)</small>", row(table, "Perplexity per token")) == [
        "+5\u00a0%", "+12\u00a0%", "+51\u00a0%",
    ]  # fmt: skip
    assert re.findall(r">([^<]*)</data><em>best</em>", row(table, "Perplexity per token")) == ["30.00"]


def test_no_model_is_best_where_the_lead_is_noise(make_run):
    # Speeds 9000, 9020, 8980: less than 2 % apart; sizes of the three are equal.
    table = tables.comparison(read_run(make_run()))
    assert "best" not in row(table, "Tokens read per second").replace("is better", "")
    assert "<em>best</em>" not in row(table, "Stored bytes")


def test_a_figure_a_model_lacks_is_a_dash_and_one_that_all_lack_has_no_row(make_run, summary):
    del summary["control"]["bits_per_byte"]
    for model in ("teacher", "student", "control", "scratch"):
        del summary[model]["word_perplexity"]
    table = tables.comparison(read_run(make_run(summary=summary)))
    assert "–" in plain(row(table, "Bits per byte"))
    assert "Perplexity per word" not in table


def test_heat_map_cells_and_totals():
    zeros = [
        Zeros("layers/mlp/up/kernel", 0, 100, 20), Zeros("layers/mlp/up/kernel", 1, 100, 40),
        Zeros("layers/mlp/down/kernel", 0, 300, 300), Zeros("head", None, 100, 0),
    ]  # fmt: skip
    table = tables.heat_map(zeros)
    cells = [plain(r).strip("|").split("|") for r in re.findall(r"<tr.*?</tr>", table)]
    rows = {c[0]: [x for x in c[1:] if x] for c in cells}
    assert rows["Layer"] == ["0", "1", "no layer", "All"]
    assert rows["mlp up"] == ["20", "40", "–", "30"]
    assert rows["mlp down"] == ["100", "–", "–", "100"]
    assert rows["head"] == ["–", "–", "0", "0"]
    # 320 of 400; 40 of 100; 0 of 100; 360 of 600.
    assert rows["All"] == ["80", "40", "0", "60"]
    assert 'style="--share:0.200"' in table


def test_settings_name_every_field_by_its_path():
    text = plain(tables.settings({"kind": "Compress", "teacher": {"model": None, "train": {"steps": 600}}}))
    for part in ("kind", "Compress", "teacher", "model", "none", "train.steps", "600"):
        assert f"|{part}|" in text
