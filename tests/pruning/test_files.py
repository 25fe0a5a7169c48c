"""`ragjax prune --compare` and `ragjax sensitivity` as a person types them, and the page of a pruning."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ragjax.cli import main
from ragjax.interchange.folder import load, save
from ragjax.interchange.formats import export
from ragjax.interchange.size import stored_bytes
from ragjax.pruning.sensitivity import sensitivity
from ragjax.report.words import percent


@pytest.fixture
def model(tiny_byte_model, tmp_path, monkeypatch):
    """MODEL, and the options of a short text."""
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    save(tiny_byte_model, tmp_path / "model")
    return str(tmp_path / "model"), ["--samples", "4", "--sequence-length", "32"]


def test_methods_are_compared(model, tmp_path, capsys):
    source, text = model
    out = tmp_path / "out"
    compare = ["--compare", "magnitude,wanda", "--sparsity", "0.5,0.9", "--max-tokens", "200"]
    main(["prune", source, str(out), *compare, *text])
    told = capsys.readouterr().out
    found = json.loads((out / "comparison.json").read_text())
    assert [(row["way"], row["asked"]) for row in found["rows"]] == [
        ("magnitude", 0.5), ("wanda", 0.5), ("magnitude", 0.9), ("wanda", 0.9),
    ]  # fmt: skip
    for row in found["rows"]:
        assert f"{row['perplexity']:,.2f}" in told
        assert f"{row['perplexity']:,.1f}" in (out / "report.html").read_text()
    assert "What each method costs" in (out / "report.html").read_text()


def test_help_about_a_comparison_needs_no_methods(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["prune", "--compare", "--help"])
    assert not stopped.value.code
    assert "magnitude,wanda,sparsegpt" in capsys.readouterr().out


def test_a_pattern_that_says_how_sparse_it_is_compared_once(model, tmp_path, capsys):
    source, text = model
    out = tmp_path / "out"
    given = ["--compare", "wanda,magnitude", "--pattern", "n_of_m", "--max-tokens", "200", "--json"]
    main(["prune", source, str(out), *given, *text])
    found = json.loads(capsys.readouterr().out)
    assert [(row["way"], row["sparsity"]) for row in found["rows"]] == [
        ("wanda 2:4", 0.5), ("magnitude 2:4", 0.5),
    ]  # fmt: skip


def test_all_that_is_wrong_with_a_comparison_is_told_at_once(model, tmp_path, refused):
    source, text = model
    wrong = ["--compare", "wanda,woda", "--sparsity", "0.5,half"]
    told = refused("prune", source, tmp_path / "out", *wrong, *text)
    assert "there is no method 'woda'" in told
    assert "found 'half'" in told
    assert not (tmp_path / "out").exists()


def test_sensitivity_gives_a_budget_that_prune_reads(model, tmp_path, capsys):
    source, text = model
    out = tmp_path / "curves"
    levels = ["--sparsities", "0.5", "0.9", "--sparsity", "0.6", "--sequences", "2"]
    main(["sensitivity", source, str(out), *levels, *text])
    told = capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert "What each matrix bears" in page
    assert "partial" not in page
    for level in (0.5, 0.9):
        assert f"with {percent(level)} of one matrix removed" in page
    assert f"--budget table --table {out / 'budget.json'}" in told
    table = json.loads((out / "budget.json").read_text())
    given = ["--sparsity", "0.6", "--budget", "table", "--table", str(out / "budget.json")]
    main(["prune", source, str(tmp_path / "sparse"), "--method", "magnitude", *given, *text])
    params = flatten_dict(load(tmp_path / "sparse").params, sep="/")
    for name, by_layer in table.items():
        zeros = (np.asarray(params[name]) == 0).mean((1, 2))
        np.testing.assert_allclose(zeros, by_layer, atol=1e-3)


def test_n_of_m_has_curves_and_no_budget(model, tmp_path, capsys):
    source, text = model
    out = tmp_path / "curves"
    given = ["--sparsities", "0.25", "--pattern", "n_of_m", "--sequences", "2"]
    main(["sensitivity", source, str(out), *given, *text])
    assert "--budget" not in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == ["report.html", "sensitivity.json"]


def test_a_budget_beyond_what_is_measured_is_refused_first(model, tmp_path, refused):
    source, text = model
    told = refused("sensitivity", source, tmp_path / "out", "--sparsity", "0.95", *text)
    assert "must not exceed the highest of sparsities, 0.9" in told
    assert not (tmp_path / "out").exists()


def test_a_pruned_model_has_a_page_with_three_figures(model, tmp_path, capsys):
    source, text = model
    out = tmp_path / "out"
    main(["prune", source, str(out), "--method", "sparsegpt", *text])
    found = json.loads((out / "pruning.json").read_text())
    assert found["after"]["sparsity_prunable"] == pytest.approx(0.5, abs=1e-3)
    assert found["after"]["stored_bytes"] == stored_bytes(out)
    export(load(out), tmp_path / "small", format="bitmask")
    header = stored_bytes(tmp_path / "small") - found["after"]["bitmask_bytes"]
    assert 0 < header < 20_000
    assert found["after"]["tokens_per_second"] > 0
    assert found["before"]["tokens_per_second"] > 0
    assert len(found["pictures"]) == len(found["matrices"]) == 6
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 12
    assert "Three different numbers" in page


def test_sensitivity_that_was_stopped_goes_on(model, tmp_path, capsys, asking_to_stop):
    source, text = model
    out = tmp_path / "curves"
    words = ["sensitivity", source, str(out), "--sparsities", "0.5", "0.9", "--sequences", "2", *text]
    with asking_to_stop(sensitivity, "prune_block"), pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 75
    assert f"1 of 2 blocks are kept in {out}.unfinished" in capsys.readouterr().err
    main(words)
    told = capsys.readouterr().out
    assert f"going on from {out}.unfinished" in told
    assert "layer 1/2" not in told
    assert (out / "budget.json").exists()
    assert not out.with_name("curves.unfinished").exists()
