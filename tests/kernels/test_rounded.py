import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import machine, rounded
from ragjax.kernels.activations_text import ACTIVATIONS as IN_KERNELS
from ragjax.kernels.norm import RowNorm, norm
from ragjax.kernels.rounded import (
    activation_serves,
    for_all_columns,
    in_quads,
    multiply_rounded,
    out_of_quads,
    quads_serve,
    rounding_serves,
)
from ragjax.models.activations import ACTIVATIONS

needs_quads = pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
SHAPES = [(1, 1), (16, 20), (24, 33), (100, 333), (64, 2000), (3072, 70)]


def factors(rows, inputs, outputs):
    """Rows, integers of 8 bits, and a scale of each column."""
    rng = np.random.default_rng(rows)
    return (
        rng.standard_normal((rows, inputs)).astype(np.float32),
        rng.integers(-127, 128, (inputs, outputs)).astype(np.int8),
        rng.uniform(0.01, 0.02, outputs).astype(np.float16),
    )


def multiply(x, codes, scale, bits):
    return np.asarray(multiply_rounded(x, *laid(codes, scale), bits=bits))


def laid(codes, scale):
    """What the product takes besides the rows."""
    sums = for_all_columns(codes.sum(0, dtype=np.int32))
    return in_quads(codes), sums, for_all_columns(scale), len(scale)


