"""What is read is what was written, or it is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ragjax.config import Distill, Mesh
from ragjax.data.batches import Batches
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.teacher_cache import TeacherCache, check_cache, teacher_digest, text_digest
from ragjax.teacher_cache.manifest import NAME, WINDOWS, file_sha256, shard_name
from ragjax.training.feed import batch_on_mesh

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.fixture(scope="module")
def made(making, kept):
    return making(kept("likeliest", 5, dtype="float16", temperature=1.0))


@pytest.fixture
def folder(made, tmp_path):
    made.write(tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize("kind", ["likeliest", "drawn"])
def test_the_rows_of_a_cache_are_what_was_asked(making, kept, kind, tmp_path):
    made = making(kept(kind, 5, dtype="float16", temperature=1.0))
    made.write(tmp_path)
    cache = TeacherCache(tmp_path)
    windows = np.array([35, 0, 17, 17, 8, 31, 2, 7])
    jax.tree.map(np.testing.assert_array_equal, cache(windows), jax.device_get(made.ask(windows)))
    empty = cache(windows[:0])
    assert type(empty) is type(cache(windows))
    assert [x.shape for x in empty] == [(0, 16, 5), (0, 16, 6 if kind == "likeliest" else 5)]


def test_a_host_reads_what_its_devices_hold_and_nothing_else(corpus, folder):
    read, cache = [], TeacherCache(folder)

    def known(window):
        read.append(len(window))
        return cache(window)

    batches = Batches(corpus=corpus, batch_size=16, sequence_length=16, seed=3, fixed_cuts=True, known=known)
    batch = batch_on_mesh(batches, 1, make_mesh(Mesh()), accumulate=2)
    assert set(read) == {0, 1}
    assert sum(read) == 16
    # Of the windows whose tokens they go with.
    whole = batches.batch(1)
    for found, expected in zip(jax.tree.leaves(batch), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(found).reshape(expected.shape), expected)
        assert found.addressable_shards[0].data.shape[:2] == (2, 1)


def test_a_shard_that_was_altered_is_refused_when_it_is_first_read(folder):
    file = folder / shard_name(2)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    cache = TeacherCache(folder)
    cache(np.arange(16))
    with pytest.raises(InputError, match=f"{shard_name(2)} was altered.*\n.*cache-teacher"):
        cache(np.arange(16, 17))


def test_a_shard_is_read_through_once(folder, monkeypatch):
    hashed = []

    def recorded(file):
        hashed.append(file.name)
        return file_sha256(file)

    monkeypatch.setattr("ragjax.teacher_cache.manifest.file_sha256", recorded)
    cache = TeacherCache(folder)
    for _ in range(2):
        cache(np.arange(12))
    assert hashed == [WINDOWS, shard_name(0), shard_name(1)]


@pytest.mark.parametrize("name", [shard_name(3), WINDOWS])
def test_a_file_that_is_cut_off_or_lost_is_refused_when_the_cache_is_opened(folder, name):
    file = folder / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} has {size - 1} bytes instead of {size}"):
        TeacherCache(folder)
    file.unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read: No such file"):
        TeacherCache(folder)


def test_a_manifest_that_was_altered_or_is_of_another_version_is_refused(folder):
    stored = json.loads((folder / NAME).read_text())
    stored["contents"]["rows_per_shard"] = 4
    (folder / NAME).write_text(json.dumps(stored))
    with pytest.raises(InputError, match="was altered"):
        TeacherCache(folder)
    (folder / NAME).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        TeacherCache(folder)
    (folder / NAME).unlink()
    with pytest.raises(InputError, match="A teacher's cache was expected"):
        TeacherCache(folder)


LEARNS = Distill(forward_kl=1.0, cross_entropy=0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"steps": 100}, None),
        ({"seed": 9}, None),
        ({"distill": dataclasses.replace(LEARNS, temperature=(1.0, 1.0), reverse_kl=0.5)}, None),
        ({"text": "f" * 64}, r"the text .*: \w{12} there, ffffffffffff now"),
        ({"teacher": "f" * 64}, r"the teacher .*: \w{12} there, ffffffffffff now"),
        ({"sequence_length": 8}, "data.sequence_length: 16 there, 8 now"),
        ({"isolate_documents": True}, "data.isolate_documents: False there, True now"),
        (
            {"distill": dataclasses.replace(LEARNS, temperature=2.0)},
            "distill.temperature: 1.0 there, 2.0 now",
        ),
        ({"text": "f" * 64, "teacher": "e" * 64}, "the text(.|\n)*the teacher"),
    ],
)
def test_a_cache_fits_its_own_text_teacher_and_losses_alone(made, corpus, folder, change, said):
    check = checking(TeacherCache(folder), made, corpus, **change)
    if said is None:
        check()
        return
    with pytest.raises(InputError, match=f"does not fit this training:\n(.|\n)*{said}"):
        check()


def checking(cache, made, corpus, **change):
    wanted = {
        "text": made.held.text, "teacher": made.held.teacher, "steps": 2, "distill": LEARNS, "seed": 3,
        "sequence_length": 16, "isolate_documents": False,
    } | change  # fmt: skip
    cuts = {name: wanted.pop(name) for name in ("seed", "sequence_length", "isolate_documents")}
    batches = Batches(corpus=corpus, batch_size=8, fixed_cuts=True, **cuts)
    return lambda: check_cache(cache, batches=batches, **wanted)


@pytest.mark.parametrize(
    ("change", "lacking"),
    [({}, None), ({"steps": 1}, None), ({"steps": 3}, "8 of the 24"), ({"seed": 9}, "of the 16")],
)
def test_a_cache_of_part_of_the_text_fits_what_reads_no_other_part(
    making, kept, corpus, tmp_path, change, lacking
):
    made = making(kept("likeliest", 5, dtype="float16", temperature=1.0), steps=2)
    made.write(tmp_path)
    check = checking(TeacherCache(tmp_path), made, corpus, **change)
    if lacking is None:
        check()
        return
    with pytest.raises(InputError, match=f"holds 16 of the text's 36 sequences, .*{lacking}"):
        check()


def test_draws_give_the_forward_kl_alone(making, kept, corpus, tmp_path):
    made = making(kept("drawn", 5, dtype="float16", temperature=1.0))
    made.write(tmp_path)
    checking(TeacherCache(tmp_path), made, corpus)()
    both = dataclasses.replace(LEARNS, reverse_kl=0.5)
    with pytest.raises(InputError, match=r"draws give forward_kl alone, found distill\.reverse_kl"):
        checking(TeacherCache(tmp_path), made, corpus, distill=both)()


def test_a_text_is_its_tokens_and_where_its_documents_start_if_that_matters(corpus):
    def digests(**change):
        changed = dataclasses.replace(corpus, **change)
        return [text_digest(changed, isolate_documents=isolate) for isolate in (False, True)]

    plain, isolated = digests()
    assert digests(tokens=corpus.tokens.astype(np.uint32)) == [plain, isolated]
    other = corpus.tokens.copy()
    other[-1] += 1
    assert not set(digests(tokens=other)) & {plain, isolated}
    moved = digests(starts=corpus.starts + (corpus.starts > 0))
    assert (moved[0], moved[1] != isolated) == (plain, True)


def test_a_teacher_is_its_parameters_and_its_config_wherever_they_lie(teacher):
    digest = teacher_digest(teacher)
    spread = place(teacher.params, make_mesh(Mesh(data=1, fsdp=4, tensor=2)))
    assert teacher_digest(dataclasses.replace(teacher, params=spread)) == digest
    for field in ({"norm_epsilon": 1e-6}, {"activation": "relu"}):
        other = dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, **field))
        assert teacher_digest(other) != digest
    params = jax.tree.map(np.array, teacher.params)
    params["layers"]["mlp"]["up"]["kernel"][2, 3, 4] += 1e-6
    assert teacher_digest(Model(teacher.config, params)) != digest
    assert teacher_digest(Model(teacher.config, init_params(teacher.config, 6))) != digest
