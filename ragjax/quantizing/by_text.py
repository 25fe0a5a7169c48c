"""Methods that read a calibration text: block by block, each quantized by what it is given."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import numpy as np

from ragjax.duration import time_left
from ragjax.errors import InputError, listing
from ragjax.parallel.mesh import batch_shards
from ragjax.pruning.calibration_text import drawn_text, in_microbatches, misfits
from ragjax.pruning.one_shot import default_length
from ragjax.pruning.unfinished import going_on, identity
from ragjax.quantization.block import How
from ragjax.quantization.stream import LayerFigures, quantize_blocks
from ragjax.quantizing.block_arrays import arrays_of, block_of
from ragjax.quantizing.given import Given, Made
from ragjax.sparsity.calibrated.calibration import Calibration


def by_text(name: str, given: Given) -> Made:
    """Quantizes by a method of `CALIBRATED`.

    Args:
      name: its key.
      given: the model, and how.

    Raises:
      InputError: the text is too short, or the model cannot read it; says all that is wrong.
    """
    config, model, mesh = given.config, given.model, given.mesh
    length = config.sequence_length or default_length(model)
    shards = 1 if mesh is None else batch_shards(mesh)
    problems = misfits(model, config.samples, length, shards)
    tokens, missing = drawn_text(model, config, length, cache=given.cache)
    if tokens is None or problems:
        raise InputError(f"The model cannot be quantized so:\n{listing(problems + missing)}")
    seconds: list[float] = []

    def say(figures: LayerFigures) -> None:
        seconds.append(figures.seconds)
        done, layers = figures.layer + 1, model.config.layers
        line = f"layer {done:>{len(str(layers))}}/{layers}  error {figures.error:.4f}"
        given.progress(f"{line}  {time_left(seconds, layers - done)}" if done < layers else line)
        for remark in remarks(figures, config.dampening):
            given.progress(remark)
        given.after_block(done, layers)

    how = How(
        given.scheme,
        tuple(each.removeprefix("layers/") for each in given.names),
        config.dampening,
        config.order,
        config.strength,
    )
    calibration = Calibration(in_microbatches(tokens, config.batch_size, shards), mesh)
    asked = {"work": "quantize", **asdict(config), **asdict(given.scheme)}
    with going_on(
        given.unfinished,
        lambda: asked | identity(model, calibration.tokens),
        partial(block_of, scheme=given.scheme),
        arrays_of,
    ) as (earlier, keep):
        params, layers = quantize_blocks(
            model.config,
            model.params,
            calibration,
            method=name,
            how=how,
            done=earlier,
            keep=keep,
            within=given.within,
            progress=say,
        )
    errors = {
        each: tuple(float(np.asarray(layer.matrices[each].error)) for layer in layers) for each in given.names
    }
    return Made(params, errors, "outputs", sum(layer.seconds for layer in layers[: len(earlier)]))


def remarks(figures: LayerFigures, dampening: float) -> list[str]:
    """What a person should know of the inputs of a block's matrices.

    Args:
      figures: of the block.
      dampening: what was asked for.
    """
    found = []
    for name, each in figures.matrices.items():
        used = float(each.dampening)
        if not np.isfinite(used):
            found.append(f"{name}: its X'X cannot be used, rounded to the nearest")
        elif used > 1.001 * dampening:
            found.append(f"{name}: its X'X was near-singular, dampened by {used:g}")
        if each.dead_inputs:
            found.append(f"{name}: {int(each.dead_inputs)} inputs were 0 at every token")
    return found
