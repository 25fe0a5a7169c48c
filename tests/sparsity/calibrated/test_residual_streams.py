"""Where residual streams are between blocks, and that pruning does not see it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import BATCH_AXES, make_mesh
from ragjax.sparsity.calibrated import residual_streams
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.calibrated.methods import How
from ragjax.sparsity.calibrated.residual_streams import embedded
from ragjax.sparsity.calibrated.stream import dense_norms, prune_blocks

CONFIG = DecoderConfig(vocab_size=50, layers=3, positions=12, width=28, heads=4, mlp_width=41)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 4, 12))
BYTES = TOKENS.size * 28 * 4
KERNELS = ("layers/attention/value/kernel", "layers/mlp/up/kernel", "layers/mlp/down/kernel")
SPLIT = Mesh(data=2, fsdp=2, tensor=2)


class Device:
    """One that tells what of its memory is free."""

    def __init__(self, told):
        self.memory_stats = lambda: told


def with_room(monkeypatch, free):
    """As on devices that are not the host, and have so many bytes free."""
    monkeypatch.setattr(residual_streams, "_free_bytes", lambda device: free)
    monkeypatch.setattr(residual_streams, "_are_here", lambda calibration: False)


@pytest.mark.parametrize("told", [None, {}, {"bytes_in_use": 7}])
def test_a_device_that_tells_no_limit_has_no_room(told):
    assert residual_streams._free_bytes(Device(told)) <= 0


def test_what_is_free_is_the_limit_less_what_is_in_use():
    assert residual_streams._free_bytes(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70


@pytest.mark.parametrize(("mesh", "kind"), [(None, jax.Array), (SPLIT, np.ndarray)])
def test_streams_stay_on_the_host_itself_and_wait_for_what_only_looks_like_several(mesh, kind, random_model):
    params = random_model(CONFIG).params
    streams = embedded(CONFIG, params, Calibration(TOKENS, mesh and make_mesh(mesh)))
    assert all(isinstance(x, kind) for x in streams)


@pytest.mark.parametrize(("mesh", "parts"), [(None, 1), (SPLIT, 4)])
def test_streams_stay_on_devices_that_have_room_for_four_times_their_share(
    mesh, parts, random_model, monkeypatch
):
    params = random_model(CONFIG).params
    split = mesh and make_mesh(mesh)
    calibration = Calibration(TOKENS, split)
    with_room(monkeypatch, 4 * BYTES // parts - 1)
    waiting = embedded(CONFIG, params, calibration)
    with_room(monkeypatch, 4 * BYTES // parts)
    staying = embedded(CONFIG, params, calibration)
    assert all(isinstance(x, np.ndarray) for x in waiting)
    for there, here in zip(staying, waiting, strict=True):
        assert isinstance(there, jax.Array)
        assert split is None or there.sharding.spec[0] == BATCH_AXES
        np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("mesh", [None, SPLIT])
def test_streams_that_stay_prune_to_the_bit_what_those_that_wait_do(mesh, method, random_model, monkeypatch):
    params = random_model(CONFIG).params
    calibration = Calibration(TOKENS, mesh and make_mesh(mesh))
    half = {name: np.full(3, 0.5) for name in KERNELS}
    results, fetched = [], []

    def fetch(leaf):
        fetched.append(leaf.shape)
        return to_host(leaf)

    to_host = residual_streams.to_host
    monkeypatch.setattr(residual_streams, "to_host", fetch)
    for free in (0, 1 << 30):
        with_room(monkeypatch, free)
        fetched.clear()
        results.append(prune_blocks(CONFIG, params, calibration, half, method=method, how=How("row")))
        # The embedding, two blocks, and of the last block the microbatch whose error is measured.
        assert len(fetched) == (0 if free else 3 * len(TOKENS) + 1)
    jax.tree.map(np.testing.assert_array_equal, results[0][0], results[1][0])
    assert [each.error for each in results[0][1]] == [each.error for each in results[1][1]]


def test_norms_are_those_of_streams_that_wait(random_model, monkeypatch):
    params = random_model(CONFIG).params
    with_room(monkeypatch, 0)
    waiting = dense_norms(CONFIG, params, KERNELS, Calibration(TOKENS))
    with_room(monkeypatch, 1 << 30)
    staying = dense_norms(CONFIG, params, KERNELS, Calibration(TOKENS))
    for name in KERNELS:
        np.testing.assert_array_equal(staying[name], waiting[name])


@pytest.mark.parametrize(("others", "stays"), [(4 * BYTES, True), (BYTES // 8, False)])
def test_streams_stay_on_all_hosts_or_on_none(others, stays, monkeypatch):
    def gathered(room):
        return np.stack([room, np.float32(others / 4)])

    with_room(monkeypatch, 4 * BYTES)
    monkeypatch.setattr(residual_streams.multihost_utils, "process_allgather", gathered)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert residual_streams._have_room(28, Calibration(TOKENS, make_mesh(SPLIT))) is stays
    # Who prunes alone asks nobody.
    monkeypatch.setattr(residual_streams.multihost_utils, "process_allgather", None)
    assert residual_streams._have_room(28, Calibration(TOKENS))
