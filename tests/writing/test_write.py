"""What a model writes: its own completions, each by its number, and a source of pairs for students."""

import dataclasses
import io
import json
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import ragjax
from ragjax.config import Compress, Data, Distill, Evaluate, Mesh, Student, Teacher, Train, Writing
from ragjax.data import open_corpus
from ragjax.data.sources import pairs
from ragjax.errors import InputError
from ragjax.generation import generate_tokens
from ragjax.interchange.folder import save
from ragjax.training.loop import Interrupted
from ragjax.writing import write, write_dataset

ASKED = {"samples": 2, "max_new_tokens": 6, "seed": 3, "batch_size": 4}
ONE = Mesh(data=1)


@pytest.fixture(scope="module")
def writer(tiny_byte_model, tmp_path_factory):
    """A model that writes letters, and ends often."""
    params = jax.tree.map(lambda x: x, tiny_byte_model.params)
    # The table is the output projection too: letters and the end are likelier than other bytes.
    alphabet = jnp.zeros(len(params["embedding"]["tokens"])).at[64:90].set(1.0).at[256].set(1.3)
    params["final_norm"] = params["final_norm"] | {"bias": params["final_norm"]["bias"].at[0].set(5.0)}
    table = params["embedding"]["tokens"]
    params["embedding"] = params["embedding"] | {"tokens": table.at[:, 0].set(alphabet)}
    folder = tmp_path_factory.mktemp("writer") / "model"
    save(dataclasses.replace(tiny_byte_model, params=params), folder)
    return str(folder)


@pytest.fixture
def uri(pairs_file):
    return pairs_file([(f"Say {'ab' * i}", " x") for i in range(5)])


@pytest.fixture
def written(writer, uri, tmp_path):
    """Writes a dataset, and hands back its lines, how far it is and what was shown."""

    def make(name="d", devices=ONE, **fields):
        shown = io.StringIO()
        out = tmp_path / f"{name}.jsonl"
        told = write_dataset(
            writer, out, Writing(prompts=uri, **{**ASKED, **fields}), devices=devices,
            console=Console(file=shown, width=200),
        )  # fmt: skip
        return [json.loads(line) for line in out.read_text().splitlines()], told, shown.getvalue()

    return make


def test_each_row_is_what_the_model_generates_after_its_prompt_alone(writer, written):
    lines, told, _ = written()
    model = ragjax.load(writer)
    ids = [model.tokenizer.encode(f"Say {'ab' * i}") for i in range(5)]
    expected, blank, cut = [], 0, 0
    for row in range(10):
        prompt = ids[row // 2]
        (answer,) = generate_tokens(model, [prompt], max_new_tokens=6, temperature=1.0, seed=3, rows=[row])
        ended = answer[-1] == 256
        text = model.tokenizer.decode(answer, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        cut += not ended
        blank += not text.strip()
        if text.strip():
            line = {"prompt": model.tokenizer.decode(prompt), "completion": text, "ended": bool(ended)}
            expected.append(line)
    assert lines == expected
    assert (told.rows, told.pairs, told.blank, told.cut) == (10, len(lines), blank, cut)
    assert 0 < cut < 10
    assert len({line["completion"] for line in lines}) > 5


def test_a_run_that_stopped_goes_on_to_the_file_of_one_that_did_not(
    written, monkeypatch, tmp_path, stop_after
):
    expected, whole, _ = written("whole")
    with monkeypatch.context() as patched:
        patched.setattr(write, "Interrupts", partial(stop_after, 1))
        with pytest.raises(Interrupted, match="Stopped after 4 of 10 completions"):
            written()
    assert not (tmp_path / "d.jsonl").exists()
    lines, told, shown = written()
    assert "there are 4 completions already" in shown
    assert lines == expected
    assert dataclasses.replace(told, seconds=0) == dataclasses.replace(whole, seconds=0)


def test_a_dataset_that_is_whole_is_left_as_it_is(written, monkeypatch):
    expected, told, _ = written()
    monkeypatch.setattr(write, "generate_tokens", None)
    lines, again, shown = written()
    assert (lines, again) == (expected, told)
    assert "learn from it: --data.train jsonl:" in shown


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 3}, pytest.param({"batch_size": 64}, marks=pytest.mark.slow), {"devices": Mesh(data=-1)}],
)
def test_a_row_does_not_depend_on_its_batch_or_the_mesh(written, change):
    expected, _, _ = written("before")
    assert written("after", **change)[0] == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "seed: 3 there, 4 now"),
        ({"samples": 1}, "samples: 2 there, 1 now"),
        ({"temperature": 0.5}, r"temperature: 1\.0 there, 0\.5 now"),
        ({"max_new_tokens": 5}, "max_new_tokens: 6 there, 5 now"),
        ({"max_prompts": 4}, r"prompts: \w+ there, \w+ now"),
    ],
)
def test_other_settings_are_refused_by_name(written, monkeypatch, change, said, stop_after):
    with monkeypatch.context() as patched:
        patched.setattr(write, "Interrupts", partial(stop_after, 1))
        with pytest.raises(Interrupted):
            written()
    with pytest.raises(InputError, match=said):
        written(**change)


