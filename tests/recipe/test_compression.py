"""The main job on a tiny model: what it leaves, that it goes on, that it refuses what it must."""

import dataclasses
import io
import json
import shutil
from contextlib import nullcontext

import jax
import jax.numpy as jnp
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
    FakeQuantize,
    Mesh,
    OnPolicy,
    Sparsity,
    Student,
    Teacher,
    Train,
)
from ragjax.config_file import read_config
from ragjax.errors import InputError
from ragjax.evaluation.figures import evaluate
from ragjax.interchange.folder import save
from ragjax.quantization.grid import rounded
from ragjax.quantization.scheme import SCHEMES
from ragjax.run_folder import RunFolder, check_same_run
from ragjax.training.fit import PLAIN
from ragjax.training.loop import Interrupted

FAST = {"batch_size": 8, "warmup": 1, "log_every": 2, "checkpoint_every": 4, "evaluate_every": 4}
FIGURES = {
    "perplexity", "bits_per_byte", "word_perplexity", "tokens", "parameters", "nonzero_parameters",
    "sparsity_prunable", "sparsity_total", "stored_bytes", "tokens_per_second",
}  # fmt: skip


def last_of_history(folder):
    return json.loads((folder / "ragjax.json").read_text())["history"][-1]


def silent():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def config(text):
    return Compress(
        teacher=Teacher(
            architecture=Architecture(layers=3, width=32, heads=2, positions=96),
            train=Train(steps=10, **FAST),
        ),
        seed=5,
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
    assert summary["sequence_length"] == 96
    assert summary["seconds"].keys() == {"teacher", "student", "control", "scratch", "evaluate"}


def test_every_model_is_trained_as_the_config_says(run, config):
    folder, figures, _ = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for stage, train, sparsity, distill in (
        ("teacher", config.teacher.train, Sparsity(), PLAIN),
        ("student", config.train, config.sparsity, config.distill),
        ("control", config.train, config.sparsity, PLAIN),
        ("scratch", config.train, config.sparsity, PLAIN),
    ):
        done = last_of_history(folder / stage)
        told = [done[name] for name in ("did", "data", "tokens", "train", "sparsity", "losses")]
        tokens = train.steps * train.batch_size * config.data.sequence_length
        settings = [dataclasses.asdict(part) for part in (train, sparsity, distill)]
        assert told == [stage, config.data.train, tokens, *json.loads(json.dumps(settings))]
        assert figures[stage].sparsity_prunable == pytest.approx(sparsity.target, abs=1e-4)
        last = [line for line in lines if line["stage"] == stage][-2]
        assert last["step"] == train.steps
        assert {"forward_kl", "hidden_mse"} <= last.keys() or distill is PLAIN
        (latest, *_) = sorted((folder / "checkpoints" / stage).glob("*/manifest.json"))
        assert json.loads(latest.read_text())["contents"]["fingerprint"]["seed"] == 5


def test_the_control_starts_as_the_student_and_the_scratch_model_at_random(run):
    history = {
        name: [entry["did"] for entry in json.loads((run[0] / name / "ragjax.json").read_text())["history"]]
        for name in ("student", "control", "scratch")
    }
    assert history["student"] == ["teacher", "keep layers", "student"]
    assert history["control"] == ["teacher", "keep layers", "control"]
    assert history["scratch"] == ["scratch"]


def test_masks_and_samples_are_those_of_the_models(run):
    folder, _, _ = run
    masks = json.loads((folder / "masks.json").read_text())
    assert masks.keys() == {"student", "control", "scratch"}
    for matrices in masks.values():
        assert len(matrices) == 2 * 6
        assert all(matrix["zeros"] == matrix["size"] // 2 for matrix in matrices)
    samples = json.loads((folder / "samples.json").read_text())
    assert len(samples) == 3
    assert all(sample.keys() == {"prompt", "teacher", *masks} for sample in samples)
    texts = ragjax.generate(ragjax.load(folder), [sample["prompt"] for sample in samples], max_new_tokens=8)
    assert [sample["student"] for sample in samples] == texts


def test_the_student_is_half_zeros_and_a_layer_shorter(run):
    folder, figures, _ = run
    assert figures["student"].sparsity_prunable == pytest.approx(0.5, abs=1e-4)
    assert figures["teacher"].sparsity_prunable == 0
    assert figures["student"].layers == 2
    assert figures["student"].stored_bytes == (folder / "student" / "model.safetensors").stat().st_size


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
    with pytest.raises(InputError, match=r"seed: 5 there, 1 now\n.*train.steps: 8 there, 9 now"):
        ragjax.compress(other, folder, console=silent())
    assert (folder / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"seed": 6}, False),
        ({"student.layers": 3}, False),
        ({"teacher.train.steps": 11}, False),
        ({"teacher.architecture.width": 64}, False),
        ({"data.sequence_length": 16}, False),
        ({"data.isolate_documents": True}, False),
        ({"train.learning_rate": 1e-4}, False),
        ({"sparsity.target": 0.6}, False),
        ({"distill.temperature": 2.0}, False),
        ({"evaluate.stride": 4, "evaluate.prompts": ("a",), "mesh.data": 8}, True),
        ({"student.control": False, "student.scratch": False, "data.cache": "elsewhere"}, True),
        ({"train.log_every": 3, "train.checkpoint_every": 3, "train.evaluate_every": 3}, True),
        ({"train.keep": 3, "teacher.train.log_every": 3, "teacher.train.keep": 3}, True),
    ],
)
def test_a_folder_is_bound_to_what_its_models_depend_on_and_to_nothing_else(run, config, fields, same):
    changed = config
    for name, value in fields.items():
        *groups, field = name.split(".")
        owners = [changed]
        for group in groups:
            owners.append(getattr(owners[-1], group))
        value = dataclasses.replace(owners.pop(), **{field: value})
        for owner, group in zip(reversed(owners), reversed(groups), strict=True):
            value = dataclasses.replace(owner, **{group: value})
        changed = value
    assert changed != config
    expected = nullcontext() if same else pytest.raises(InputError, match=f"{next(iter(fields))}: .* there")
    with expected:
        check_same_run(RunFolder(run[0]), changed)


