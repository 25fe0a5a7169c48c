import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.attention import attend, causal_mask
from ragjax.models.decoder import Decoder, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.fused_attention import fused_attend, fused_serves
from ragjax.models.run import run_decoder

CONFIG = DecoderConfig(vocab_size=64, positions=64, width=128, layers=2, heads=2, mlp_width=64)
on_a_card = pytest.mark.skipif(jax.default_backend() != "gpu", reason="the kernel is of NVIDIA cards")


@pytest.mark.parametrize(("dtype", "width"), [(jnp.float32, 64), (jnp.bfloat16, 60), (jnp.bfloat16, 256)])
def test_types_and_widths_without_a_kernel_do_without_it(monkeypatch, dtype, width):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fused_serves(jnp.bfloat16, 64)
    assert not fused_serves(dtype, width)


def test_no_other_backend_takes_the_kernel(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not fused_serves(jnp.bfloat16, 64)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"windows": (0, 8)}, {}),
        ({"attention_dropout": 0.1}, {"deterministic": False}),
        ({}, {"packed": True}),
    ],
)
def test_windows_dropout_and_packed_documents_keep_their_masks(monkeypatch, changes, options):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = DecoderConfig(vocab_size=64, positions=64, width=128, layers=2, heads=2, mlp_width=64, **changes)
    plain = Decoder(CONFIG, jnp.bfloat16)
    network = Decoder(config, jnp.bfloat16, deterministic=options.get("deterministic", True))
    segments = jnp.zeros((1, 4), jnp.int32) if "packed" in options else None
    assert plain._fused(None)
    assert not network._fused(segments)


@on_a_card
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.125, 0.05])
def test_equals_attention_with_a_causal_mask(kv_heads, scale):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (2, 48, 4, 64), (2, 48, kv_heads, 64), (2, 48, kv_heads, 64)
    heads = [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=False)]
    weight = jax.random.normal(keys[3], shapes[0])
    order = jnp.arange(48)[None]

    def fused(*heads):
        out = fused_attend(*heads, scale=jnp.float32(scale)).astype(jnp.float32)
        return (out * weight).sum(), out

    def plain(*heads):
        out = attend(*(h.astype(jnp.float32) for h in heads), mask=causal_mask(order, order), scale=scale)
        return (out * weight).sum(), out

    def output_and_gradients(function):
        gradients, out = jax.jit(jax.grad(function, (0, 1, 2), has_aux=True))(*heads)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    for one, other in zip(output_and_gradients(fused), output_and_gradients(plain), strict=True):
        assert np.abs(one - other).max() < 0.02 * max(1.0, np.abs(other).max())


@on_a_card
def test_a_network_says_the_same_with_the_kernel_and_without():
    params = init_params(CONFIG, seed=0)
    tokens = jax.random.randint(jax.random.key(1), (2, 64), 0, 64)
    fused = run_decoder(CONFIG, params, tokens, dtype=jnp.bfloat16).hidden
    one_document = jnp.zeros_like(tokens)
    plain = run_decoder(CONFIG, params, tokens, dtype=jnp.bfloat16, segments=one_document).hidden
    np.testing.assert_allclose(np.asarray(fused, np.float32), np.asarray(plain, np.float32), atol=0.1)
