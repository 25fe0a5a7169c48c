"""Inputs times small integers: what is read of memory is the integers, never a float copy of them all.

Scales are applied to partial sums, one for each group. XLA for TPUs makes floats of the integers on their way
into the matrix unit. Its CPU backend fuses nothing into a product, and moves whatever does not change out of
a loop: before the first token it would make floats of all matrices, and keep them. (A barrier does not
hinder it, nor do integers on both sides, which it widens to 32 bits.) So there the integers are taken in
tiles that are cut out in a loop of their own, whose floats fit into a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Int8, Int32, UInt8

from ragjax.quantization.packing import nibbles
from ragjax.quantization.scheme import Scheme

_TILE = 1 << 18
"""Bytes of the floats of one tile, about."""
_MANY_ROWS = 32
"""From so many rows on the floats of half a matrix cost less than adding up many products."""


def multiply(
    x: Float[Array, "... in"],
    codes: Int8[Array, "in out"] | UInt8[Array, "bytes out"],
    scale: Float16[Array, "groups out"],
    zero: Int8[Array, "groups out"] | None,
    scheme: Scheme,
) -> Float[Array, "... out"]:
    """`x @ from_codes(codes)` in float32.

    Args:
      x: inputs; floats are made of the integers in their type.
      codes: integers, those of 4 bits packed.
      scale: of each group and output.
      zero: the integer that stands for 0; none: 0.
      scheme: bits, and whether the inputs are rounded as well.
    """
    rows = x.reshape(-1, x.shape[-1])
    if scheme.activations:
        integers, step = rounded_inputs(rows)
        sums = _by_platform(_of_integers, _of_integers, _grouped(integers, codes, scale, zero))
        made = sums * step * scale.astype(jnp.float32)
    else:
        made = _by_platform(_by_floats, _fewest_bytes, _grouped(rows, codes, scale, zero))
    return made.reshape(*x.shape[:-1], -1)


def _by_platform(tile: _Product, product: _Product, given: _Grouped) -> Array:
    """`product` of all that is given; on CPU the sum of `tile` of some inputs at a time."""
    if jax.sharding.get_abstract_mesh().empty:
        return jax.lax.platform_dependent(given, cpu=partial(_in_tiles, tile), default=product)
    # Tiles of what is split over devices would be gathered.
    return product(given)


def rounded_inputs(x: Float[Array, "rows in"]) -> tuple[Int8[Array, "rows in"], Float[Array, "rows 1"]]:
    """Inputs as integers of 8 bits, and what they are multiples of: for each token its largest over 127."""
    step = jnp.abs(x).max(-1, keepdims=True).astype(jnp.float32) / 127
    return jnp.round(x / jnp.where(step == 0, 1, step)).astype(jnp.int8), step


class _Grouped(NamedTuple):
    """What is multiplied, by groups of inputs; where a byte holds two integers, their inputs are apart."""

    x: Float[Array, "parts rows groups n"]
    codes: Int8[Array, "groups n out"] | UInt8[Array, "groups n out"]
    scale: Float[Array, "groups out"]
    zero: Float[Array, "groups out"] | None

    def parts(self) -> tuple[Int8[Array, "groups n out"], ...]:
        """The integers for each part of the inputs."""
        return nibbles(self.codes) if self.codes.dtype == jnp.uint8 else (self.codes,)


_Product = Callable[[_Grouped], Array]


def _grouped(x, codes, scale, zero) -> _Grouped:
    groups, per_byte = scale.shape[0], 2 if codes.dtype == jnp.uint8 else 1
    return _Grouped(
        x.reshape(x.shape[0], groups, per_byte, -1).transpose(2, 0, 1, 3),
        codes.reshape(groups, -1, codes.shape[-1]),
        scale.astype(jnp.float32),
        None if zero is None else zero.astype(jnp.float32),
    )


def _fewest_bytes(given: _Grouped) -> Float[Array, "rows out"]:
    """Partial sums of each group, or the floats of the matrix, whichever are fewer."""
    parts, rows, groups, each = given.x.shape
    return _by_group(given) if rows <= parts * each or groups == 1 else _by_floats(given)


def _by_group(given: _Grouped) -> Float[Array, "rows out"]:
    products = (
        jnp.einsum("rgn,gno->rgo", x, codes.astype(x.dtype), preferred_element_type=jnp.float32)
        for x, codes in zip(given.x, given.parts(), strict=True)
    )
    sums = reduce(jnp.add, products)
    if given.zero is not None:
        inputs = given.x.astype(jnp.float32).sum((0, -1))
        sums = sums - inputs[..., None] * given.zero
    return (sums * given.scale).sum(1)


def _by_floats(given: _Grouped) -> Float[Array, "rows out"]:
    def floats(codes):
        steps = codes.astype(jnp.float32)
        steps = steps if given.zero is None else steps - given.zero[:, None]
        return (steps * given.scale[:, None]).astype(given.x.dtype)

    products = (
        jnp.einsum("rgn,gno->ro", x, floats(codes), preferred_element_type=jnp.float32)
        for x, codes in zip(given.x, given.parts(), strict=True)
    )
    return reduce(jnp.add, products)


def _of_integers(given: _Grouped) -> Int32[Array, "rows out"]:
    """Sums of integers times integers, which no scale comes between."""
    (x,), (codes,) = given.x, given.parts()
    return jnp.einsum("rgn,gno->ro", x, codes, preferred_element_type=jnp.int32)


def _in_tiles(product: _Product, given: _Grouped) -> Array:
    """A product summed over some inputs at a time, two halves at least: what a loop cuts out stays in it."""
    parts, rows, groups, each = given.x.shape
    alone = groups == 1
    whole, other = (each, parts) if alone else (groups, parts * each)
    most = whole // 2 if rows >= _MANY_ROWS else _TILE // (4 * other * given.codes.shape[-1])
    size = next(size for size in range(max(1, min(whole // 2, most)), 0, -1) if whole % size == 0)

    def tile(i, total):
        def cut(array, axis):
            return jax.lax.dynamic_slice_in_dim(array, i * size, size, axis)

        if alone:
            some = given._replace(x=cut(given.x, 3), codes=cut(given.codes, 1))
        else:
            zero = None if given.zero is None else cut(given.zero, 0)
            some = _Grouped(cut(given.x, 2), cut(given.codes, 0), cut(given.scale, 0), zero)
        return total + product(some)

    made = jax.eval_shape(product, given)
    return jax.lax.fori_loop(0, whole // size, tile, jnp.zeros(made.shape, made.dtype))
