"""Training for few bits: the optimizer trains free weights, the parameters are those of them rounded.

The parameters of the train state lie on their grids, always: what the network computes with, what is
evaluated and saved. The gradient taken there is the straight-through gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ragjax.config import FakeQuantize
from ragjax.errors import InputError, listing
from ragjax.models.names import path_name
from ragjax.quantization.grid import rounded
from ragjax.quantization.scheme import SCHEMES, Scheme
from ragjax.sparsity.masks import masked_part, prunable


class RoundedState(NamedTuple):
    """State of `held_to_grid`."""

    optimizer: optax.OptState
    """State of the optimizer, which trains the free weights."""
    free: PyTree
    """The weights before they are rounded; None where they are not."""


def held_to_grid(
    optimizer: optax.GradientTransformation, scheme: Scheme | None
) -> optax.GradientTransformationExtraArgs:
    """Trains free weights behind the matrices of the blocks, which are those rounded to the nearest.

    Grids follow the weights at every step, so that none is cut off, and the gradient passes as it is. What
    the optimizer holds at 0 is 0 when rounded: it may be one that prunes. The first step still sees the
    weights it was given.

    Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons",
    https://arxiv.org/abs/1308.3432.

    Args:
      optimizer: any gradient transformation.
      scheme: how the matrices are rounded; none: they are not.

    Raises:
      InputError: from `init`, if the inputs of a matrix do not divide into groups; names all of them.

    Example:
      >>> params = {"layers": {"up": {"kernel": jnp.array([[[-8.0], [1.4], [0.0]]])}}}
      >>> rule = held_to_grid(optax.sgd(1.0), Scheme(bits=4))
      >>> nothing = jax.tree.map(jnp.zeros_like, params)
      >>> updates, state = rule.update(nothing, rule.init(params), params)
      >>> optax.apply_updates(params, updates)["layers"]["up"]["kernel"].ravel().tolist()
      [-8.0, 1.0, 0.0]
    """
    inner = optax.with_extra_args_support(optimizer)
    if scheme is None:
        return inner

    def init(params: PyTree) -> RoundedState:
        chosen = prunable(params)
        _check_groups(chosen, scheme)
        return RoundedState(inner.init(params), jax.tree.map(jnp.copy, chosen))

    def update(updates: PyTree, state: RoundedState, params: PyTree | None = None, **extra_args):
        if params is None:
            raise ValueError("rounded weights need the parameters: call update(updates, state, params)")
        behind = jax.tree.map(lambda p, w: p if w is None else w, params, state.free)
        moved, memory = inner.update(updates, state.optimizer, behind, **extra_args)
        free = masked_part(optax.apply_updates(behind, moved), state.free)
        moved = jax.tree.map(lambda u, p, w: u if w is None else rounded(w, scheme) - p, moved, params, free)
        return moved, RoundedState(memory, free)

    return optax.GradientTransformationExtraArgs(init, update)


def trained_scheme(config: FakeQuantize) -> Scheme | None:
    """What a config of a training asks for."""
    if config.scheme == "none":
        return None
    scheme = SCHEMES[config.scheme]
    return scheme if config.group is None else replace(scheme, group=config.group)


def _check_groups(kernels: PyTree, scheme: Scheme) -> None:
    group = scheme.group
    astray = [
        f"{path_name(path)} has {leaf.shape[-2]} inputs"
        for path, leaf in jax.tree_util.tree_leaves_with_path(kernels)
        if group and leaf.shape[-2] % group
    ]
    if astray:
        raise InputError(
            f"quantize.group: inputs do not divide into groups of {group}; choose a group that divides all, "
            f"or 0 for one scale an output:\n{listing(astray)}"
        )
