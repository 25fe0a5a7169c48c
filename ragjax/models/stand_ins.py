"""What may stand among the parameters where an array would: small integers, say, that multiply as it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from ragjax.models.names import path_name


@runtime_checkable
class StandIn(Protocol):
    """Several arrays, a pytree node, in the place of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array it stands for."""

    @property
    def size(self) -> int:
        """Values of that array."""

    def whole(self) -> Float[Array, "..."]:
        """That array, in float32."""

    def nonzero(self) -> Bool[Array, "..."]:
        """Where it is not 0."""

    def in_panels(self) -> StandIn:
        """Of a single layer: what stands for the same where `ragjax.kernels.panels` serve, or itself."""


@runtime_checkable
class Kernel(StandIn, Protocol):
    """Stands for a kernel [inputs, outputs]."""

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32."""


@runtime_checkable
class Table(StandIn, Protocol):
    """Stands for a table of tokens [vocabulary, width]."""

    def rows(self, tokens: Int[Array, "..."]) -> Float[Array, "... width"]:
        """The rows of tokens, in float32."""

    def scores(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """`hidden @ table'` in float32."""


def is_stand_in(leaf: Any) -> bool:
    """Whether something among the parameters is no array; for `is_leaf` of `jax.tree`."""
    return isinstance(leaf, StandIn)


def named_leaves(params: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each parameter, stand-ins as they are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_stand_in):
        yield path_name(path), leaf


def has_stand_ins(params: Any) -> bool:
    """Whether any parameter is no array."""
    return any(is_stand_in(leaf) for _, leaf in named_leaves(params))


def made_whole(params: Any) -> Any:
    """The parameters with arrays in the place of all that stands for one."""
    return jax.tree.map(lambda leaf: leaf.whole() if is_stand_in(leaf) else leaf, params, is_leaf=is_stand_in)
