"""A quantized model goes everywhere a model goes, and its decoding loop reads the integers as they are."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Decoding, Mesh, Quantize
from ragjax.evaluation.perplexity import perplexity
from ragjax.generation import continuations
from ragjax.generation.continuation import generate_tokens
from ragjax.generation.decoding import Settings, decode, prefill
from ragjax.generation.model_slots import ModelSlots
from ragjax.generation.network import laid_out, unstack
from ragjax.kernels.machine import kernels_serve
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import made_whole
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.quantization import SCHEMES, Scheme, quantized
from ragjax.quantization.table import quantized_table
from ragjax.quantizing import quantize

PROMPTS = [[1, 2, 3, 4, 5], [40, 7]]


def test_logits_perplexity_and_texts_are_those_of_the_floats(small):
    floats, tokens = small.in_floats(), np.arange(40, dtype=np.int32)
    np.testing.assert_allclose(small(tokens[None]), floats(tokens[None]), atol=1e-5)
    ours, theirs = (
        perplexity(model, tokens, sequence_length=20, stride=20, batch_size=2).perplexity
        for model in (small, floats)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = (generate_tokens(model, PROMPTS, max_new_tokens=8) for model in (small, floats))
    assert [text.tolist() for text in ours] == [text.tolist() for text in theirs]


def test_inputs_of_8_bits_move_the_logits_a_little(tiny_model):
    model, tokens = quantize(tiny_model, Quantize(scheme="int8_activations")).model, np.arange(20)[None]
    floats = np.asarray(model.in_floats()(tokens))
    moved = np.abs(np.asarray(model(tokens)) - floats).max()
    assert 0 < moved < 0.05 * np.abs(floats).max()


@pytest.mark.parametrize("drafts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_quantized_model_drafts_and_is_drafted_for(small, tiny_model, drafts):
    model, draft = (tiny_model, small) if drafts else (small, tiny_model)
    options = Decoding(max_new_tokens=8, adapt_draft=False)
    alone, helped = (continuations(model, PROMPTS, options, draft=each) for each in (None, draft))
    assert [one.tokens.tolist() for one in helped] == [one.tokens.tolist() for one in alone]


@pytest.mark.slow
def test_requests_share_slots_of_a_quantized_model_whose_cache_has_8_bits(small):
    options = Decoding(max_new_tokens=6, stop_at_eos=False, cache_dtype="int8")
    slots = ModelSlots(small, count=2, room=32, cache_dtype="int8")
    for slot, prompt in enumerate(PROMPTS):
        slots.join(slot, prompt, options, row=slot)
    written = np.concatenate([slots.step(2).tokens for _ in range(6)], axis=1)
    for slot, prompt in enumerate(PROMPTS):
        [alone] = continuations(small, [prompt], options, rows=[slot])
        assert [token for token in written[slot].tolist() if token >= 0] == alone.tokens.tolist()


@pytest.mark.parametrize(
    "sizes",
    [{"data": 2, "fsdp": 2, "tensor": 2}, pytest.param({"data": 1, "tensor": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_codes_and_scales_lie_where_their_kernel_does_and_change_nothing(small, sizes):
    mesh = make_mesh(Mesh(**sizes), jax.devices()[: np.prod(list(sizes.values()))])
    alone, split = (generate_tokens(small, PROMPTS, max_new_tokens=8, mesh=each) for each in (None, mesh))
    assert [text.tolist() for text in split] == [text.tolist() for text in alone]
    placed = place(small.params, mesh)
    for name, axes in (("up", (None, "fsdp", "tensor")), ("down", (None, "tensor", "fsdp"))):
        kernel = placed["layers"]["mlp"][name]["kernel"]
        assert tuple(kernel.codes.sharding.spec) == axes
        whole = kernel.scale.shape[1] % mesh.shape[axes[1]] != 0
        assert tuple(kernel.scale.sharding.spec) == (None, None if whole else axes[1], axes[2])
    table = placed["embedding"]["tokens"]
    assert tuple(table.codes.sharding.spec) == ("tensor", "fsdp")
    assert tuple(table.scale.sharding.spec) == ("tensor",)


CONFIG = DecoderConfig(vocab_size=128, positions=64, width=1024, layers=2, heads=8, mlp_width=4096)
"""Whose matrices take 100 MB in float32."""


def decode_loop(scheme: Scheme, device=None, *, panels=False):
    """Bytes of the temporaries of a compiled decoding loop, and of the model's matrices in float32."""
    lay = laid_out if panels else lambda p, config: (p, unstack(p, config=config))

    def shapes():
        params = init_params(CONFIG, 0)
        for part in ("attention", "mlp"):
            for matrix in params["layers"][part].values():
                matrix["kernel"] = quantized(matrix["kernel"], scheme)
        params["embedding"]["tokens"] = quantized_table(params["embedding"]["tokens"])
        return params

    where = None if device is None else jax.sharding.SingleDeviceSharding(device)
    params = jax.eval_shape(shapes)
    settings = Settings(jnp.float32(0), jax.random.key(0), jnp.array([-1], jnp.int32))
    state = jax.eval_shape(
        lambda p: prefill(
            p, jnp.ones((1, 16), jnp.int32), jnp.zeros(1, jnp.int32), settings, config=CONFIG, room=16
        ),
        params,
    )
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        (*jax.eval_shape(lambda p: lay(p, config=CONFIG), params), state, jnp.int32(16), settings),
    )
    made = decode.lower(*given, config=CONFIG).compile()
    floats = jax.eval_shape(lambda p: made_whole(p)["layers"], params)
    matrices = sum(x.size * 4 for x in jax.tree.leaves(floats) if x.ndim == 3)
    return made.memory_analysis().temp_size_in_bytes, matrices


@pytest.mark.parametrize("name", ["int8", "int4", pytest.param("int8_activations", marks=pytest.mark.slow)])
def test_on_cpu_the_decoding_loop_holds_no_floats_of_the_matrices(name):
    temporaries, matrices = decode_loop(SCHEMES[name])
    # Tiles of a quarter of a megabyte, scales in float32, and what else a step takes; not the matrices.
    assert temporaries < 0.06 * matrices


@pytest.mark.skipif(not kernels_serve(), reason="needs llvmlite")
@pytest.mark.parametrize("name", SCHEMES)
def test_in_panels_it_holds_none_either(name):
    temporaries, matrices = decode_loop(SCHEMES[name], panels=True)
    assert temporaries < 0.02 * matrices


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'ragjax[tpu]' for libtpu")
@pytest.mark.parametrize("name", SCHEMES)
def test_on_a_tpu_the_decoding_loop_holds_no_floats_of_the_matrices(name):
    from ragjax.planning.chips import slice_named
    from ragjax.planning.tpu_compiler import devices

    temporaries, matrices = decode_loop(SCHEMES[name], devices(slice_named("v5e:2x2"))[0])
    assert temporaries < 0.06 * matrices