def test_greedy_rows_are_the_likeliest_tokens(writer, written, uri):
    lines, told, _ = written(samples=1, temperature=0.0)
    expected = ragjax.generate(ragjax.load(writer), [pair.prompt for pair in pairs(uri)], max_new_tokens=6)
    assert [line["completion"] for line in lines] == [text for text in expected if text.strip()]
    assert told.rows == 5


def test_what_is_written_is_read_back_as_it_was(writer, written, tmp_path):
    lines, _, _ = written()
    model = ragjax.load(writer)
    uri = f"jsonl:{tmp_path}/d.jsonl#prompt,completion,ended"
    corpus = open_corpus(uri, None, model.tokenizer, cache=tmp_path / "cache")
    assert [pair._asdict() for pair in pairs(uri)] == lines
    for number, line in enumerate(lines):
        size = corpus.completions[number] - corpus.starts[number]
        completion = corpus.document(number)[size:]
        assert (completion[-1] == 256) == line["ended"]
        assert model.tokenizer.decode(completion, skip_special_tokens=True) == line["completion"]


@pytest.mark.slow
def test_a_student_learns_from_what_its_teacher_wrote(writer, written, tmp_path):
    lines, _, _ = written()
    config = Compress(
        teacher=Teacher(model=writer),
        student=Student(layers=1, control=False),
        data=Data(
            train=f"jsonl:{tmp_path}/d.jsonl#prompt,completion,ended", sequence_length=32,
            cache=str(tmp_path / "cache"),
        ),
        train=Train(steps=3, batch_size=8, warmup=1, log_every=1, evaluate_every=3),
        distill=Distill(forward_kl=0.0, cross_entropy=1.0),
        evaluate=Evaluate(speed_rounds=1, sample_tokens=2),
    )  # fmt: skip
    shown = io.StringIO()
    figures = ragjax.compress(config, tmp_path / "run", console=Console(file=shown, width=200))
    held_out = list(pairs(config.data.train, "validation"))
    scored = sum(len(pair.completion.encode()) + pair.ended for pair in held_out)
    assert figures["student"].tokens == figures["teacher"].tokens == scored
    assert f"pairs: {len(lines) - len(held_out)}, sequences: " in shown.getvalue()
    done = json.loads((tmp_path / "run" / "student" / "ragjax.json").read_text())["history"][-1]
    learnt = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2])["tokens"]
    # Prompts and what fills a sequence up are not learnt.
    assert done["tokens"] == round(learnt) < 3 * 8 * 32
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == sorted({pair.prompt for pair in held_out}, key=len)[:3]
