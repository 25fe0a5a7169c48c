"""What a student writes while it is trained: by itself, or with a teacher that has a part in every token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ragjax.generation.decoding import Settings, State, advance, read
from ragjax.generation.filters import Filters, filtered
from ragjax.generation.network import unstack
from ragjax.generation.sampling import next_token, sequence_keys
from ragjax.models.decoder import KeyValues, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.pin import pin_batch
from ragjax.parallel.rules import gathered


class Writer(NamedTuple):
    """A network that has a part in what is written."""

    config: DecoderConfig
    params: Params


class Prompted(NamedTuple):
    """What is to be continued, and how far."""

    tokens: Int[Array, "batch length"]
    """Prompts, flush right."""
    padding: Int[Array, " batch"]
    """Places before each prompt, less than the length."""
    limit: Int[Array, " batch"]
    """New tokens each sequence may get, at least 1."""


class Written(NamedTuple):
    """What was written."""

    tokens: Int[Array, "batch room"]
    """New tokens; behind the last of a sequence stands no matter what."""
    length: Int[Array, " batch"]
    """How many there are of each sequence, the one that ends the text among them."""
    ratio: Float[Array, "batch room"] | None
    """The student's probability of each, at the temperature, over that with which it was drawn; none where
    the student wrote alone."""


class _Going(NamedTuple):
    """Writing under way."""

    caches: tuple[tuple[KeyValues, ...], ...]
    """Of each writer, those of its layers."""
    step: Int[Array, ""]
    done: Bool[Array, " batch"]
    written: Written


def write(
    student: Writer,
    prompted: Prompted,
    settings: Settings,
    *,
    room: int,
    teacher: Writer | None = None,
    teacher_share: float | Float[Array, ""] = 0.0,
    top_p: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
) -> Written:
    """Goes on from prompts, for use inside a compiled program.

    A token is drawn from a p + (1 - a) q, where q is the student's distribution and p the teacher's, both at
    the temperature, and a the teacher's share; both networks keep their keys and values in one loop. The loop
    ends when every sequence has. Over a mesh the weights are gathered once, before it.

    Args:
      student: the one that learns.
      prompted: what it goes on from.
      settings: how tokens are chosen. A sequence draws the same whatever the others are.
      room: new tokens at most.
      teacher: writes with the student; none: the student writes alone.
      teacher_share: a, in [0, 1]; with a teacher the temperature must be above 0.
      top_p: draw from the fewest likeliest tokens that together have this probability.
      dtype: type both networks compute in and keep keys and values in.

    References:
      Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models",
      https://arxiv.org/abs/2306.08543, section 2.2 (teacher-mixed sampling).
    """
    writers = (student,) if teacher is None else (student, teacher)
    batch = len(prompted.tokens)
    ready = [_ready(writer, dtype) for writer in writers]

    def begun(writer: Writer, params: Params):
        scores, stacked = read(params, prompted.tokens, prompted.padding, config=writer.config)
        grow = ((0, 0), (0, 0), (0, room), (0, 0))

        def layer(i: int) -> KeyValues:
            return jax.tree.map(lambda x: jnp.pad(x[i], grow), stacked)

        # Apart, as the loop updates them in place.
        return scores, tuple(layer(i) for i in range(writer.config.layers))

    def add(going: _Going, scores: Sequence[jax.Array]) -> _Going:
        token, ratio = _chosen(scores, settings, going.step, teacher_share, top_p)
        written, step = going.written, going.step + 1

        def noted(before, new):
            return jax.lax.dynamic_update_slice_in_dim(before, new[:, None], going.step, axis=1)

        done = going.done | jnp.isin(token, settings.eos) | (step >= prompted.limit)
        written = Written(
            noted(written.tokens, token),
            written.length + ~going.done,
            None if ratio is None else noted(written.ratio, ratio),
        )
        return _Going(going.caches, step, done, written)

    def turn(going: _Going) -> _Going:
        state = State((), prompted.padding, going.step, going.written.tokens, going.done)
        found = [
            advance(params, layers, state._replace(cache=cache), config=writer.config)
            for writer, (params, layers), cache in zip(writers, ready, going.caches, strict=True)
        ]
        scores, caches = zip(*found, strict=True)
        return add(going._replace(caches=caches), scores)

    scores, caches = zip(
        *(begun(writer, params) for writer, (params, _) in zip(writers, ready, strict=True)), strict=True
    )
    empty = Written(
        pin_batch(jnp.zeros((batch, room), jnp.int32)),
        jnp.zeros(batch, jnp.int32),
        None if teacher is None else pin_batch(jnp.ones((batch, room), jnp.float32)),
    )
    first = add(_Going(caches, jnp.int32(0), jnp.zeros(batch, bool), empty), scores)
    return jax.lax.while_loop(lambda g: (g.step < room) & ~g.done.all(), turn, first).written


def _chosen(
    scores: Sequence[jax.Array],
    settings: Settings,
    step: Int[Array, ""],
    teacher_share: float | Float[Array, ""],
    top_p: float,
) -> tuple[Int[Array, " batch"], Float[Array, " batch"] | None]:
    """A token of each sequence, and how much less likely it was drawn than the student has it."""
    keys = partial(sequence_keys, settings.key, scores[0].shape[0], step)
    filters = Filters(jnp.int32(0), jnp.float32(top_p), jnp.float32(0)) if top_p < 1 else None
    if len(scores) == 1:
        return next_token(scores[0], keys, settings.temperature, filters), None
    student, teacher = (jax.nn.log_softmax(each / settings.temperature) for each in scores)
    share = jnp.float32(teacher_share)
    mixture = jnp.logaddexp(jnp.log(share) + teacher, jnp.log1p(-share) + student)
    if filters is not None:
        mixture = jax.nn.log_softmax(filtered(mixture, filters))
    token = next_token(mixture, keys, jnp.float32(1))
    own, drawn = (jnp.take_along_axis(each, token[:, None], 1)[:, 0] for each in (student, mixture))
    return token, jnp.exp(own - drawn)


def _ready(writer: Writer, dtype: jnp.dtype) -> tuple[Params, tuple[Params, ...]]:
    """The parameters, and those of each layer apart: matrices in the type of the computation.

    Vectors stay as they are, being added and multiplied in their own type, here as in training.
    """

    def cast(tree):
        return jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, tree)

    others = {name: value for name, value in writer.params.items() if name != "layers"}
    layers = unstack({"layers": writer.params["layers"]}, config=writer.config)
    whole = tuple(gathered(cast(layer), "layers/", unstacked=True) for layer in layers)
    return {**gathered(cast(others)), "layers": writer.params["layers"]}, whole
