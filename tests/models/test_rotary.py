import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.models.decoder_config import Rotary, RotaryScaling
from ragjax.models.rotary import angles, frequencies, rotate

LLAMA3 = RotaryScaling("llama3", 8.0, 1.0, 4.0, 512)
SCALINGS = {
    "none": None,
    "linear": RotaryScaling("linear", 3.0),
    "dynamic": RotaryScaling("dynamic", 4.0),
    "llama3": LLAMA3,
    "llama3_odd": RotaryScaling("llama3", 5.0, 1.5, 6.0, 100),
}


def closed_form(base, width, scaling):
    """Radians a token in float64, pair by pair, from the published formulas."""
    made = []
    for pair in range(width // 2):
        frequency = base ** (-2 * pair / width)
        wave = 2 * math.pi / frequency
        if scaling is not None and scaling.kind == "linear":
            frequency /= scaling.factor
        elif scaling is not None and scaling.kind == "llama3":
            long, short = (
                scaling.original_positions / part
                for part in (scaling.low_frequency_factor, scaling.high_frequency_factor)
            )
            if wave > long:
                frequency /= scaling.factor
            elif wave >= short:
                smooth = scaling.original_positions / wave - scaling.low_frequency_factor
                smooth /= scaling.high_frequency_factor - scaling.low_frequency_factor
                frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        made.append(frequency)
    return np.array(made)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("base", "width"), [(1e4, 64), (5e5, 128), (7.0, 2), (1e6, 10)])
def test_frequencies_equal_the_closed_form(base, width, scaling):
    ours = frequencies(Rotary(base, None, scaling), width)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, closed_form(base, width, scaling), rtol=2e-6)


def test_llama3_leaves_short_waves_divides_long_ones_and_mixes_those_between():
    plain, scaled = (frequencies(Rotary(1e4, None, scaling), 64) for scaling in (None, LLAMA3))
    ratio = plain / scaled
    assert (ratio == 1).sum() > 5
    assert (ratio == 8).sum() > 5
    assert ((ratio > 1) & (ratio < 8)).sum() > 2


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3"])
def test_frequencies_equal_those_of_transformers(kind):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {"rope_type": kind, "rope_theta": 5e5, "factor": SCALINGS[kind].factor}
    if kind == "llama3":
        fields |= {
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
        }  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=fields)
    expected, factor = ROPE_INIT_FUNCTIONS[kind](config)
    ours = frequencies(Rotary(5e5, None, SCALINGS[kind]), 64)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=5e-7)
    assert factor == 1


def test_pairs_are_turned_by_position_times_frequency():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 60, 61, 300, 0]])
    ours = rotate(x, angles(positions, Rotary(100.0), 8))
    turn = np.exp(1j * np.asarray(positions)[..., None] * closed_form(100.0, 8, None))[:, :, None]
    as_complex = np.asarray(x[..., :4], np.float64) + 1j * np.asarray(x[..., 4:], np.float64)
    expected = as_complex * turn
    np.testing.assert_allclose(ours, np.concatenate([expected.real, expected.imag], -1), atol=1e-4)
    np.testing.assert_array_equal(ours[0, 0], x[0, 0])


def test_scores_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 16))

    def score(query_at, key_at):
        turned = (
            rotate(x, angles(jnp.array([[at]]), Rotary(), 16)) for x, at in ((query, query_at), (key, key_at))
        )
        return np.prod(list(turned), axis=0).sum(-1)

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert np.abs(score(9, 4) - score(9, 5)).max() > 1e-2


def test_values_beyond_the_width_are_left():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 10))
    by = angles(jnp.arange(4)[None], Rotary(width=6), 10)
    assert by.cosine.shape == (1, 4, 3)
    turned = rotate(x, by)
    np.testing.assert_array_equal(turned[..., 6:], x[..., 6:])
    np.testing.assert_allclose(
        turned[..., :6], rotate(x[..., :6], angles(jnp.arange(4)[None], Rotary(), 6)), atol=1e-6
    )
    assert jnp.abs(turned - x)[:, 1:, :, :6].min() > 0


def test_bfloat16_heads_are_turned_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 50, 2, 8), jnp.bfloat16)
    by = angles(1000 + jnp.arange(50)[None], Rotary(), 8)
    turned = rotate(x, by)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, rotate(x.astype(jnp.float32), by).astype(jnp.bfloat16))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("base", "factor"), [(1e4, None), (1e5, None), (5e5, None), (5e5, 8.0), (5e5, 32.0)])
def test_frequencies_of_real_models_are_those_of_torch_to_the_bit(base, width, factor):
    # What is off by one unit in the last place is off by a thousand of them at position 1,000.
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if factor is None:
        expected, scaling = 1 / base ** (torch.arange(0, width, 2).float() / width), None
    else:
        fields = {
            "rope_type": "llama3", "rope_theta": base, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        config = LlamaConfig(hidden_size=2 * width, num_attention_heads=2, rope_parameters=fields)
        expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
        scaling = RotaryScaling("llama3", factor)
    np.testing.assert_array_equal(frequencies(Rotary(base, None, scaling), width), expected.numpy())


def test_an_unknown_scaling_is_refused_at_once():
    with pytest.raises(InputError, match="kind must be one of linear, dynamic, llama3, found 'yarn'"):
        RotaryScaling("yarn", 4.0)
