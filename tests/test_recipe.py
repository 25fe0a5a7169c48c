"""The main job on a tiny model: what it leaves, that it goes on, that it refuses what it must."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

import ragjax
from ragjax.config import (
    Architecture,
    Compress,
    Data,
    Distill,
    Evaluate,
    Pretrain,
    Sparsity,
    Student,
    Teacher,
    Train,
)
from ragjax.config_file import read_config
from ragjax.errors import InputError

FAST = {"batch_size": 8, "warmup": 1, "log_every": 2, "checkpoint_every": 4, "evaluate_every": 4}
FIGURES = {
    "perplexity", "bits_per_byte", "word_perplexity", "tokens", "parameters", "nonzero_parameters",
    "sparsity_prunable", "sparsity_total", "stored_bytes", "tokens_per_second",
}  # fmt: skip


def silent():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(40)]
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(words, 60)))
    return f"text:{folder}/*.txt"


@pytest.fixture(scope="module")
def config(text):
    return Compress(
        teacher=Teacher(
            architecture=Architecture(layers=3, width=32, heads=2, positions=96),
            train=Train(steps=8, **FAST),
        ),
        student=Student(layers=2, scratch=True),
        data=Data(train=text, sequence_length=32, vocab_size=300),
        train=Train(steps=8, **FAST),
        sparsity=Sparsity(target=0.5, stop=4, every=2),
        distill=Distill(hidden_mse=0.1),
        evaluate=Evaluate(max_tokens=600, speed_rounds=2, sample_tokens=8),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory, monkeypatch_module):
    folder = tmp_path_factory.mktemp("run") / "r"
    console = silent()
    figures = ragjax.compress(config, folder, console=console)
    return folder, figures, console.file.getvalue()


@pytest.fixture(scope="module")
def monkeypatch_module(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield patch


def test_the_run_folder_holds_all_it_promises(run):
    folder, _, _ = run
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "config.json", "metrics.jsonl", "checkpoints", "student", "control", "scratch", "teacher",
        "tokenizer", "summary.json", "masks.json", "samples.json", "report.html",
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("teacher", "student", "control", "scratch"):
        assert summary[name].keys() >= FIGURES
        assert all(np.isfinite(summary[name][key]) for key in FIGURES)
    assert summary["student"]["speed_vs_teacher"] > 0


def test_the_student_is_half_zeros_and_a_layer_shorter(run):
    folder, figures, _ = run
    assert figures["student"].sparsity_prunable == pytest.approx(0.5, abs=1e-4)
    assert figures["teacher"].sparsity_prunable == 0
    assert figures["student"].layers == 2
    assert figures["student"].stored_bytes == (folder / "student" / "model.safetensors").stat().st_size
    record = json.loads((folder / "student" / "ragjax.json").read_text())
    assert [entry["did"] for entry in record["history"]] == ["teacher", "keep layers", "student"]


def test_transformers_opens_the_student_and_computes_the_same(run):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = run
    theirs = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    tokens = np.array([AutoTokenizer.from_pretrained(folder / "student")("abcd efgh hgfe")["input_ids"]])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ragjax.load(folder)(tokens), expected, atol=1e-4)


def test_the_report_shows_every_model_and_loads_nothing(run):
    page = (run[0] / "report.html").read_text()
    for name in ("Teacher", "Student", "Control", "Scratch"):
        assert name in page
    assert 'src="http' not in page


def test_a_finished_run_is_not_done_again(run, config):
    folder, figures, _ = run
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")}
    console = silent()
    assert ragjax.compress(config, folder, console=console) == figures
    after = {p: p.stat().st_mtime_ns for p in before}
    changed = {p.name for p in before if before[p] != after[p]}
    assert changed <= {"config.json"}
    assert "done" in console.file.getvalue()


def test_the_stored_config_is_the_config(run, config):
    assert read_config(run[0] / "config.json")[0] == config


def test_another_config_is_kept_out_of_the_folder(run, config):
    folder, _, _ = run
    before = (folder / "config.json").read_text()
    other = dataclasses.replace(config, seed=1, train=dataclasses.replace(config.train, steps=9))
    with pytest.raises(InputError, match=r"seed: 0 there, 1 now\n.*train.steps: 8 there, 9 now"):
        ragjax.compress(other, folder, console=silent())
    assert (folder / "config.json").read_text() == before


def test_measuring_differently_trains_nothing_again(run, config):
    folder, figures, _ = run
    trained = (folder / "student" / "model.safetensors").stat().st_mtime_ns
    shorter = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, max_tokens=300))
    again = ragjax.compress(shorter, folder, console=silent())
    assert again["student"].tokens == 300 != figures["student"].tokens
    assert (folder / "student" / "model.safetensors").stat().st_mtime_ns == trained


def test_a_folder_of_something_else_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(InputError, match=r"thesis.tex"):
        ragjax.compress(config, tmp_path, console=silent())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity": Sparsity(target=0.5, prunable=("no/such",))}, "no parameter is named by"),
        ({"sparsity": Sparsity(pattern="n_of_m", n=1, m=5)}, "kernel"),
    ],
)
def test_a_student_that_cannot_be_is_refused_before_its_teacher_is_trained(config, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        ragjax.compress(dataclasses.replace(config, **change), tmp_path / "r", console=silent())
    assert not (tmp_path / "r" / "teacher").exists()
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_an_existing_model_is_a_teacher(run, config, tmp_path):
    teacher = Teacher(model=str(run[0] / "teacher"))
    student = Student(layers=(0, 2), control=False)
    figures = ragjax.compress(
        dataclasses.replace(config, teacher=teacher, student=student), tmp_path / "r", console=silent()
    )
    assert set(figures) == {"teacher", "student"}
    assert not (tmp_path / "r" / "teacher").exists()


def test_pretraining_leaves_a_model_any_door_opens(text, tmp_path, monkeypatch_module):
    shape = Architecture(layers=2, width=32, heads=2, positions=32, windows=(0, 8))
    config = Pretrain(
        architecture=shape,
        data=Data(train=text, sequence_length=32, vocab_size=300, isolate_documents=True),
        train=Train(steps=3, **FAST),
    )
    ragjax.pretrain(config, tmp_path / "r", console=silent())
    loaded = ragjax.load(tmp_path / "r")
    assert loaded.config.layer_windows == (0, 8)
    onward = dataclasses.replace(config, model=str(tmp_path / "r" / "model"))
    further = ragjax.pretrain(onward, tmp_path / "s", console=silent())
    assert [entry["did"] for entry in further.history] == ["model", "model"]


def test_a_misspelt_source_does_not_bind_the_folder(config, tmp_path):
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, train="builtin:pyhton"))
    with pytest.raises(InputError, match="pyhton"):
        ragjax.compress(wrong, tmp_path / "r", console=silent())
    other = dataclasses.replace(config, sparsity=Sparsity(target=0.5, prunable=("no/such",)))
    with pytest.raises(InputError, match="no parameter is named by"):
        ragjax.compress(other, tmp_path / "r", console=silent())


def test_half_written_figures_are_measured_again(run, config):
    folder, _, _ = run
    whole = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(whole[: len(whole) // 2])
    ragjax.compress(config, folder, console=silent())
    assert json.loads((folder / "summary.json").read_text()).keys() >= {"teacher", "student", "control"}
