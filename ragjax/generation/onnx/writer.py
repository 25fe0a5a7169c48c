"""A model in onnxruntime that writes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from ragjax.config import Decoding
from ragjax.errors import InputError, listing
from ragjax.generation.onnx.choice import choice_for
from ragjax.generation.onnx.network import Network
from ragjax.generation.prompts import bucket
from ragjax.generation.request import Request
from ragjax.generation.writer import Written
from ragjax.onnx_model import OnnxModel


def check_onnx(options: Decoding, draft: object | None, mesh: jax.sharding.Mesh | None) -> None:
    """Refuses what a model in onnxruntime cannot do.

    Raises:
      InputError: names all of it.
    """
    problems = []
    if options.beams > 1:
        problems.append(f"beams is {options.beams}: leave it at 1")
    if options.cache_dtype != "float32":
        problems.append(f"cache_dtype is {options.cache_dtype}: leave it at float32")
    if draft is not None:
        problems.append("there is a draft: leave it out")
    if mesh is not None:
        problems.append("there is a mesh: it runs on the CPU, leave the mesh at one device")
    if problems:
        raise InputError(f"A model in onnxruntime cannot do that, JAX can:\n{listing(problems)}")


class OnnxWriter:
    """A model in onnxruntime: one token after another, all sequences in step."""

    def __init__(self, model: OnnxModel, asked: Request):
        config, prompts = model.config, asked.prompts
        lengths = [len(prompt) for prompt in prompts]
        room = bucket(max(lengths) + asked.options.max_new_tokens, most=config.positions)
        self._network = Network(model, batch=len(prompts), room=room)
        self._lengths = np.array(lengths, np.int32)
        self._choice = choice_for(asked, config.vocab_size, config.positions)
        self._choice.add(self._network.read(prompts))

    def write(self, count: int, ahead: int = 0) -> Written:
        choice = self._choice
        while choice.written < count and not choice.done.all():
            # A sequence that has ended is fed its last token at one place over and over.
            self._lengths += ~choice.done
            choice.add(self._network.feed(choice.last, self._lengths))
        return choice.told()

    def end(self, rows: Sequence[int]) -> None:
        self._choice.end(rows)
