"""What is saved comes back bit for bit, or not at all."""

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ragjax.errors import InputError
from ragjax.training.checkpoints import Checkpoints

RUN = {"seed": 0, "train": {"learning_rate": 1e-3, "betas": (0.9, 0.95)}}


class State(NamedTuple):
    step: jax.Array
    params: dict
    opt_state: Any
    masks: dict


def make_state(seed: int) -> State:
    """Every type that occurs in a training: an Adam state, bfloat16, bool, int, scalars and None."""
    key = jax.random.key(seed)
    layers = {"kernel": jax.random.normal(key, (2, 8, 16)), "bias": jnp.full((2, 16), seed, jnp.bfloat16)}
    params = {"layers": layers, "embedding": jax.random.normal(key, (24, 8))}
    masks = {
        "layers": {"kernel": params["layers"]["kernel"] > 0, "bias": None},
        "embedding": None,
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), masks)


def template_of(state) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def opened(folder, *, keep=2, fingerprint=RUN, warn=warnings.warn) -> Checkpoints:
    return Checkpoints(folder, keep=keep, fingerprint=fingerprint, warn=warn)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with steps 1 and 2; tests work on copies."""
    folder = tmp_path_factory.mktemp("saved")
    with opened(folder) as checkpoints:
        checkpoints.save(1, make_state(1), loss=2.0)
        checkpoints.save(2, make_state(2), loss=1.0)
    return folder


@pytest.fixture
def copied(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_state_comes_back_bit_equal_with_its_tree(copied):
    with opened(copied) as checkpoints:
        step, state = checkpoints.restore(template_of(make_state(0)))
    assert step == 2
    assert_same(state, make_state(2))


def test_a_folder_without_checkpoints_restores_nothing(tmp_path):
    with opened(tmp_path / "new" / "folder") as checkpoints:
        assert checkpoints.restore(template_of(make_state(0))) is None


def test_a_state_donated_right_after_save_is_saved_as_it_was(tmp_path):
    grow = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = {"w": jnp.zeros(2_000_000)}
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        w = state.pop("w")
        for _ in range(20):
            w = grow(w)
        w.block_until_ready()
        _, restored = checkpoints.restore({"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)})
    assert not restored["w"].any()


def test_a_checkpoint_restores_onto_another_mesh(tmp_path):
    def mesh(*shape):
        devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
        return jax.sharding.Mesh(devices, ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    def laid_out(on):
        sharding = NamedSharding(on, PartitionSpec("a", "b"))
        return {"w": jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding)}

    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, laid_out(mesh(4, 2)))
        for other in (mesh(2, 4), mesh(1, 8), mesh(2, 1), mesh(1, 1)):
            expected = laid_out(other)
            _, state = checkpoints.restore(template_of(expected))
            assert_same(state, expected)
            assert state["w"].sharding == expected["w"].sharding


@pytest.mark.parametrize(
    ("keep", "losses", "left"),
    [
        (2, {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5}, [2, 4]),
        (2, {1: 3.0, 2: 2.0, 3: 1.0}, [2, 3]),
        (3, {1: 1.0, 2: None, 3: 2.0, 4: float("nan"), 5: 9.0}, [1, 3, 5]),
        (3, {1: None, 2: None, 3: None, 4: None}, [2, 3, 4]),
    ],
)
def test_the_latest_and_the_best_of_the_others_are_kept(tmp_path, keep, losses, left):
    state = {"w": jnp.ones(3)}
    with opened(tmp_path, keep=keep) as checkpoints:
        for step, loss in list(losses.items())[:-1]:
            checkpoints.save(step, state, loss=loss)
    # The losses of the steps before are known after a restart.
    with opened(tmp_path, keep=keep) as checkpoints:
        step, loss = list(losses.items())[-1]
        checkpoints.save(step, state, loss=loss)
        checkpoints.wait()
        assert sorted(checkpoints.losses) == left
    assert sorted(int(entry.name) for entry in tmp_path.iterdir() if entry.is_dir()) == left


def test_the_best_step_can_be_read(copied):
    with opened(copied) as checkpoints:
        best = min(checkpoints.losses, key=checkpoints.losses.get)
        step, state = checkpoints.restore(template_of(make_state(0)), step=1)
    assert (best, step) == (2, 1)
    assert_same(state, make_state(1))


def test_a_step_counts_only_once_its_manifest_is_there(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)})
        assert checkpoints.losses == {}
        checkpoints.wait()
        assert checkpoints.losses == {1: None}
        assert (tmp_path / "1" / "manifest.json").exists()


def test_a_step_saved_twice_stays_the_first(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)})
        checkpoints.save(1, {"w": jnp.zeros(3)})
        _, state = checkpoints.restore(template_of({"w": jnp.ones(3)}))
    assert state["w"].all()


def test_one_flipped_bit_in_any_file_makes_the_run_walk_back(saved, tmp_path):
    names = [file.relative_to(saved / "2") for file in files_of(saved / "2")]
    assert len(names) > 5
    for index, name in enumerate(names):
        folder = shutil.copytree(saved, tmp_path / str(index))
        flip(folder / "2" / name)
        told = []
        with opened(folder, warn=told.append) as checkpoints:
            step, state = checkpoints.restore(template_of(make_state(0)))
            assert step == 1, name
            assert_same(state, make_state(1))
            assert len(told) == 1
            assert "step 2" in told[0]
            assert name.name in told[0]
            # The number is free again.
            checkpoints.save(2, make_state(3))
            step, state = checkpoints.restore(template_of(make_state(0)))
        assert step == 2
        assert_same(state, make_state(3))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: os.truncate(file, 10), "_METADATA has 10 bytes instead of "),
        (lambda file: file.unlink(), "_METADATA is missing"),
        (lambda file: (file.parents[1] / "manifest.json").unlink(), "cut off"),
    ],
    ids=["truncated", "missing", "without manifest"],
)
def test_a_step_that_lost_something_makes_the_run_walk_back(copied, damage, words):
    damage(copied / "2" / "default" / "_METADATA")
    told = []
    with opened(copied, warn=told.append) as checkpoints:
        assert checkpoints.restore(template_of(make_state(0)))[0] == 1
    assert len(told) == 1
    assert words in told[0]
    assert (copied / "2.unsound").is_dir()


def test_without_any_sound_step_the_run_stops_and_touches_nothing(copied):
    for step in ("1", "2"):
        flip(copied / step / "default" / "_METADATA")
    before = files_of(copied)
    for _ in range(2):
        with (
            opened(copied) as checkpoints,
            pytest.raises(InputError, match=r"(?s)step 2: default/_METADATA .*step 1"),
        ):
            checkpoints.restore(template_of(make_state(0)))
    assert files_of(copied) == before


def test_what_is_no_step_is_ignored_and_what_a_crash_left_is_cleared(copied):
    (copied / "7").mkdir()
    (copied / "9.orbax-checkpoint-tmp").mkdir()
    (copied / "9.orbax-checkpoint-tmp" / "half").write_text("x")
    (copied / "notes").mkdir()
    (copied / "12").write_text("a file")
    with opened(copied, warn=pytest.fail) as checkpoints:
        assert checkpoints.restore(template_of(make_state(0)))[0] == 2
        checkpoints.save(7, make_state(7))
    assert {entry.name for entry in copied.iterdir()} == {".lock", "2", "7", "12", "notes"}


def test_other_arrays_than_saved_are_refused_by_name(copied):
    state = make_state(0)
    layers = dict(state.params["layers"], bias=state.params["layers"]["bias"].astype(jnp.float32))
    params = {"layers": layers, "embedding": jnp.zeros((25, 8)), "head": jnp.zeros(3)}
    other = state._replace(params=params, masks=None)
    with opened(copied) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore(template_of(other))
    for line in (
        "params/layers/bias: expected float32[2,16], found bfloat16[2,16]",
        "params/embedding: expected float32[25,8], found float32[24,8]",
        "params/head: expected float32[3], found nothing",
        "masks/layers/kernel: expected nothing, found bool[2,8,16]",
    ):
        assert line in str(error.value)
    assert str(error.value).count("expected") == 4


def test_another_run_is_refused_with_the_fields_that_differ(copied):
    other = {"seed": 0, "train": {"learning_rate": 3e-4, "betas": (0.9, 0.95)}, "stage": "student"}
    with opened(copied, fingerprint=other) as checkpoints, pytest.raises(InputError) as error:
        checkpoints.restore(template_of(make_state(0)))
    assert "train.learning_rate: 0.001 there, 0.0003 now" in str(error.value)
    assert "stage: None there, 'student' now" in str(error.value)
    assert "seed" not in str(error.value)
    assert "betas" not in str(error.value)
    assert "--workdir" in str(error.value)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with opened(tmp_path) as checkpoints, pytest.raises(ValueError, match="a/b"):
        checkpoints.save(1, {"a": {"b": jnp.ones(2)}, "a/b": jnp.zeros(2)})


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path):
    with opened(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"):
        opened(tmp_path)
    opened(tmp_path).close()


# Orbax's writers that were still at work complain to an event loop that the failure has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_and_leaves_the_step_before(copied):
    big = make_state(3)._replace(params=jax.random.normal(jax.random.key(0), (1_000_000,)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(copied) as checkpoints:
        # Writing past a limit on the size of files fails like writing to a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            checkpoints.save(3, big)
            with pytest.raises(
                OSError, match=r"(?s)step 3 could not be written.*step 2 is untouched.*large"
            ) as error:
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert error.value.__cause__ is not None
        assert {entry.name for entry in copied.iterdir()} == {".lock", "1", "2"}
        assert checkpoints.restore(template_of(make_state(0)))[0] == 2
        checkpoints.save(3, big)
        assert checkpoints.restore(template_of(big))[0] == 3


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from ragjax.training.checkpoints import Checkpoints

def train(told):
    start = {"w": jnp.zeros(200_000), "step": jnp.int32(0)}
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), start)
    checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, fingerprint={}, warn=lambda _: None)
    step, state = checkpoints.restore(template) or (0, start)
    sound = int(state["step"]) == step and bool((state["w"] == step).all())
    os.write(told, f"{step if sound else 'bad'}\\n".encode())
    while True:
        step += 1
        state = {"w": state["w"] + 1, "step": state["step"] + 1}
        checkpoints.save(step, state)

# Imported once, and forked before JAX starts a backend.
random.seed(0)
for _ in range(6):
    read, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            train(told)
        finally:
            os._exit(1)
    os.close(told)
    print(os.read(read, 100).decode().strip(), flush=True)
    time.sleep(random.uniform(0.1, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_run_killed_at_any_time_goes_on_from_a_complete_step(tmp_path, own_process):
    told = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True,
        env={**own_process, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    steps = [int(line) for line in told.stdout.split()]
    assert len(steps) == 6
    assert steps == sorted(steps)
    assert steps[0] == 0 < steps[-1]


def test_the_manifest_tells_what_was_saved(saved):
    contents = json.loads((saved / "2" / "manifest.json").read_text())["contents"]
    assert contents["loss"] == 1.0
    assert contents["leaves"]["params/layers/bias"] == "bfloat16[2,16]"
    assert contents["fingerprint"]["train"]["learning_rate"] == 1e-3
    listed = {saved / "2" / name for name in contents["files"]}
    assert listed == set(files_of(saved / "2")) - {saved / "2" / "manifest.json"}
