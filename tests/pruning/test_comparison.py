"""Ways of pruning compared: every row is measured, kept at once, and not made again."""

import json

import pytest

from ragjax.config import OneShot
from ragjax.errors import InputError
from ragjax.evaluation.figures import evaluate
from ragjax.pruning.comparison import Measure, compare, way_of
from ragjax.pruning.one_shot import prune

MEASURE = Measure("builtin:python", sequence_length=32, max_tokens=400)
TINY = {"samples": 4, "sequence_length": 32}


def ways(*pairs):
    return [OneShot(method=method, sparsity=sparsity, **TINY) for method, sparsity in pairs]


def test_rows_are_what_pruning_and_evaluation_say(tmp_path, tiny_byte_model):
    wanted = ways(("magnitude", 0.5), ("wanda", 0.5), ("wanda", 0.9))
    told = []
    found = compare(
        tiny_byte_model, wanted, MEASURE, tmp_path / "c", source="tiny",
        progress=lambda row, left: told.append((row, list(left))),
    )  # fmt: skip
    assert json.loads((tmp_path / "c" / "comparison.json").read_text()) == found
    assert told == [(row, wanted[i:]) for i, row in enumerate(found["rows"], 1)]
    options = {"sequence_length": 32, "stride": 32, "max_tokens": 400}
    dense = evaluate(tiny_byte_model, "builtin:python", **options).perplexity
    assert found["dense"]["perplexity"] == pytest.approx(dense)
    for row, way in zip(found["rows"], wanted, strict=True):
        pruned = prune(tiny_byte_model, way).model
        figures = evaluate(pruned, "builtin:python", **options)
        assert row["way"] == way.method
        assert row["sparsity"] == pytest.approx(figures.sparsity_prunable)
        assert row["perplexity"] == pytest.approx(figures.perplexity)


def test_what_was_measured_is_not_measured_again(tmp_path, tiny_byte_model):
    folder = tmp_path / "c"

    def stop(row, left):
        raise KeyboardInterrupt

    wanted = ways(("magnitude", 0.5), ("wanda", 0.5))
    with pytest.raises(KeyboardInterrupt):
        compare(tiny_byte_model, wanted, MEASURE, folder, source="tiny", progress=stop)
    first = json.loads((folder / "comparison.json").read_text())
    assert [row["way"] for row in first["rows"]] == ["magnitude"]
    told = []
    found = compare(
        tiny_byte_model, wanted, MEASURE, folder, source="tiny", progress=lambda row, left: told.append(row)
    )
    assert [row["way"] for row in told] == ["wanda"]
    assert found["rows"][:1] == first["rows"]
    assert found["dense"] == first["dense"]


def test_another_comparison_and_any_other_folder_are_left_alone(tmp_path, tiny_byte_model):
    folder = tmp_path / "c"
    compare(tiny_byte_model, [], MEASURE, folder, source="tiny")
    before = (folder / "comparison.json").read_text()
    other = MEASURE._replace(max_tokens=300)
    with pytest.raises(InputError, match="holds another comparison: max_tokens was 400, is 300"):
        compare(tiny_byte_model, [], other, folder, source="tiny")
    by_another_text = OneShot(method="random", sparsity=0.5, samples=5, sequence_length=32)
    compare(tiny_byte_model, ways(("random", 0.5)), MEASURE, tmp_path / "d", source="tiny")
    with pytest.raises(InputError, match="holds another comparison: samples was 4, is 5"):
        compare(tiny_byte_model, [by_another_text], MEASURE, tmp_path / "d", source="tiny")
    with pytest.raises(InputError, match="compared by one text"):
        compare(
            tiny_byte_model, [by_another_text, *ways(("random", 0.5))], MEASURE, tmp_path / "e", source="tiny"
        )
    assert (folder / "comparison.json").read_text() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(InputError, match="exists already"):
        compare(tiny_byte_model, [], MEASURE, tmp_path / "full", source="tiny")


def test_a_way_that_does_not_fit_is_refused_before_any_is_measured(tmp_path, tiny_byte_model):
    with pytest.raises(InputError, match="must not exceed the model's 64 positions"):
        compare(
            tiny_byte_model, [*ways(("magnitude", 0.5)), OneShot(sparsity=0.5, sequence_length=65)], MEASURE,
            tmp_path / "c", source="tiny",
        )  # fmt: skip
    assert not (tmp_path / "c").exists()


def test_a_text_that_is_not_there_or_not_held_out_leaves_no_folder(tmp_path, tiny_byte_model):
    (tmp_path / "a.txt").write_text("Some words to be read with care. " * 40)
    own = f"text:{tmp_path}/a.txt"
    by_own = OneShot(method="random", sparsity=0.5, calibration=own, **TINY)
    for data, said in ((own, "is the calibration text"), ("text:/no/such", "no file matches")):
        with pytest.raises(InputError, match=said):
            compare(tiny_byte_model, [by_own], Measure(data, 32, 100), tmp_path / "c", source="tiny")
    assert not (tmp_path / "c").exists()


def test_ways_are_named_by_what_differs():
    assert way_of(OneShot(method="ria")) == "ria"
    assert way_of(OneShot(method="wanda", pattern="n_of_m", n=4, m=8)) == "wanda 4:8"
    assert way_of(OneShot(method="wanda", pattern="tensor", budget="owl")) == "wanda by tensor with owl"
    assert way_of(OneShot(method="magnitude", pattern="block")) == "magnitude 8x128 blocks"
