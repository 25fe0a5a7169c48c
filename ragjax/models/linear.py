"""The projection every layer is made of, and what may stand for its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ragjax.models.activations import ACTIVATIONS
from ragjax.models.matmul import linear
from ragjax.models.panels import Active
from ragjax.models.stand_ins import Kernel, is_stand_in
from ragjax.parallel.pin import pin_batch

PRODUCT = "product"
"""Name of what "dots" keeps: a policy that looks for products sees none inside `linear`'s own gradient."""
ACTIVE = "active"
"""Among a projection's parameters, what may stand for its kernel and bias, and among an MLP's for its
projection "up" and the nonlinearity of what that makes: `ragjax.models.panels.Active`."""


class Linear(nn.Module):
    """x @ kernel + bias, or activation(x) @ kernel + bias, on top of what may be given to be added to."""

    features: int
    stddev: float
    use_bias: bool = True
    activation: Callable[[jax.Array], jax.Array] = ACTIVATIONS["linear"]

    @nn.compact
    def __call__(
        self, x: Float[Array, "... n"], added: Float[Array, "... m"] | None = None
    ) -> Float[Array, "... m"]:
        if self.has_variable("params", ACTIVE):
            whole: Active = self.get_variable("params", ACTIVE)
            assert added is None or added.dtype == x.dtype
            return whole.multiply(self.activation(x), added).astype(x.dtype)
        stand_in: Kernel | None = given(self, "kernel")
        if stand_in is None:
            kernel = self.param(
                "kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features), jnp.float32
            )
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        if stand_in is None:
            out = linear(x, kernel, bias, self.activation)
        else:
            product = stand_in.multiply(self.activation(x))
            out = (product if bias is None else product + bias).astype(x.dtype)
        out = checkpoint_name(pin_batch(out), PRODUCT)
        return out if added is None else added + out


def given(module: nn.Module, name: str) -> Any:
    """What stands for the parameter of that name; none where it is an array, which `param` checks."""
    value = module.get_variable("params", name) if module.has_variable("params", name) else None
    return value if is_stand_in(value) else None