def plainly(x, codes, scale, bits):
    """The same in plain NumPy: integers as they are, floats in 64 bits from there on."""
    unit = np.abs(x).max(-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    integers = np.rint(x / np.where(unit == 0, np.float32(1), unit)).astype(np.int64)
    return (integers @ codes.astype(np.int64)) * unit.astype(np.float64) * scale.astype(np.float64)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rows", [1, 4, 5, 8, 9, 21])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_the_integers(rows, shape, bits):
    given = factors(rows, *shape)
    found, expected = multiply(*given, bits), plainly(*given, bits)
    assert found.shape == expected.shape
    x, codes, scale = given
    # Each operation rounds; in 16 bits the sum of two halves may be smaller than either.
    bound = 4 * 2.0**-24 * (np.abs(expected) + (bits == 16) * plainly(np.abs(x), np.abs(codes), scale, bits))
    np.testing.assert_array_less(np.abs(found - expected), 1e-37 + bound)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", ["gelu_new", "relu"])
@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("shape", [(16, 20), (24, 33), (64, 96)])
def test_a_product_may_end_in_an_activation(shape, rows, name, bits):
    x, codes, scale = factors(rows, *shape)
    bias = np.random.default_rng(1).standard_normal(len(scale)).astype(np.float32)
    product = multiply(x, codes, scale, bits)
    found = multiply_rounded(
        x, *laid(codes, scale), bits=bits, bias=for_all_columns(bias), activation=name
    )  # fmt: skip
    np.testing.assert_allclose(found, ACTIVATIONS[name]((product + bias).astype(np.float64)), atol=2e-6)


@needs_quads
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("rows", [1, 4, 9, 33])
def test_a_product_may_begin_in_a_norm_to_the_bit(rows, bits, adds, centred):
    x, codes, scale = factors(rows, 96, 70)
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((2, 96)).astype(np.float32)
    ends = {"bias": for_all_columns(rng.standard_normal(70).astype(np.float32)), "activation": "gelu_new"}
    if adds:
        ends["added"] = rng.standard_normal((rows, 70)).astype(np.float32)
    how = RowNorm(weight, bias if centred else None, 0.01)
    given = laid(codes, scale)
    found = multiply_rounded(x, *given, bits=bits, norm=how, **ends)
    np.testing.assert_array_equal(found, multiply_rounded(norm(x, how), *given, bits=bits, **ends))
    plain = multiply_rounded(x, *given, bits=bits, norm=how)
    np.testing.assert_array_equal(plain, multiply_rounded(norm(x, how), *given, bits=bits))


@needs_quads
@pytest.mark.parametrize("name", ["gelu_new", "relu"])
def test_activations_are_those_of_models_everywhere(name):
    x = np.concatenate([[0.0], np.geomspace(1e-30, 1e4, 400), [3e38]])
    x = np.concatenate([-x, x, [np.inf, -np.inf, np.nan]]).astype(np.float32)
    # A column each: nothing but the bias.
    given = np.zeros((1, 16), np.float32), np.zeros((16, len(x)), np.int8), np.ones(len(x), np.float16)
    found = multiply_rounded(
        given[0], *laid(*given[1:]), bits=16, bias=for_all_columns(x), activation=name
    )[0]  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        wide = x.astype(np.float64)
        inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
        expected = wide * (1 / (1 + np.exp(-2 * inner))) if name == "gelu_new" else np.maximum(wide, 0)
    expected = expected.astype(np.float32)
    # Rounding the exponent counts the more, the larger it is.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)
    usual = np.abs(x) < 4
    np.testing.assert_allclose(found[usual], expected[usual], rtol=1e-6)


def test_what_serves_is_an_activation_of_models():
    assert activation_serves("gelu_new")
    assert not activation_serves("gelu")
    assert not activation_serves("silu")
    assert set(IN_KERNELS) <= set(ACTIVATIONS)


@needs_quads
@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_is_in_quads_as_it_was(shape):
    _, codes, _ = factors(1, *shape)
    laid = in_quads(codes)
    assert laid.shape == (-(-shape[1] // 32), 4 * -(-shape[0] // 16), 32, 4)
    np.testing.assert_array_equal(out_of_quads(laid, *shape), codes)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
def test_halfway_between_integers_goes_to_the_even_one(bits):
    most = 2 ** (bits - 1) - 1
    x = np.array([[most, 0.5, 1.5, 2.5, -0.5, -1.5, -most, most - 0.5]], np.float32)
    found = multiply(x, np.eye(8, dtype=np.int8), np.ones(8, np.float16), bits)
    np.testing.assert_array_equal(found, [[most, 0, 2, 2, 0, -2, -most, most - 1]])


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
def test_quotients_are_rounded_as_a_division_rounds_them(bits):
    most = 2 ** (bits - 1) - 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 16)).astype(np.float32)
    units = np.abs(x).max(-1, keepdims=True) / np.float32(most)
    # Next to the middle between two integers, on either side.
    middles = ((rng.integers(0, most - 1, x.shape) + np.float32(0.5)) * units).astype(np.float32)
    near = np.nextafter(middles, np.where(rng.random(x.shape) < 0.5, 0, np.inf).astype(np.float32))
    x = np.where(np.abs(x) == np.abs(x).max(-1, keepdims=True), x, np.where(x > 1, x, near))
    found = multiply(x, np.eye(16, dtype=np.int8), np.ones(16, np.float16), bits)
    np.testing.assert_array_equal(np.rint(found / units), np.rint(x / units))


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
def test_a_row_of_nothing_is_nothing_and_the_others_stay(bits):
    x, codes, scale = factors(6, 64, 40)
    x[2] = 0
    found = multiply(x, codes, scale, bits)
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_allclose(found, plainly(x, codes, scale, bits), rtol=1e-5, atol=1e-4)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
def test_rows_are_rounded_however_small_they_are_until_a_unit_has_no_inverse(bits):
    x, codes, scale = factors(6, 64, 40)
    for size in (1e-20, 1e-30, 1e30):
        small = x * np.float32(size)
        np.testing.assert_allclose(
            multiply(small, codes, scale, bits) / size, plainly(x, codes, scale, bits), rtol=1e-4, atol=2e-3
        )
    np.testing.assert_array_equal(multiply(x * np.float32(1e-39), codes, scale, bits), 0)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_what_is_no_number_shows_in_its_row_alone(value, place, bits):
    x, codes, scale = factors(6, 64, 40)
    clean = multiply(x, codes, scale, bits)
    x[3, place] = value
    found = multiply(x, codes, scale, bits)
    assert not np.isfinite(found[3]).any()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
def test_a_row_does_not_depend_on_the_others(bits):
    x, codes, scale = factors(19, 100, 333)
    together = multiply(x, codes, scale, bits)
    for row in range(19):
        np.testing.assert_array_equal(multiply(x[row : row + 1], codes, scale, bits)[0], together[row])


@needs_quads
def test_threads_that_share_many_products_leave_out_none():
    x, codes, scale = factors(5, 48, 4000)
    quads, sums, scale, outputs = laid(codes, scale)

    @jax.jit
    def often(x):
        # Each product overwrites what the one before has written; doubling changes no integer.
        def turn(i, worst):
            factor = jnp.exp2(i % 8)
            found = multiply_rounded(x * factor, quads, sums, scale, outputs, bits=16)
            return jnp.maximum(worst, jnp.abs(found / factor - expected).max())

        return jax.lax.fori_loop(0, 2000, turn, jnp.float32(0))

    expected = multiply_rounded(x, quads, sums, scale, outputs, bits=16)
    assert often(x) == 0


@needs_quads
def test_a_batch_is_mapped_over_and_no_row_is_no_call():
    x, codes, scale = factors(6, 16, 40)
    given = laid(codes, scale)

    def product(x):
        return multiply_rounded(x, *given, bits=8)

    np.testing.assert_array_equal(jax.vmap(product)(x.reshape(3, 2, 16)).reshape(6, -1), product(x))
    assert product(x[:0]).shape == (0, 40)


@needs_quads
def test_machine_code_is_given_nothing_it_would_misread():
    x, codes, scale = factors(3, 48, 70)
    quads, sums, scale, _ = laid(codes, scale)
    multiply_rounded(x, quads, sums, scale, 70, bits=16)
    for other in (
        (x[:, :32], quads, sums, scale, 70),
        (np.pad(x, ((0, 0), (0, 1))), quads, sums, scale, 70),
        (x.astype(np.float16), quads, sums, scale, 70),
        (x, quads.astype(np.uint8), sums, scale, 70),
        (x, quads, sums.astype(np.float32), scale, 70),
        (x, quads, sums, scale.astype(np.float32), 70),
        (x, quads, sums, scale[:70], 70),
        (x, quads, sums[:70], scale[:70], 70),
        (x, quads, sums, scale, 64),
        (x, quads, sums, scale, 97),
        # Steps that are not rounded together, half panels, and inputs apart.
        (x[:, :44], quads[:, :11], sums, scale, 70),
        (x, quads[:, :, :16], sums[:48], scale[:48], 40),
        (x, quads[..., :1], sums, scale, 70),
    ):
        with pytest.raises(AssertionError):
            multiply_rounded(*other, bits=16)
    bias = np.zeros(96, np.float32)
    multiply_rounded(x, quads, sums, scale, 70, bits=16, bias=bias, activation="relu")
    for other in (
        {"bias": bias},
        {"activation": "relu"},
        {"bias": bias[:70], "activation": "relu"},
        {"bias": bias.astype(np.int32), "activation": "relu"},
    ):
        with pytest.raises(AssertionError):
            multiply_rounded(x, quads, sums, scale, 70, bits=16, **other)
    one = np.ones(48, np.float32)
    multiply_rounded(x, quads, sums, scale, 70, bits=16, norm=RowNorm(one, one, 0.1))
    for other in ((one[:32], one), (one, one[:32]), (one.astype(int), None)):
        with pytest.raises(AssertionError):
            multiply_rounded(x, quads, sums, scale, 70, bits=16, norm=RowNorm(*other, 0.1))
    with pytest.raises(AssertionError):
        multiply_rounded(x[:, :44], quads, sums, scale, 70, bits=16, norm=RowNorm(one[:44], None, 0.1))


@needs_quads
def test_machine_code_multiplies_where_the_processor_does(monkeypatch):
    x, codes, scale = factors(3, 48, 70)
    given = laid(codes, scale)
    monkeypatch.setattr(rounded, "has_dot_product", lambda: False)
    with pytest.raises(AssertionError):
        multiply_rounded(x, *given, bits=16)


@needs_quads
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("code", [127, -128])
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_the_largest_sums_there_are_neither_saturate_nor_overflow(value, code, bits):
    inputs = 65_793
    assert rounding_serves(inputs)
    assert not rounding_serves(inputs + 1)
    codes, x = np.full((inputs, 33), code, np.int8), np.full((5, inputs), value, np.float32)
    found = multiply(x, codes, np.ones(33, np.float16), bits)
    np.testing.assert_allclose(found, value * code * inputs, rtol=1e-6)


@pytest.mark.parametrize(
    ("features", "serves"),
    [
        ({"avx512f": True, "avx512vnni": True}, True),
        ({"avx512f": True, "avx512vnni": False}, False),
        ({"avx": True, "avxvnni": True}, False),
    ],
)
def test_quads_need_the_instruction_for_them(features, serves, monkeypatch):
    monkeypatch.setattr(machine, "_features", lambda: features)
    monkeypatch.setattr(machine, "vectors", machine.vectors.__wrapped__)
    monkeypatch.setattr(rounded, "has_dot_product", machine.has_dot_product.__wrapped__)
    assert quads_serve() is serves
