"""What chooses the integers of a model: a later method is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from ragjax.config import Quantize
from ragjax.model import Model
from ragjax.models.decoder import Params
from ragjax.quantization.quantized import Quantized, quantized
from ragjax.quantization.scheme import Scheme


class Given(NamedTuple):
    """What a method works on; checked."""

    model: Model
    """In floats; left as it is."""
    names: tuple[str, ...]
    """The kernels that are to be quantized, as in 'layers/mlp/up/kernel'."""
    scheme: Scheme
    config: Quantize
    mesh: Mesh | None
    """Devices that share the work."""
    cache: str | Path | None
    """Folder of the token cache."""
    progress: Callable[[str], None]
    """Told of each part that is done, a line."""


class Made(NamedTuple):
    """What a method made."""

    params: Params
    """With quantized kernels, and whatever else had to change with them."""
    errors: dict[str, tuple[float, ...]]
    """Of each kernel, one for each layer: what `of` says."""
    of: str
    """What the errors are errors of, relative to its own size."""


Method = Callable[[Given], Made]


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


METHODS: dict[str, Method] = {"rtn": round_to_nearest}
"""By their name in the config."""
