"""The verb that pays for a teacher once, and the compression that lives on it."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

import ragjax
from ragjax.caching import cache_teacher
from ragjax.cli import main
from ragjax.config import Compress, Data, Distill, Evaluate, Student, Teacher, Train
from ragjax.errors import InputError
from ragjax.interchange.folder import save
from ragjax.teacher_cache import TeacherCache

FILE = """
from ragjax.config import *
config = Compress(
    teacher=Teacher(model="{folder}/teacher"),
    student=Student(layers=1, control=False),
    data=Data(train="text:{folder}/*.txt", sequence_length=32, cache="{folder}/tokens"),
    train=Train(steps=4, batch_size=8, warmup=1, log_every=1),
    distill=Distill(temperature=2.0),
    evaluate=Evaluate(max_tokens=100, speed_rounds=1, sample_tokens=2),
)
"""


class Stopping:
    """Asks to stop at once; stands in for `Interrupts`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def requested(self):
        return True


def silent():
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_byte_model):
    folder = tmp_path_factory.mktemp("all")
    rng = np.random.default_rng(0)
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 99, 60))))
    save(tiny_byte_model, folder / "teacher")
    (folder / "tiny.py").write_text(FILE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return Compress(
        teacher=Teacher(model=f"{folder}/teacher", cache=f"{folder}/cache"),
        student=Student(layers=1, control=False),
        data=Data(
            train=f"text:{folder}/*.txt", sequence_length=32, cache=f"{folder}/tokens", fixed_cuts=True
        ),
        train=Train(steps=4, batch_size=8, warmup=1, log_every=1),
        distill=Distill(temperature=2.0),
        evaluate=Evaluate(max_tokens=100, speed_rounds=1, sample_tokens=2),
    )


@pytest.fixture(scope="module")
def written(folder):
    main(["cache-teacher", str(folder / "tiny.py"), str(folder / "cache"), "--top-k", "40"])
    return folder / "cache"


def test_the_verb_states_its_storage_and_how_to_go_on(config, written, tmp_path, capsys):
    held = TeacherCache(written).manifest.held
    assert (held.kept.count, held.kept.temperature, held.kept.dtype) == (40, 2.0, "float16")
    assert (held.sequences, held.bytes_per_token) == (32, 40 * 2 + 41 * 2)
    console = silent()
    manifest = cache_teacher(
        config, tmp_path / "c", draws=10, dtype="float32", batch_size=16, console=console
    )
    told = " ".join(console.file.getvalue().split())
    assert "10 draws from each, float32, at temperature 2" in told
    assert f"32 of {held.windows} sequences of 32 tokens" in told
    assert "60 bytes a token, 61.4 kB in all" in told
    size = sum(file.stat().st_size for file in (tmp_path / "c").glob("*.safetensors"))
    assert f"{size / 1024:.1f} bytes a token" in told
    assert f"--teacher.cache {tmp_path}/c --data.fixed-cuts" in told
    assert (manifest.held.kept.kind, manifest.held.kept.count) == ("drawn", 10)


def test_a_student_learns_from_the_cache_and_its_teacher_is_measured(config, written, tmp_path, monkeypatch):
    given = []
    fit = ragjax.recipe.stage.fit

    def recorded(*start, **options):
        given.append(options)
        return fit(*start, **options)

    monkeypatch.setattr("ragjax.recipe.stage.fit", recorded)
    figures = ragjax.compress(config, tmp_path / "r", console=silent())
    assert set(figures) == {"teacher", "student"}
    ((options),) = given
    assert not options["teachers"]
    assert options["cache"].folder == written
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["forward_kl"] > 0 for line in lines if "loss" in line)


def test_a_cache_of_another_teacher_is_refused_before_any_step(config, written, tiny_byte_model, tmp_path):
    params = jax.tree.map(np.array, tiny_byte_model.params)
    params["final_norm"]["bias"][0] += 1
    save(dataclasses.replace(tiny_byte_model, params=params), tmp_path / "other")
    other = dataclasses.replace(config.teacher, model=str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"the teacher \(its parameters or config\)"):
        ragjax.compress(dataclasses.replace(config, teacher=other), tmp_path / "r", console=silent())
    assert not (tmp_path / "r" / "checkpoints").exists()


def test_what_was_stopped_goes_on_and_ends_with_the_code_that_says_so(
    folder, written, tmp_path, monkeypatch, ended
):
    monkeypatch.setattr("ragjax.teacher_cache.write._SMALLEST", 1)
    line = ("cache-teacher", folder / "tiny.py", tmp_path / "c", "--top-k", 40)
    with monkeypatch.context() as patch:
        patch.setattr("ragjax.caching.Interrupts", Stopping)
        code, told = ended(*line)
        assert (code, "go on with" in told.err.lower()) == (75, True)
    shards = sorted((tmp_path / "c").glob("shard-*"))
    assert len(shards) == 1
    before = shards[0].stat().st_mtime_ns
    main([str(word) for word in line])
    assert shards[0].stat().st_mtime_ns == before
    held = TeacherCache(written).windows
    for found, expected in zip(TeacherCache(tmp_path / "c")(held), TeacherCache(written)(held), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"teacher": Teacher()}, {}, r"teacher\.model must name the model to ask"),
        ({"distill": Distill(temperature=(1.0, 2.0))}, {}, r"temperature must be one number"),
        ({"distill": Distill(top_k=5)}, {}, r"distill\.top_k must be 0"),
        ({"distill": Distill(relations=1.0)}, {}, r"distill\.relations look inside"),
        ({"distill": Distill(reverse_kl=1.0)}, {"draws": 5}, r"forward_kl alone, found distill\.reverse_kl"),
        ({}, {"draws": 5, "top_k": 5}, "one of top_k and draws"),
        ({}, {"draws": 0}, "draws must be at least 1, found 0"),
        ({}, {"top_k": 258}, "top_k must not exceed the vocabulary's 257"),
        ({"data": Data(sequence_length=65)}, {}, "exceeds the teacher's 64 positions"),
    ],
)
def test_what_cannot_be_cached_is_refused(config, folder, tmp_path, change, options, said):
    change = dict(change)
    if "data" in change:
        length = change["data"].sequence_length
        change["data"] = dataclasses.replace(config.data, sequence_length=length)
    without = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, cache=None))
    with pytest.raises(InputError, match=said):
        cache_teacher(dataclasses.replace(without, **change), tmp_path / "c", console=silent(), **options)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": Teacher(cache="c")}, r"name it by teacher\.model"),
        ({"data": Data()}, r"set data\.fixed_cuts"),
        ({"distill": Distill(hidden_mse=1.0)}, r"distill\.hidden_mse look inside a running teacher"),
        ({"distill": Distill(top_k=5)}, r"distill\.top_k must be 0"),
        ({"distill": Distill(temperature=(1.0, 2.0))}, "of one temperature"),
        ({"distill": Distill(forward_kl=0.0)}, "found none with a weight"),
    ],
)
def test_a_config_that_no_cache_can_serve_is_refused_when_it_is_read(config, change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(config, **change)
