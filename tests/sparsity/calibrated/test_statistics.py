"""Statistics of a block's inputs: sums over all tokens, once for matrices that read the same."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ragjax.config import Mesh
from ragjax.models.blockwise import layer_of, one_layer, run_block
from ragjax.models.decoder_config import DecoderConfig, Rotary
from ragjax.parallel.hosts import global_array
from ragjax.parallel.mesh import make_mesh
from ragjax.sparsity.calibrated.statistics import gather, gather_and_run, nothing_yet, readers

GPT2 = DecoderConfig(
    vocab_size=50, positions=12, width=16, layers=2, heads=4, mlp_width=24, initializer_range=0.3
)
LLAMA = dataclasses.replace(
    GPT2, kv_heads=2, rotary=Rotary(), learned_positions=False, norm="rms", gated=True, activation="silu"
)
NAMES = (
    "attention/query/kernel", "attention/key/kernel", "attention/value/kernel", "attention/out/kernel",
    "mlp/up/kernel", "mlp/gate/kernel", "mlp/down/kernel",
)  # fmt: skip
ATTENTION = ("attention/key/kernel", "attention/query/kernel", "attention/value/kernel")


@pytest.fixture(scope="module")
def block_of(random_model):
    """Gives the second block of a random model."""
    return lambda config: (one_layer(random_model(config).params["layers"], 1), layer_of(config, 1))


def microbatches(config, count=3):
    return [
        np.random.default_rng(i).normal(size=(4, 12, config.width)).astype(np.float32) for i in range(count)
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            GPT2,
            {ATTENTION: 16, ("attention/out/kernel",): 16, ("mlp/up/kernel",): 16, ("mlp/down/kernel",): 24},
        ),
        (
            LLAMA,
            {
                ATTENTION: 16, ("attention/out/kernel",): 16, ("mlp/gate/kernel", "mlp/up/kernel"): 16,
                ("mlp/down/kernel",): 24,
            },
        ),
        (
            # Each has a norm of its own before it.
            dataclasses.replace(GPT2, residual="parallel"),
            {ATTENTION: 16, ("attention/out/kernel",): 16, ("mlp/up/kernel",): 16, ("mlp/down/kernel",): 24},
        ),
    ],
)  # fmt: skip
def test_matrices_that_read_the_same_are_one_group(config, expected, block_of):
    block, _ = block_of(config)
    assert readers(config, block, NAMES) == expected


def test_only_what_is_asked_for_is_watched(block_of):
    block, _ = block_of(GPT2)
    assert readers(GPT2, block, ("mlp/down/kernel", "attention/key/kernel")) == {
        ("mlp/down/kernel",): 24, ("attention/key/kernel",): 16,
    }  # fmt: skip


@pytest.mark.parametrize("with_gram", [False, True])
def test_sums_run_over_all_tokens_of_all_microbatches(with_gram, block_of):
    block, layer = block_of(LLAMA)
    sums = nothing_yet(readers(LLAMA, block, NAMES), with_gram=with_gram)
    for hidden in microbatches(LLAMA):
        sums = gather(sums, block, layer, hidden, config=LLAMA)
    for group, known in sums.items():
        seen = [run_block(LLAMA, block, layer, jnp.asarray(x)).inputs[group[-1]] for x in microbatches(LLAMA)]
        tokens = np.concatenate(seen, dtype=np.float64).reshape(3 * 4 * 12, -1)
        np.testing.assert_allclose(known.squares, (tokens**2).sum(0), rtol=1e-5)
        np.testing.assert_allclose(known.norms, np.linalg.norm(tokens, axis=0), rtol=1e-5)
        if with_gram:
            np.testing.assert_allclose(known.gram, tokens.T @ tokens, rtol=1e-4, atol=1e-4)
        else:
            assert known.gram is None
        assert known.sizes is None


def test_sizes_are_of_all_tokens_where_they_are_asked_for(block_of):
    block, layer = block_of(LLAMA)
    sums = nothing_yet(readers(LLAMA, block, NAMES), with_gram=False, with_sizes=True)
    for hidden in microbatches(LLAMA):
        sums = gather(sums, block, layer, hidden, config=LLAMA)
    for group, known in sums.items():
        seen = [run_block(LLAMA, block, layer, jnp.asarray(x)).inputs[group[-1]] for x in microbatches(LLAMA)]
        sizes = np.abs(np.concatenate(seen, dtype=np.float64)).reshape(3 * 4 * 12, -1)
        np.testing.assert_allclose(known.sizes.total, sizes.sum(0), rtol=1e-5)
        np.testing.assert_allclose(known.sizes.largest, sizes.max(0), rtol=1e-5)
        assert known.gram is None


def test_the_stream_may_be_had_with_the_sums(block_of):
    block, layer = block_of(GPT2)
    groups = readers(GPT2, block, NAMES)
    (hidden,) = microbatches(GPT2, 1)
    alone = gather(nothing_yet(groups, with_gram=False), block, layer, hidden, config=GPT2)
    sums, after = gather_and_run(nothing_yet(groups, with_gram=False), block, layer, hidden, config=GPT2)
    for group in groups:
        np.testing.assert_allclose(sums[group].squares, alone[group].squares, rtol=1e-6)
    np.testing.assert_allclose(after, run_block(GPT2, block, layer, jnp.asarray(hidden)).hidden, atol=1e-5)


@pytest.mark.filterwarnings("error:Some donated buffers")
def test_on_a_mesh_sums_are_those_of_one_device_and_grams_are_split_by_rows(block_of):
    block, layer = block_of(GPT2)
    groups = readers(GPT2, block, NAMES)
    alone = nothing_yet(groups, with_gram=True, with_sizes=True)
    for hidden in microbatches(GPT2):
        alone = gather(alone, block, layer, hidden, config=GPT2)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        sums = nothing_yet(groups, with_gram=True, with_sizes=True)
        before = gather._cache_size()
        for hidden in microbatches(GPT2):
            spread = global_array(hidden.shape, lambda rows, x=hidden: x[rows], mesh)
            sums = gather(sums, block, layer, spread, config=GPT2)
        assert gather._cache_size() == before + 1
    for group, known in sums.items():
        np.testing.assert_allclose(known.squares, alone[group].squares, rtol=1e-5)
        np.testing.assert_allclose(known.gram, alone[group].gram, rtol=1e-4, atol=1e-4)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), known.sizes, alone[group].sizes)
        assert all(each.sharding.is_fully_replicated for each in (known.squares, *known.sizes))
        assert known.gram.sharding.spec == PartitionSpec("tensor")
