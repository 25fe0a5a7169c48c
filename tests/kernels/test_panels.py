from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.kernels import machine, panels
from ragjax.kernels.machine import Vectors, has_halves, kernels_serve, vectors
from ragjax.kernels.panels import (
    in_group_panels,
    in_panels,
    multiply_groups,
    multiply_panels,
    out_of_group_panels,
    out_of_panels,
)
from ragjax.kernels.panels_text import panel_width

SHAPES = [(0, 7), (1, 1), (16, 20), (100, 333), (64, 2000), (768, 512)]


def factors(rows, inputs, outputs):
    rng = np.random.default_rng(rows)
    return (
        rng.standard_normal((rows, inputs)).astype(np.float32),
        rng.standard_normal((inputs, outputs)).astype(np.float32),
    )


def close(found, x, kernel):
    """Whether each value is as near to a product in float64 as a sum in float32 must be."""
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    bound = (x.shape[1] + 1) * 2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(kernel))
    return (np.abs(found - exact) <= bound).all()


def test_kernels_serve_here():
    assert kernels_serve()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_is_in_panels_as_it_was(shape):
    _, kernel = factors(1, *shape)
    laid = in_panels(kernel)
    assert laid.shape == (-(-shape[1] // laid.shape[2]), shape[0], panel_width(vectors()))
    np.testing.assert_array_equal(out_of_panels(laid, shape[1]), kernel)


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 21, 500])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_numpy_in_float64(rows, shape):
    x, kernel = factors(rows, *shape)
    found = np.asarray(jax.jit(multiply_panels, static_argnums=2)(x, in_panels(kernel), shape[1]))
    assert found.shape == (rows, shape[1])
    assert close(found, x, kernel)


@pytest.mark.parametrize("rows", [1, 8, 11])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_weights_of_8_bits_are_those_of_numpy(rows, shape):
    x, _ = factors(rows, *shape)
    codes = np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)
    laid = in_panels(codes)
    assert laid.dtype == jnp.int8
    np.testing.assert_array_equal(out_of_panels(laid, shape[1]), codes)
    assert close(np.asarray(multiply_panels(x, laid, shape[1])), x, codes.astype(np.float32))


def test_machine_code_is_given_nothing_it_would_misread():
    x, kernel = factors(3, 16, 70)
    laid = in_panels(kernel)
    multiply_panels(x, laid, 70)
    for other, outputs in ((x[:, :15], 70), (x.astype(np.float16), 70), (x, 170), (x, 1)):
        with pytest.raises(AssertionError):
            multiply_panels(other, laid, outputs)


def test_a_row_does_not_depend_on_the_others():
    x, kernel = factors(19, 100, 333)
    laid = in_panels(kernel)
    together = multiply_panels(x, laid, 333)
    for row in range(19):
        np.testing.assert_array_equal(multiply_panels(x[row : row + 1], laid, 333)[0], together[row])


def test_threads_that_share_many_products_leave_out_none():
    x, kernel = factors(3, 48, 4000)
    laid = in_panels(kernel)

    @jax.jit
    def often(x):
        # Each product overwrites what the one before has written.
        def turn(i, worst):
            found = multiply_panels(x * (i + 1), laid, 4000)
            return jnp.maximum(worst, jnp.abs(found / (i + 1) - expected).max())

        return jax.lax.fori_loop(0, 2000, turn, jnp.float32(0))

    expected = multiply_panels(x, laid, 4000)
    assert often(x) < 1e-5 * float(jnp.abs(expected).max())


