"""What chooses the integers of a model: a later method is one function and one line here."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ragjax.quantization.quantized import Quantized, quantized
from ragjax.quantization.scheme import Scheme
from ragjax.quantizing.by_text import by_text
from ragjax.quantizing.given import Given, Made, Method


def round_to_nearest(given: Given) -> Made:
    """Each weight to the nearest integer on the grid that spans its group."""
    flat, errors = flatten_dict(given.model.params, sep="/"), {}
    for name in given.names:
        flat[name], lost = _nearest(flat[name], scheme=given.scheme)
        errors[name] = tuple(np.asarray(lost, np.float64).tolist())
        given.progress(name)
    return Made(unflatten_dict(flat, sep="/"), errors, "weights")


@partial(jax.jit, static_argnames="scheme")
def _nearest(kernel: jax.Array, *, scheme: Scheme) -> tuple[Quantized, jax.Array]:
    """A stacked kernel in integers, and ||W' - W|| / ||W|| of each layer."""
    made = quantized(kernel, scheme)
    lost, whole = (jnp.sqrt(jnp.square(w).sum((-2, -1))) for w in (made.whole() - kernel, kernel))
    return made, lost / jnp.where(whole == 0, 1, whole)


METHODS: dict[str, Method] = {
    "rtn": round_to_nearest,
    "gptq": partial(by_text, "gptq"),
    "awq": partial(by_text, "awq"),
    "smoothquant": partial(by_text, "smoothquant"),
}
"""By their name in the config."""
