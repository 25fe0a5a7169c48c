"""Figures that go into a run folder, and the perplexity of models that the run did not measure."""

import json
from dataclasses import replace

import pytest

import ragjax
from ragjax.benchmark import Measured, Report, keep, run_of
from ragjax.benchmark.figures import Figures
from ragjax.benchmark.quality import held_out, perplexity_on, why_not
from ragjax.config import Bench, Compress, Data, Evaluate, to_dict
from ragjax.data import train_tokenizer
from ragjax.errors import InputError
from ragjax.evaluation import evaluate
from ragjax.interchange.onnx import export_onnx, in_onnxruntime, load_onnx
from ragjax.report.bench import read_bench

TEXT = "a plain text about nothing, which goes on for a while and then it ends. "
WANTED = {"sequence_length": 24, "stride": 10, "max_tokens": 300}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "held_out.txt"
    text.write_text(TEXT * 6)
    return Compress(
        data=Data(train=f"text:{text}", validation=f"text:{text}"), evaluate=Evaluate(batch_size=4, **WANTED)
    )


@pytest.fixture(scope="module")
def text(config, tiny_byte_model):
    return held_out(config, {}, tiny_byte_model)


@pytest.fixture
def run(tmp_path, config, tiny_byte_model):
    """A run folder with a student, as far as this needs one."""
    folder = tmp_path / "run"
    ragjax.save(tiny_byte_model, folder / "student")
    write_run(folder, config)
    return folder


def write_run(folder, config):
    """The config of a run, and figures measured by it."""
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    measured = {"identity": {"config": to_dict(config)}, "teacher": {}, "student": {"perplexity": 7.0}}
    (folder / "summary.json").write_text(json.dumps(measured))


def report_of(*names) -> Report:
    figures = {1: Figures(0.5, 16.0, 10.0, 2e6, 0.25, 1.0, 1.0)}
    models = tuple(Measured(str(name), "jax", "float32", 1, figures) for name in names)
    return Report("a machine", 8e9, Bench(batch=(1,)), models, "2026-11-02", {})


def test_perplexity_is_that_of_the_run_s_own_measurement(config, text, tiny_byte_model):
    expected = evaluate(tiny_byte_model, config.data.validation, **WANTED).perplexity
    assert perplexity_on(tiny_byte_model, text) == pytest.approx(expected, rel=1e-6)


def test_onnxruntime_scores_the_same_tokens_in_the_same_windows(text, tiny_byte_model):
    # Windows of several lengths: the first scores all it reads but one token, the last is short.
    assert len({*(text.windows.end - text.windows.begin).tolist()}) > 1
    there = in_onnxruntime(tiny_byte_model, threads=1)
    assert perplexity_on(there, text) == pytest.approx(perplexity_on(tiny_byte_model, text), rel=1e-4)


def test_what_does_not_compare_says_why(text, tiny_byte_model, tiny_model):
    assert why_not(tiny_byte_model, text) is None
    assert "no tokenizer" in why_not(tiny_model, text)
    short = replace(tiny_byte_model, config=replace(tiny_byte_model.config, positions=16))
    assert "24 tokens" in why_not(short, text)
    learned = train_tokenizer([TEXT], vocab_size=257)
    assert "not the run's" in why_not(replace(tiny_byte_model, tokenizer=learned), text)


def test_the_run_is_that_of_the_first_model_in_one(run, tmp_path, tiny_byte_model):
    other = ragjax.save(tiny_byte_model, tmp_path / "other")
    assert run_of([str(other)]) is None
    for name in (run, run / "student"):
        assert run_of([str(other), str(name)]).path == run
    with pytest.raises(InputError, match="not found"):
        run_of([str(tmp_path / "none")])


def test_what_is_kept_is_what_a_report_reads(run, tmp_path, tiny_byte_model, text):
    small = export_onnx(tiny_byte_model, tmp_path / "small", dtype="int8")
    lines, names = [], [run, small, run / "student"]
    models = [tiny_byte_model, load_onnx(small, threads=1), tiny_byte_model]
    file = keep(run_of([str(run)]), report_of(*names), models, progress=lines.append)
    assert file == run / "bench.json"
    # Of the run's own models its summary says the perplexity.
    assert len(lines) == 1
    assert str(small) in lines[0]
    unreadable = []
    found = read_bench(run, {"teacher": {}, "student": {"perplexity": 7.0}}, unreadable)
    assert unreadable == []
    assert found.left_out == ()
    assert [model.role for model in found.models] == ["student", None, "student"]
    assert [model.perplexity for model in found.models] == [7.0, perplexity_on(models[1], text), 7.0]
    stored = sum((small / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert found.models[1].stored_bytes == stored
    assert found.models[1].batch == {1: found.models[0].batch[1]}


def test_a_teacher_from_elsewhere_is_known_by_the_config(run, tmp_path, tiny_byte_model, config):
    teacher = ragjax.save(tiny_byte_model, tmp_path / "large")
    values = to_dict(config)
    values["teacher"]["model"] = str(teacher)
    (run / "config.json").write_text(json.dumps(values))
    file = keep(run_of([str(run)]), report_of(run, teacher), [tiny_byte_model] * 2)
    assert [model["role"] for model in json.loads(file.read_text())["models"]] == ["student", "teacher"]


def test_a_text_that_is_gone_costs_the_perplexity_and_not_the_figures(run, tmp_path, tiny_byte_model, config):
    other = ragjax.save(tiny_byte_model, tmp_path / "other")
    gone = replace(config, data=Data(train=f"text:{tmp_path}/none.txt"))
    write_run(run, gone)
    file = keep(run_of([str(run)]), report_of(run, other), [tiny_byte_model] * 2)
    [_, told] = json.loads(file.read_text())["models"]
    assert told["perplexity"] is None
    assert "none.txt" in told["why"]
    assert told["batch"]["1"]["decode_tokens_per_second"] == 10.0


def test_perplexity_is_on_the_text_the_figures_are_of_though_the_config_changed(
    run, tmp_path, tiny_byte_model, config, text
):
    changed = replace(config, evaluate=replace(config.evaluate, max_tokens=100))
    (run / "config.json").write_text(json.dumps(to_dict(changed)))
    other = ragjax.save(tiny_byte_model, tmp_path / "other")
    file = keep(run_of([str(run)]), report_of(run, other), [tiny_byte_model] * 2)
    [_, told] = json.loads(file.read_text())["models"]
    assert told["perplexity"] == perplexity_on(tiny_byte_model, text)
