"""Sensitivity: how much the loss grows when one matrix of one layer is pruned, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from ragjax.config import OneShot
from ragjax.data import Batches, open_corpora
from ragjax.distillation.vocabulary import Head, vocabulary_loss
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.models.blockwise import first_hidden, layer_of, next_hidden, one_layer, run_block
from ragjax.models.decoder import Final, LayerData, Params, layer_data, output_table
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import apply
from ragjax.pruning.one_shot import Plan, described, plan
from ragjax.pruning.unfinished import going_on
from ragjax.sparsity.calibrated.changed_block import Leaves
from ragjax.sparsity.calibrated.methods import METHODS, How, Matrices, prune_block
from ragjax.sparsity.calibrated.statistics import completed, gather_and_run, nothing_yet
from ragjax.sparsity.calibrated.stream import readers
from ragjax.sparsity.sensitivity import Sensitivity

_PREFIX = "layers/"
_DENSE = "dense"
"""Beside the names of kernels, what is kept of a layer."""
_UNUSED = "sparsity", "budget", "table"
"""Fields on which no curve depends."""


class Text(NamedTuple):
    """Held-out text, by which losses are measured."""

    tokens: Int[Array, "rows seq"]
    targets: Int[Array, "rows seq"]


def sensitivity(
    model: Model,
    config: OneShot | None = None,
    *,
    sparsities: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    sequences: int = 8,
    cache: str | Path | None = None,
    unfinished: str | Path | None = None,
    within: AbstractContextManager[Any] | None = None,
    progress: Callable[[int], None] = lambda layer: None,
) -> Sensitivity:
    """Prunes each matrix of each layer alone, to several sparsities, and measures the loss.

    The blocks before it are run once for all; what follows is run again for each of its prunings. The
    losses are those of held-out text: documents of the calibration source that it does not read.

    Args:
      model: the dense model, with its tokenizer; it is left as it is.
      config: the method, its pattern and its calibration text; none: Wanda. `sparsity` and `budget` are
        not used.
      sparsities: shares of a matrix's weights that are removed.
      sequences: sequences of held-out text, as long as those of the calibration text.
      cache: folder of the token cache; none: RAGJAX_CACHE, or ~/.cache/ragjax.
      unfinished: folder in which what is measured of a layer is kept, as by `ragjax.prune`; none: it is not.
      within: entered while layers are measured here; none: nothing is.
      progress: told of each layer that is done here.

    Returns:
      The curves.

    Raises:
      InputError: as `check_levels`, too few held-out sequences, or as `ragjax.prune`.
    """
    config = OneShot() if config is None else config
    check_levels(config, sparsities)
    planned = plan(model, config, hold_out=True, cache=cache)
    text = _held_out(model, planned, sequences, config, cache)
    batches = planned.calibration.tokens
    hidden = [np.asarray(first_hidden(model.params, tokens, config=model.config)) for tokens in batches]
    read = first_hidden(model.params, text.tokens, config=model.config)
    names = [name.removeprefix(_PREFIX) for name in planned.shapes]
    groups = readers(model.config, one_layer(model.params["layers"], 0), names)
    loss = {name: np.empty((model.config.layers, len(sparsities))) for name in planned.shapes}

    def asked() -> dict[str, Any]:
        levels = {"work": "sensitivity", "sparsities": [*sparsities], "sequences": sequences}
        known = described(model, config, planned).items()
        return levels | {name: value for name, value in known if name not in _UNUSED}

    dense = None
    with ExitStack() as stack:
        done, keep = stack.enter_context(going_on(unfinished, asked, dict, dict))
        for layer in range(model.config.layers):
            if layer == len(done) and within is not None:
                stack.enter_context(within)
            block, data = one_layer(model.params["layers"], layer), layer_of(model.config, layer)
            # Of a layer that is done as well: by another program what it hands on may differ in the last bit.
            sums = nothing_yet(groups, with_gram=METHODS[config.method].needs_gram)
            for number, x in enumerate(hidden):
                sums, out = gather_and_run(sums, block, data, x, config=model.config)
                hidden[number] = np.asarray(out)
            if layer < len(done):
                values = done[layer]
            else:
                after = partial(
                    _loss_after, model.params,
                    layer=jnp.int32(layer), data=data, read=read, text=text, config=model.config,
                )  # fmt: skip
                values = {_DENSE: np.asarray(after(block) if dense is None else dense, np.float64)}
                key = jax.random.fold_in(jax.random.key(config.seed), layer)
                flat = flatten_dict(block, sep="/")
                given = Matrices({name: flat[name] for name in names}, completed(sums), {}, key)
                values |= _curves(given, flat, sparsities, config.method, planned.how, after)
                if keep is not None:
                    keep(layer, values)
            dense = float(values[_DENSE])
            for name in loss:
                loss[name][layer] = values[name]
            read = next_hidden(block, data, read, config=model.config)
            if layer >= len(done):
                progress(layer)
    assert dense is not None
    return Sensitivity(tuple(sparsities), dense, loss)


def check_levels(config: OneShot, sparsities: Sequence[float]) -> None:
    """Refuses sparsities of which no curve can be made.

    Args:
      config: its pattern is looked at.
      sparsities: shares of a matrix's weights.

    Raises:
      InputError: they do not rise within (0, 1), or the pattern n_of_m has no such shares.
    """
    rising = sorted(set(sparsities)) == list(sparsities)
    if not sparsities or not rising or not 0 < sparsities[0] <= sparsities[-1] < 1:
        raise InputError(f"sparsities must rise between 0 and 1, without both, found {tuple(sparsities)}.")
    if config.pattern == "n_of_m" and any(abs(s * config.m - round(s * config.m)) > 1e-9 for s in sparsities):
        possible = " ".join(f"{n / config.m:g}" for n in range(1, config.m))
        raise InputError(
            f"n_of_m: of {config.m} weights a whole number goes: sparsities must be among {possible}, found "
            f"{tuple(sparsities)}."
        )


def _curves(
    given: Matrices,
    block: Leaves,
    sparsities: Sequence[float],
    method: str,
    how: How,
    after: Callable[[Params], Float[Array, ""]],
) -> dict[str, Float[np.ndarray, " sparsities"]]:
    """Of each matrix of a block the losses when it alone is pruned, by its name in the model."""
    curves = {_PREFIX + name: np.empty(len(sparsities)) for name in given.kernels}
    for level, sparsity in enumerate(sparsities):
        asked = given._replace(sparsity={name: jnp.float32(sparsity) for name in given.kernels})
        kernels, _ = prune_block(asked, method=method, how=how)
        # All under way before the first is waited for.
        losses = {n: after(unflatten_dict({**block, n: kernel}, sep="/")) for n, kernel in kernels.items()}
        for name, value in losses.items():
            curves[_PREFIX + name][level] = float(value)
    return curves


def _held_out(model: Model, planned: Plan, sequences: int, config: OneShot, cache: str | Path | None) -> Text:
    length = planned.calibration.tokens.shape[-1]
    assert model.tokenizer is not None
    _, corpus = open_corpora(config.calibration, None, model.tokenizer, cache=cache)
    corpus = corpus.as_text
    needed = sequences * length + 1
    if sequences < 1 or len(corpus) < needed:
        raise InputError(
            f"sequences must be at least 1 and find their tokens: {sequences} of {length} need {needed:,}, "
            f"of {config.calibration} {len(corpus):,} are held out."
        )
    batch = Batches(corpus=corpus, batch_size=sequences, sequence_length=length, seed=config.seed).batch(0)
    return Text(jnp.asarray(batch.tokens), jnp.asarray(batch.targets))


@partial(jax.jit, static_argnames="config")
def _loss_after(
    params: Params,
    block: Params,
    *,
    layer: Int[Array, ""],
    data: LayerData,
    read: Float[Array, "rows seq width"],
    text: Text,
    config: DecoderConfig,
) -> Float[Array, ""]:
    """Loss with `block` in place of the block of `layer`, from the residual stream before it."""
    stacked = layer_data(config)

    def one(number: Array, hidden: Array) -> Array:
        def pick(leaf):
            return jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)

        following, at = jax.tree.map(pick, params["layers"]), jax.tree.map(pick, stacked)
        return run_block(config, following, at, hidden).hidden

    hidden = run_block(config, block, data, read).hidden
    hidden = jax.lax.fori_loop(layer + 1, config.layers, one, hidden)
    last = {name: params[name] for name in ("final_norm", "output_projection") if name in params}
    student = Head(apply(Final(config), last, hidden), output_table(params))
    weights = jnp.ones(text.targets.shape, jnp.float32)
    total, _ = vocabulary_loss(
        student, text.targets, weights, vocab_size=config.vocab_size, coefficients={"cross_entropy": 1.0}
    )
    return total / weights.size
