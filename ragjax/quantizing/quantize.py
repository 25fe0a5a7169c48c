"""A trained model in, one of fewer bits a weight out."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ragjax.config import Quantize
from ragjax.errors import InputError, listing
from ragjax.model import Model, check_floats
from ragjax.models.decoder import Params
from ragjax.models.stand_ins import is_stand_in, named_leaves
from ragjax.quantization.scheme import SCHEMES, Scheme
from ragjax.quantization.table import quantized_table
from ragjax.quantizing.given import Given
from ragjax.quantizing.methods import METHODS
from ragjax.sparsity.masks import prunable


class QuantizeReport(NamedTuple):
    """How a quantization went."""

    config: Quantize
    """What was asked for."""
    scheme: Scheme
    """What that means."""
    errors: dict[str, tuple[float, ...]]
    """Relative error of each matrix, by name: one figure a layer."""
    error_of: str
    """Of what: weights or outputs."""
    bits: float
    """Bits of a weight of the quantized matrices, scales and zero points included."""
    seconds: float
    """How long it took, without reading and writing the model."""


class QuantizedModel(NamedTuple):
    """A model of fewer bits, and how it came about."""

    model: Model
    report: QuantizeReport


def quantize(
    model: Model,
    config: Quantize | None = None,
    *,
    mesh: Mesh | None = None,
    cache: str | Path | None = None,
    unfinished: str | Path | None = None,
    within: AbstractContextManager[Any] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    after_block: Callable[[int, int], None] = lambda done, of: None,
) -> QuantizedModel:
    """Turns the matrices of a trained model into small integers.

    Args:
      model: the model, in floats; left as it is. Weights that are 0 stay 0.
      config: bits, groups, method; none: int8, to the nearest.
      mesh: devices that share the work; none: JAX's default device.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
      unfinished: folder in which a method that goes block by block keeps each as it is done, so that the same
        call goes on from there; stays when all are, for the caller to remove. None: no block is kept.
      within: entered while such a method quantizes blocks; none: nothing is.
      progress: told of each part that is done here, a line.
      after_block: told after each block, by such a method, how many are done, and of how many.

    Returns:
      The quantized model, which runs as any other, and whose history says what was done; and figures.

    Raises:
      InputError: the config does not fit the model; says all that is wrong. Or `unfinished` holds something
        else.

    Example:
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> shape = DecoderConfig(vocab_size=300, positions=32, width=32, layers=1, heads=2, mlp_width=64)
      >>> made = quantize(Model(shape, init_params(shape, seed=0)), Quantize(scheme="int4"))
      >>> made.report.bits
      4.5
      >>> made.model(jnp.array([[1, 2, 3]])).shape
      (1, 3, 300)
    """
    config = Quantize() if config is None else config
    scheme = scheme_of(config)
    names = _names(model, config, scheme)
    began = time.monotonic()
    given = Given(model, names, scheme, config, mesh, cache, unfinished, within, progress, after_block)
    made = METHODS[config.method](given)
    params = _with_tables(made.params, config)
    _check_finite(params)
    seconds = time.monotonic() - began + made.before
    done = {"did": "quantize", **asdict(config), **asdict(scheme), "seconds": round(seconds, 1)}
    small = replace(model, params=params, history=(*model.history, done))
    kernels = [leaf for name, leaf in named_leaves(params) if name in names]
    bits = 8 * sum(x.nbytes for x in jax.tree.leaves(kernels)) / sum(kernel.size for kernel in kernels)
    return QuantizedModel(small, QuantizeReport(config, scheme, made.errors, made.of, bits, seconds))


def scheme_of(config: Quantize) -> Scheme:
    """The scheme that a config names, with what it says otherwise."""
    named = SCHEMES[config.scheme]
    return replace(
        named,
        group=named.group if config.group is None else config.group,
        symmetric=named.symmetric if config.symmetric is None else config.symmetric,
    )


def _names(model: Model, config: Quantize, scheme: Scheme) -> tuple[str, ...]:
    """The kernels that are to be quantized; refuses what cannot be."""
    check_floats(model)
    chosen = dict(named_leaves(prunable(model.params, config.quantizable, option="quantizable")))
    problems = [
        f"{name}: only the matrices of the blocks are quantized so, as in 'layers/*/kernel'; tables of "
        "tokens by tables: int8"
        for name in chosen
        if not (name.startswith("layers/") and name.endswith("/kernel"))
    ]
    inputs = {name: leaf.shape[-2] for name, leaf in chosen.items()}
    each = scheme.group or 1
    if problems:
        raise InputError(f"The model cannot be quantized so:\n{listing(problems)}")
    problems = [
        f"{name}: {n} inputs do not divide into groups of {each}" for name, n in inputs.items() if n % each
    ]
    if scheme.bits == 4 and not scheme.group:
        problems += [f"{name}: {n} inputs, of 4 bits an even number" for name, n in inputs.items() if n % 2]
    if problems:
        common = int(np.gcd.reduce(list(inputs.values())))
        raise InputError(
            f"The model cannot be quantized so:\n{listing(problems)}\nA group divides all inputs if it "
            f"divides {common}; 0 is one group of all inputs."
        )
    return tuple(chosen)


def _with_tables(params: Params, config: Quantize) -> Params:
    if config.tables == "float":
        return params
    small = jax.jit(quantized_table)
    embedding = {**params["embedding"], "tokens": small(params["embedding"]["tokens"])}
    head = {"head": small(params["head"])} if "head" in params else {}
    return {**params, "embedding": embedding, **head}


def _check_finite(params: Params) -> None:
    bad = [
        name
        for name, leaf in named_leaves(params)
        if is_stand_in(leaf) and not jnp.isfinite(leaf.scale).all()
    ]
    if bad:
        raise InputError(
            "Weights that are not finite, or too large for scales in 16 bits, cannot be quantized:\n"
            f"{listing(bad)}"
        )
