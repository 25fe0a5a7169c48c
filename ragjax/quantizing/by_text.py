"""Methods that read a calibration text: block by block, each quantized by what it is given."""

from __future__ import annotations

import numpy as np

from ragjax.duration import time_left
from ragjax.errors import InputError, listing
from ragjax.parallel.mesh import batch_shards
from ragjax.pruning.calibration_text import drawn_text, in_microbatches, misfits
from ragjax.pruning.one_shot import default_length
from ragjax.quantization.block import How
from ragjax.quantization.stream import LayerFigures, quantize_blocks
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
        done, layers = len(seconds), model.config.layers
        line = f"layer {done:>{len(str(layers))}}/{layers}  error {figures.error:.4f}"
        given.progress(f"{line}  {time_left(seconds, layers - done)}" if done < layers else line)

    how = How(
        given.scheme,
        tuple(each.removeprefix("layers/") for each in given.names),
        config.dampening,
        config.order,
        config.strength,
    )
    calibration = Calibration(in_microbatches(tokens, config.batch_size, shards), mesh)
    params, layers = quantize_blocks(
        model.config, model.params, calibration, method=name, how=how, progress=say
    )
    errors = {
        each: tuple(float(np.asarray(layer.matrices[each].error)) for layer in layers) for each in given.names
    }
    return Made(params, errors, "outputs")
