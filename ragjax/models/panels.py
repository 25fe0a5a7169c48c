"""Kernels and tables in panels, which stand among the parameters while tokens are written on CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.kernels.norm import RowNorm
from ragjax.kernels.panels import columns_of, in_panels, multiply_panels, out_of_panels
from ragjax.models.stand_ins import Kernel


@runtime_checkable
class Panels(Kernel, Protocol):
    """Stands for a kernel [in, out] in panels of some outputs each."""

    def beside(self, others: Sequence[Self]) -> Self | None:
        """What stands for this kernel and behind it the outputs of others, of the same class and with as many
        inputs; none where it would not multiply as they do, or one's outputs do not fill up its panels."""


class Active(Protocol):
    """Stands for a projection, what becomes of its outputs, and what its inputs become before: a pytree node,
    but in no place of an array."""

    def multiply(
        self, x: Float[Array, "... in"], added: Float[Array, "... out"] | None = None
    ) -> Float[Array, "... out"]:
        """`activation(x @ kernel + bias)` in float32, or that and `added`."""

    def after(self, norm: RowNorm) -> Self | None:
        """What stands for the norm of its inputs and this; none where the product cannot begin so.

        Args:
          norm: of each token, as wide as the kernel has inputs.
        """


@runtime_checkable
class Activating(Kernel, Protocol):
    """Stands for a kernel [in, out] whose product may end in an activation."""

    def active(self, bias: Float[Array, " out"] | None, activation: str) -> Active | None:
        """What stands for `activation(x @ kernel + bias)`; none where the product cannot end so.

        Args:
          bias: of each output; none: 0.
          activation: its name in a config.
        """


class PanelStandIn(Kernel, Protocol):
    """Stands for a kernel [in, out], of which single columns can be read."""

    def columns(self, outputs: Int[Array, "..."]) -> Float[Array, "... in"]:
        """What leads to each of some outputs, in float32."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PanelKernel:
    """Stands for a kernel [in, out]; made by `panel_kernel`."""

    panels: Float[Array, "panels in width"]
    outputs: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return (self.panels.shape[1], self.outputs)

    @property
    def size(self) -> int:
        """Weights of the kernel."""
        return self.panels.shape[1] * self.outputs

    def whole(self) -> Float[Array, "in out"]:
        """The kernel."""
        return out_of_panels(self.panels, self.outputs)

    def nonzero(self) -> Bool[Array, "in out"]:
        """Where the kernel is not 0."""
        return self.whole() != 0

    def in_panels(self) -> PanelKernel:
        """Itself."""
        return self

    def multiply(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        """`x @ kernel` in float32."""
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        out = multiply_panels(rows, self.panels, self.outputs)
        return out.reshape(*x.shape[:-1], self.outputs)

    def columns(self, outputs: Int[Array, "..."]) -> Float[Array, "... in"]:
        """What leads to each of some outputs."""
        return columns_of(self.panels, outputs)

    def beside(self, others: Sequence[PanelKernel]) -> PanelKernel | None:
        """What stands for this kernel and behind it the outputs of others."""
        every = self, *others
        if any(kernel.outputs % kernel.panels.shape[-1] for kernel in every):
            return None
        panels = jnp.concatenate([kernel.panels for kernel in every])
        return PanelKernel(panels, sum(kernel.outputs for kernel in every))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PanelTable:
    """Stands for a table of tokens [vocabulary, width], which is the transpose of a kernel."""

    transposed: PanelStandIn

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return self.transposed.shape[::-1]

    @property
    def size(self) -> int:
        """Weights of the table."""
        return self.transposed.size

    def whole(self) -> Float[Array, "vocab width"]:
        """The table."""
        return self.transposed.whole().T

    def nonzero(self) -> Bool[Array, "vocab width"]:
        """Where the table is not 0."""
        return self.transposed.nonzero().T

    def in_panels(self) -> PanelTable:
        """Itself."""
        return self

    def rows(self, tokens: Int[Array, "..."]) -> Float[Array, "... width"]:
        """The rows of tokens, each of them in the vocabulary, in float32."""
        return self.transposed.columns(tokens)

    def scores(self, hidden: Float[Array, "... width"]) -> Float[Array, "... vocab"]:
        """`hidden @ table'` in float32."""
        return self.transposed.multiply(hidden)


def panel_kernel(kernel: Float[Array, "in out"]) -> PanelKernel:
    """What stands for a kernel."""
    return PanelKernel(in_panels(kernel), kernel.shape[1])


def panel_table(table: Float[Array, "vocab width"]) -> PanelTable:
    """What stands for a table."""
    return PanelTable(panel_kernel(table.T))


def are_in_panels(params: Any) -> bool:
    """Whether any kernel among parameters is in panels, and the program so for this processor."""
    return any(map(_is_panels, jax.tree.leaves(params, is_leaf=_is_panels)))


def _is_panels(leaf: Any) -> bool:
    return isinstance(leaf, Panels)
