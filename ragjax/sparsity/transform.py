"""Sparse training as a gradient transformation: any optimizer stays sparse, in any trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import optax

from ragjax.config import Sparsity
from ragjax.sparsity.hard import from_random, from_zeros, hard
from ragjax.sparsity.latent import Latent, drawn_to_zero, latent, movement, of_kept, straight_through
from ragjax.sparsity.masks import Masks
from ragjax.sparsity.rewind import rewind
from ragjax.sparsity.rules import SHRINK, Rule, alternate, regrow_by_gradient, regrow_random

METHODS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "gradual": partial(hard, rule=SHRINK, begin=from_zeros),
    "set": partial(hard, rule=Rule(regrow_random), begin=from_random),
    "rigl": partial(hard, rule=Rule(regrow_by_gradient), begin=from_random),
    "ac_dc": partial(hard, rule=Rule(alternate), begin=from_zeros),
    "rewind": rewind,
    "ste": partial(latent, method=Latent(straight_through)),
    "sr_ste": partial(latent, method=Latent(drawn_to_zero)),
    "movement": partial(latent, method=Latent(of_kept, remember=movement)),
}
"""Methods by their name in the config; each takes what `sparsify` takes."""


def sparsify(
    optimizer: optax.GradientTransformation,
    config: Sparsity,
    *,
    total_steps: int,
    seed: int,
    masks: Masks | None = None,
) -> optax.GradientTransformation:
    """The optimizer, made to train a sparse model by the method the config names.

    `update` takes the number of the step as `step`, for a trainer that skips some; without it, its calls
    are counted. `optax.tree.get(state, "masks")` reads the masks.

    Args:
      optimizer: any gradient transformation.
      config: which weights, how, and when; a target of 0 leaves the optimizer as it is, or, where masks
        are given, holds the weights to them.
      total_steps: steps of the training.
      seed: seed of what is drawn by chance.
      masks: masks to begin with; none: those the method begins with.

    Raises:
      InputError: if the schedule does not end within the training; and from `init`, if the names or
        shapes of the parameters do not fit the config.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"layers": {"up": {"kernel": jnp.arange(1.0, 9.0).reshape(1, 2, 4)}}}
      >>> config = Sparsity(target=0.5, schedule="one_shot")
      >>> optimizer = sparsify(optax.sgd(0.0), config, total_steps=1, seed=0)
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> optax.apply_updates(params, updates)["layers"]["up"]["kernel"].tolist()
      [[[0.0, 0.0, 0.0, 0.0], [5.0, 6.0, 7.0, 8.0]]]
    """
    if not config.target and masks is None:
        return optimizer
    method = METHODS[config.method if config.target else "gradual"]
    return method(optimizer, config, total_steps=total_steps, seed=seed, masks=masks)
