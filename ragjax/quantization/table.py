"""A table of tokens in integers of 8 bits: rows to read from, and scores of the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float16, Int, Int8

from ragjax.models.panels import PanelTable
from ragjax.models.rows import rows_of
from ragjax.parallel.pin import pin
from ragjax.quantization.grid import grid, to_codes
from ragjax.quantization.panels import exact_input_bits, panel_quantized
from ragjax.quantization.scheme import SCHEMES

_ROWS = 128
"""Rows of a tile; every padded vocabulary is a multiple of it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizedTable:
    """`codes * scale`, row by row; made by `quantized_table`."""

    codes: Int8[Array, "padded_vocab width"]
    scale: Float16[Array, " padded_vocab"]
    """Largest magnitude of each row over 127."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table it stands for."""
        return self.codes.shape

    @property
    def size(self) -> int:
        """Values it stands for."""
        return math.prod(self.shape)

    def whole(self) -> Float[Array, "padded_vocab width"]:
        """The table it stands for, in float32."""
        return self.codes * self.scale.astype(jnp.float32)[:, None]

    def nonzero(self) -> Bool[Array, "padded_vocab width"]:
        """Where that table is not 0."""
        return self.whole() != 0

    def in_panels(self) -> PanelTable:
        """The same in panels."""
        input_bits = exact_input_bits(self.codes.shape[1])
        return PanelTable(panel_quantized(self.codes.T, self.scale, input_bits=input_bits))

    def rows(self, tokens: Int[Array, "..."]) -> Float[Array, "... width"]:
        """The rows of tokens, in float32."""
        # Whole along the width, as in `Embedding`.
        codes, scale = pin(self.codes, ("tensor",), ()), pin(self.scale, ("tensor",))
        return rows_of(codes, tokens) * rows_of(scale, tokens).astype(jnp.float32)[..., None]

    def scores(self, hidden: Float[Array, "... width"]) -> Float[Array, "... padded_vocab"]:
        """`hidden @ table'` in float32, from the integers.

        Args:
          hidden: what the last layer says.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        if jax.sharding.get_abstract_mesh().empty:
            products = jax.lax.platform_dependent(flat, self.codes, cpu=_in_tiles, default=_product)
        else:
            products = _product(flat, self.codes)
        return (products * self.scale.astype(jnp.float32)).reshape(*hidden.shape[:-1], -1)


def quantized_table(table: Float[Array, "padded_vocab width"]) -> QuantizedTable:
    """A table with each row rounded to nearest, by the scale of its largest magnitude.

    Args:
      table: rows of tokens.
    """
    scheme = SCHEMES["int8"]
    spanned = grid(table.T, scheme)
    return QuantizedTable(to_codes(table.T, spanned, scheme).T, spanned.scale[0].astype(jnp.float16))


def _product(hidden, codes):
    return jnp.einsum("rd,vd->rv", hidden, codes.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _in_tiles(hidden, codes):
    """`_product` of some rows at a time, as in `ragjax.quantization.products`."""
    tiles = codes.reshape(-1, _ROWS, codes.shape[-1])
    by_tile = jax.lax.map(lambda tile: _product(hidden, tile), tiles)
    return by_tile.swapaxes(0, 1).reshape(len(hidden), -1)
