"""A model in onnxruntime that writes: its scores, and JAX's choice of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.config import Decoding
from ragjax.errors import InputError, listing
from ragjax.generation import log_probs
from ragjax.generation.decoding import Settings, State, add_token, tokens_of
from ragjax.generation.onnx.network import Network
from ragjax.generation.prompts import bucket
from ragjax.generation.request import Request
from ragjax.generation.writer import Written, ended
from ragjax.onnx_model import OnnxModel
from ragjax.parallel.hosts import to_host


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
        config, options, prompts = model.config, asked.options, asked.prompts
        lengths = [len(prompt) for prompt in prompts]
        room = bucket(max(lengths) + options.max_new_tokens, most=config.positions)
        self._network = Network(model, batch=len(prompts), room=room)
        self._lengths = np.array(lengths, np.int32)
        self._written = 0
        with on_cpu():
            self._settings = asked.settings()
            self._state = _begin(
                *asked.aligned(config.positions), vocab_size=config.vocab_size,
                room=asked.room(config.positions), alternatives=options.log_probs,
            )  # fmt: skip
        self._choose(self._network.read(prompts))

    def write(self, count: int) -> Written:
        while self._written < count and not self._done.all():
            # A sequence that has ended is fed its last token at one place over and over.
            self._lengths += ~self._done
            self._choose(self._network.feed(self._last, self._lengths))
        told = to_host(self._state.log_probs)
        return Written(to_host(self._state.tokens), np.full(len(self._done), self._written), told)

    def end(self, rows: Sequence[int]) -> None:
        with on_cpu():
            self._state = self._state._replace(done=ended(self._state.done, rows))
        self._done = to_host(self._state.done)

    def _choose(self, scores: np.ndarray) -> None:
        with on_cpu():
            self._state, last = _chosen(self._state, scores, self._settings)
        self._last, self._done = to_host((last, self._state.done))
        self._written += 1


def on_cpu() -> Any:
    """Where tokens are chosen: the scores are there, whatever devices JAX has besides."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])


@partial(jax.jit, static_argnames=("vocab_size", "room", "alternatives"))
def _begin(
    prompts: Int[Array, "batch length"],
    padding: Int[Array, " batch"],
    *,
    vocab_size: int,
    room: int,
    alternatives: int | None,
) -> State:
    """A generation before its first token, whose keys and values are elsewhere."""
    batch = len(prompts)
    return State(
        (), padding, jnp.int32(0), jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, bool),
        tokens_of(prompts, padding, vocab_size), log_probs.empty(batch, room, alternatives),
    )  # fmt: skip


@partial(jax.jit, donate_argnames="state")
def _chosen(
    state: State, scores: Float[Array, "batch vocab"], settings: Settings
) -> tuple[State, Int[Array, " batch"]]:
    """The state with one more token of each sequence, and those tokens."""
    state = add_token(state, scores, settings)
    return state, jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)[:, 0]