def test_a_folder_without_a_model_in_it_is_no_finished_stage(tmp_path):
    (tmp_path / "student").mkdir()
    assert not RunFolder(tmp_path).has_model("student")


def test_measuring_differently_trains_nothing_again(run, config, monkeypatch, stop_after):
    folder, figures, _ = run
    assert figures["student"].tokens == 600
    trained = (folder / "student" / "model.safetensors").stat().st_mtime_ns
    windows = {"sequence_length": 32, "stride": 8}
    measure = dataclasses.replace(config.evaluate, max_tokens=None, **windows)
    other = dataclasses.replace(config, evaluate=measure)
    # Asked by each of four stages first.
    monkeypatch.setattr("ragjax.recipe.open_run.Interrupts", lambda: stop_after(6))
    with pytest.raises(Interrupted, match="Stopped before the student was measured"):
        ragjax.compress(other, folder, console=silent())
    monkeypatch.undo()
    again = ragjax.compress(other, folder, console=silent())
    expected = evaluate(ragjax.load(folder), config.data.train, split="validation", **windows)
    assert again["student"].tokens == expected.tokens != 600
    assert again["student"].perplexity == pytest.approx(expected.perplexity, rel=1e-5)
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
        ({"mesh": Mesh(data=3)}, "The mesh must use all"),
    ],
)
def test_a_student_that_cannot_be_is_refused_before_its_teacher_is_trained(config, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        ragjax.compress(dataclasses.replace(config, **change), tmp_path / "r", console=silent())
    assert not (tmp_path / "r" / "teacher").exists()
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize("field", ["student.model", "teacher.also"])
def test_models_named_beside_a_teacher_to_be_trained_are_looked_at_first(
    config, tiny_byte_model, tmp_path, field, monkeypatch_module
):
    other = str(save(tiny_byte_model, tmp_path / "bytes"))
    also = (other,) if field == "teacher.also" else ()
    changed = dataclasses.replace(
        config,
        teacher=dataclasses.replace(config.teacher, also=also),
        student=Student(model=None if also else other),
    )
    with pytest.raises(InputError, match=f"{field} .*must number their tokens alike"):
        ragjax.compress(changed, tmp_path / "r", console=silent())
    assert not (tmp_path / "r" / "teacher").exists()
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize("tokenizer", [pytest.param("its own", marks=pytest.mark.slow), "the config's"])
def test_an_existing_model_is_a_teacher(run, config, tmp_path, tokenizer):
    (tmp_path / "held_out.txt").write_text("abcd efgh " * 20)
    teacher = ragjax.load(run[0] / "teacher")
    named = None
    if tokenizer == "the config's":
        teacher, named = dataclasses.replace(teacher, tokenizer=None), str(run[0] / "tokenizer")
    save(teacher, tmp_path / "teacher")
    changed = dataclasses.replace(
        config,
        teacher=Teacher(model=str(tmp_path / "teacher")),
        student=Student(layers=(0, 1), control=False),
        data=dataclasses.replace(config.data, tokenizer=named, validation=f"text:{tmp_path}/held_out.txt"),
        evaluate=dataclasses.replace(config.evaluate, max_tokens=None),
    )
    figures = ragjax.compress(changed, tmp_path / "r", console=silent())
    assert set(figures) == {"teacher", "student"}
    assert not (tmp_path / "r" / "teacher").exists()
    kept = json.loads((tmp_path / "r" / "student" / "ragjax.json").read_text())["history"][-2]
    assert kept == {"did": "keep layers", "of": 3, "layers": [0, 1]}
    tokens = ragjax.load(run[0]).tokenizer("abcd efgh " * 20)["input_ids"]
    assert figures["student"].tokens == len(tokens)


def test_a_student_may_start_as_another_model(run, config, tmp_path):
    changed = dataclasses.replace(
        config,
        teacher=Teacher(model=str(run[0] / "teacher")),
        student=Student(model=str(run[0] / "scratch"), layers=(1,), control=False),
        sparsity=Sparsity(),
        train=dataclasses.replace(config.train, learning_rate=1e-9, steps=2),
    )
    ragjax.compress(changed, tmp_path / "r", console=silent())
    start, student = ragjax.load(run[0] / "scratch"), ragjax.load(tmp_path / "r" / "student")
    kernel = start.params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_allclose(student.params["layers"]["mlp"]["up"]["kernel"], kernel[1:2], atol=1e-6)
    assert [done["did"] for done in student.history] == ["scratch", "keep layers", "student"]


@pytest.mark.slow
def test_student_and_control_are_trained_for_few_bits_and_say_so(run, config, tmp_path):
    changed = dataclasses.replace(
        config, teacher=Teacher(model=str(run[0] / "teacher")), student=Student(layers=2),
        quantize=FakeQuantize("int4"), train=dataclasses.replace(config.train, steps=4),
        sparsity=Sparsity(),
    )  # fmt: skip
    ragjax.compress(changed, tmp_path / "r", console=silent())
    for stage in ("student", "control"):
        assert last_of_history(tmp_path / "r" / stage)["quantize"] == {"scheme": "int4", "group": None}
        kernel = ragjax.load(tmp_path / "r" / stage).params["layers"]["mlp"]["down"]["kernel"]
        np.testing.assert_allclose(rounded(kernel, SCHEMES["int4"]), kernel, rtol=3e-7, atol=1e-9)
    assert "quantize" not in last_of_history(run[0] / "student")


@pytest.mark.slow
def test_a_student_may_learn_of_what_it_writes_while_its_control_reads(run, config, tmp_path):
    writes = OnPolicy(share=0.6, prompt_tokens=8, new_tokens=6)
    brief = dataclasses.replace(config.train, steps=4, log_every=1)
    changed = dataclasses.replace(
        config, teacher=Teacher(model=str(run[0] / "teacher")), on_policy=writes, train=brief,
        student=Student(layers=2), sparsity=Sparsity(),
    )  # fmt: skip
    ragjax.compress(changed, tmp_path / "r", console=silent())
    done = last_of_history(tmp_path / "r" / "student")
    assert done["on_policy"] == json.loads(json.dumps(dataclasses.asdict(writes)))
    assert "on_policy" not in last_of_history(tmp_path / "r" / "control")
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    lengths = [line["written_tokens"] for line in lines if "written_tokens" in line]
    assert lengths
    assert all(1 <= length <= 6 for length in lengths)
    assert {line["stage"] for line in lines if "on_policy" in line} == {"student"}
    assert "Text of its own" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize("keeps", ["embeddings", "shape"])
def test_a_student_may_start_at_random_with_the_teachers_embeddings_or_without(run, config, tmp_path, keeps):
    changed = dataclasses.replace(
        config,
        teacher=Teacher(model=str(run[0] / "teacher"), also=(str(run[0] / "scratch"),), shares=(3.0, 1.0)),
        student=Student(layers=1, keeps=keeps, control=False),
        sparsity=Sparsity(),
        train=dataclasses.replace(config.train, learning_rate=1e-9, steps=2),
    )
    ragjax.compress(changed, tmp_path / "r", console=silent())
    teacher, student = ragjax.load(run[0] / "teacher"), ragjax.load(tmp_path / "r" / "student")
    assert [done["did"] for done in student.history] == ["student"]

    def same(*names):
        one, other = teacher.params, student.params
        for name in names:
            one, other = one[name], other[name]
        return np.allclose(np.asarray(one)[: len(other)], other, atol=1e-6)

    assert same("embedding", "tokens") == same("embedding", "positions") == (keeps == "embeddings")
    assert not same("layers", "mlp", "up", "kernel")


@pytest.mark.parametrize("field", ["student.model", "teacher.also"])
def test_models_that_number_their_tokens_otherwise_are_refused(run, config, tiny_byte_model, tmp_path, field):
    save(tiny_byte_model, tmp_path / "bytes")
    other = str(tmp_path / "bytes")
    also = {"also": (other,)} if field == "teacher.also" else {}
    changed = dataclasses.replace(
        config,
        teacher=Teacher(model=str(run[0] / "teacher"), **also),
        student=Student(model=None if also else other),
    )
    with pytest.raises(InputError, match=f"{field} .*must number their tokens alike"):
        ragjax.compress(changed, tmp_path / "r", console=silent())


def test_a_teacher_without_a_tokenizer_is_refused(config, tiny_model, tmp_path):
    save(tiny_model, tmp_path / "model")
    teacher = Teacher(model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="no tokenizer"):
        ragjax.compress(dataclasses.replace(config, teacher=teacher), tmp_path / "r", console=silent())


def test_figures_are_measured_again_where_weights_changed_not_where_the_folder_moved(run, config, tmp_path):
    moved = tmp_path / "moved"
    copy = shutil.copytree(run[0], tmp_path / "copy")
    ragjax.compress(config, copy, console=silent())
    before = (copy / "summary.json").read_bytes()
    shutil.move(copy, moved)
    ragjax.compress(config, moved, console=silent())
    assert (moved / "summary.json").read_bytes() == before
    student = ragjax.load(moved / "student")
    save(dataclasses.replace(student, params=jax.tree.map(jnp.zeros_like, student.params)), moved / "student",
         overwrite=True)  # fmt: skip
    figures = ragjax.compress(config, moved, console=silent())
    assert figures["student"].sparsity_total == 1.0


def test_a_misspelt_source_does_not_bind_the_folder(config, tmp_path):
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, train="builtin:pyhton"))
    with pytest.raises(InputError, match="pyhton"):
        ragjax.compress(wrong, tmp_path / "r", console=silent())
    other = dataclasses.replace(config, sparsity=Sparsity(target=0.5, prunable=("no/such",)))
    with pytest.raises(InputError, match="no parameter is named by"):
        ragjax.compress(other, tmp_path / "r", console=silent())


@pytest.mark.parametrize("left", ['{"teacher": {"perp', "[1]", '{"teacher": {}}'])
def test_half_written_figures_are_measured_again(run, config, left):
    folder, _, _ = run
    (folder / "summary.json").write_text(left)
    ragjax.compress(config, folder, console=silent())
    assert json.loads((folder / "summary.json").read_text()).keys() >= {"teacher", "student", "control"}