@pytest.mark.parametrize("kind", [Vectors(4, 16), Vectors(4, 32), Vectors(8, 16)])
def test_other_processors_vectors(kind, monkeypatch):
    monkeypatch.setattr(panels, "vectors", lambda: kind)
    for rows in (1, 3, 4, 5, 11):
        x, kernel = factors(rows, 64, 203)
        codes = np.round(20 * kernel).astype(np.int8)
        assert in_panels(kernel).shape[2] == 2 * kind.lanes
        assert close(np.asarray(multiply_panels(x, in_panels(kernel), 203)), x, kernel)
        found = np.asarray(multiply_panels(x, in_panels(codes), 203))
        assert close(found, x, codes.astype(np.float32))
        if has_halves():
            packed, scale = grouped(64, 203)
            found = np.asarray(multiply_groups(x, in_group_panels(packed, scale), 203))
            np.testing.assert_allclose(found, x @ floats_of(packed, scale), atol=1e-4)


def grouped(inputs, outputs, half=8):
    rng = np.random.default_rng(3)
    scale = rng.uniform(0.1, 0.2, (inputs // (2 * half), outputs)).astype(np.float16)
    return rng.integers(0, 256, (inputs // 2, outputs)).astype(np.uint8), scale


def floats_of(packed, scale):
    """What bytes of two integers stand for, in plain NumPy."""
    signed = packed.astype(np.int64).reshape(len(scale), -1, packed.shape[1])
    halves = np.concatenate([signed & 15, signed >> 4], axis=1)
    return ((halves - 16 * (halves > 7)) * scale.astype(np.float64)[:, None]).reshape(-1, packed.shape[1])


@pytest.mark.skipif(not has_halves(), reason="needs F16C or NEON")
@pytest.mark.parametrize("rows", [1, 4, 11])
@pytest.mark.parametrize("half", [1, 4, 16])
def test_weights_of_4_bits_are_those_of_numpy(rows, half):
    packed, scale = grouped(96, 333, half)
    laid = in_group_panels(packed, scale)
    for found, expected in zip(out_of_group_panels(laid, 333), (packed, scale), strict=True):
        np.testing.assert_array_equal(found, expected)
    x, _ = factors(rows, 96, 1)
    found = np.asarray(multiply_groups(x, laid, 333))
    np.testing.assert_allclose(found, x @ floats_of(packed, scale), atol=1e-4)


def test_a_batch_is_mapped_over():
    x, kernel = factors(6, 16, 40)
    laid = in_panels(kernel)
    mapped = jax.vmap(partial(multiply_panels, outputs=40), (0, None))(x.reshape(3, 2, 16), laid)
    np.testing.assert_array_equal(mapped.reshape(6, -1), multiply_panels(x, laid, 40))


@pytest.mark.parametrize(
    ("header", "serves"),
    [
        ("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 4\n", True),
        ("#define XLA_FFI_API_MAJOR 0\n#define XLA_FFI_API_MINOR 6\n", False),
        ("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 3\n", False),
        ("", False),
        (None, False),
    ],
)
def test_only_known_interfaces_of_xla_are_spoken(header, serves, tmp_path, monkeypatch):
    if header is not None:
        folder = tmp_path / "xla" / "ffi" / "api"
        folder.mkdir(parents=True)
        (folder / "c_api.h").write_text(header)
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    monkeypatch.setattr(machine, "interface", machine.interface.__wrapped__)
    assert kernels_serve() is serves


@pytest.mark.parametrize(
    ("version", "serves"),
    [(None, False), ("0.43.0", False), ("0.45.1", True), ("0.100.0rc1", True), ("1.0", True)],
)
def test_panels_need_an_llvmlite_that_reads_the_text(version, serves, monkeypatch):
    def found(name):
        assert name == "llvmlite"
        if version is None:
            raise machine.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(machine.metadata, "version", found)
    assert kernels_serve() is serves


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx": True, "avx512f": True}, Vectors(16, 32)),
        ({"avx": True, "avx512f": False}, Vectors(8, 16)),
        ({"neon": True}, Vectors(4, 32)),
        ({}, Vectors(4, 16)),
    ],
)
def test_vectors_are_those_of_the_processor(features, expected, monkeypatch):
    monkeypatch.setattr(machine, "_features", lambda: features)
    assert machine.vectors.__wrapped__() == expected
