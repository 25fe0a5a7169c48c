"""Batches of which the student writes some itself: the text's, continued, or what it wrote before.

Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
https://arxiv.org/abs/2306.13649; Ko et al., "DistiLLM", https://arxiv.org/abs/2402.03898.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from ragjax.config import OnPolicy, Train
from ragjax.data.batches import Batch
from ragjax.data.permutation import mixed
from ragjax.distillation.projections import without_projections
from ragjax.distillation.ramp import at_step, number_at
from ragjax.generation.decoding import Settings
from ragjax.generation.rollout import Writer, write
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.hosts import global_array, to_host
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.rules import place, shardings
from ragjax.training.replay import Memory, drawn, nothing_kept, put
from ragjax.training.state import TrainState
from ragjax.training.written_rows import batch_of, prompts_of, rows_of

Kind = Literal["text", "written", "replayed"]

_COIN = 2
"""Keys of what is drawn by the host, apart from those of the batches."""
_DRAWS = 0x77726974
"""Keys of what the devices draw, apart from those of dropout and masks."""
_WHICH = 0x77686963
"""Keys of the prompts that are chosen, apart from those of the tokens."""


class OwnWriting:
    """Decides for every step what it learns from, and has the student write it.

    The decision is a function of the seed and the step, and of how often the validation loss rose: alike on
    all hosts, and in a run that was resumed.
    """

    def __init__(
        self,
        on_policy: OnPolicy,
        *,
        student: DecoderConfig,
        teacher: DecoderConfig,
        train: Train,
        sequence_length: int,
        longest_prompt: int,
        own_prompts: bool = False,
        isolated: bool = False,
        ends: Sequence[int],
        seed: int,
        mesh: Mesh,
    ):
        """Prepares the programs, which are compiled when first needed.

        Args:
          on_policy: how much is written, and how.
          student: the architecture of the one that writes.
          teacher: that of the one that may write with it.
          train: the training.
          sequence_length: tokens in a sequence.
          longest_prompt: tokens of the prompts, or at most so many.
          own_prompts: sequences are of pairs of prompt and completion; else all have prompts alike.
          isolated: whether batches number their documents.
          ends: tokens that end a text.
          seed: of decisions and draws.
          mesh: the devices.
        """
        self._on_policy, self._train, self._mesh, self._seed = on_policy, train, mesh, seed
        self._student, self._teacher = student, teacher
        self._length, self._longest, self._own = sequence_length, longest_prompt, own_prompts
        self._isolated = isolated
        self._ends = np.asarray(ends or (-1,), np.int32)
        self._raised, self._loss, self._count = np.float32(0), np.float32(np.inf), 0

        rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, BATCH_AXES), ()))
        numbered = rows if isolated else None
        factored = rows if on_policy.mixes else None
        batch = Batch(rows, rows, rows, numbered, numbered, None, factored, whole)  # type: ignore[arg-type]
        self._memory = shardings(jax.eval_shape(self._new_memory), mesh)
        out = (self._memory, batch)
        self._write = jax.jit(self._written, out_shardings=out, donate_argnames="memory")
        self._replay = jax.jit(self._replayed, out_shardings=out, donate_argnames="memory")
        self._text = self._marks_of_text()

    def memory(self) -> Memory:
        """What is remembered before the first step, on the mesh."""
        # By a program, so that every array is one of its own, and can be given away.
        return jax.jit(self._new_memory, out_shardings=self._memory)()

    def begin(self, state: TrainState, validate: Callable[[Params], float]) -> TrainState:
        """Takes up what the state remembers; before the first step it may need the validation loss."""
        memory = _memory(state)
        self._raised, self._loss = to_host((memory.raised, memory.loss))
        self._count = 0 if memory.kept is None else int(to_host(memory.kept.total))
        if not self._on_policy.rise or np.isfinite(self._loss):
            return state
        return self._remembering(state, self._raised, np.float32(validate(state.params)))

    def validated(self, state: TrainState, loss: float) -> TrainState:
        """Raises the share of written batches where the validation loss has risen."""
        on_policy = self._on_policy
        if not on_policy.rise or not loss >= self._loss + on_policy.rise_over:
            return state
        raised = np.minimum(self._raised + np.float32(on_policy.rise), np.float32(1))
        return self._remembering(state, raised, np.float32(loss))

    def kind(self, step: int) -> Kind:
        """What the batch of `step`, counted from 0, is."""
        height = float(mixed(np.uint64(self._seed % 2**64), step, _COIN)) / 2.0**64
        on_policy, steps = self._on_policy, self._train.steps
        share = min(number_at(on_policy.share, step, steps) + float(self._raised), 1.0)
        if height >= share:
            return "text"
        again = number_at(on_policy.replay, step, steps)
        return "replayed" if self._count and height >= share * (1 - again) else "written"

    def batch(
        self, kind: Kind, state: TrainState, teachers: Sequence[Params], text: Batch
    ) -> tuple[TrainState, Batch]:
        """The batch of a kind, in arrays laid out as those of `text`, and the state that remembers it."""
        if kind == "text":
            factors, written = self._text
            return state, text._replace(factors=factors, written=written)
        memory = _memory(state)
        if kind == "replayed":
            memory, batch = self._replay(memory, state.step)
        else:
            teacher = teachers[0] if self._on_policy.mixes else None
            memory, batch = self._write(without_projections(state.params), teacher, text, memory, state.step)
            self._count += self._train.batch_size
        return state._replace(memory=memory), batch

    def _written(
        self, params: Params, teacher: Params | None, text: Batch, memory: Memory, step: Int[Array, ""]
    ) -> tuple[Memory, Batch]:
        """The student goes on from the prompts of the text."""
        on_policy, new = self._on_policy, self._on_policy.new_tokens
        which = jax.random.fold_in(self._key(step), _WHICH) if self._own else None
        prompted = prompts_of(text, longest=self._longest, new_tokens=new, one_of_pairs=which)
        # A sequence and its last target, but for the shortest prompt there may be.
        shortest = 1 if self._own or self._isolated else self._longest
        room = self._length + 1 - shortest
        written = write(
            Writer(self._student, params),
            prompted,
            Settings(jnp.float32(on_policy.temperature), self._key(step), jnp.asarray(self._ends)),
            room=min(new or room, room),
            teacher=None if teacher is None else Writer(self._teacher, teacher),
            teacher_share=at_step(on_policy.teacher_share, step, self._train.steps),
            top_p=on_policy.top_p,
            dtype=jnp.dtype(self._train.dtype),
        )
        rows = rows_of(prompted, written, seq=self._length)
        kept = None if memory.kept is None else put(memory.kept, rows)
        return memory._replace(kept=kept, steps=memory.steps + 1), self._batch_of(rows)

    def _replayed(self, memory: Memory, step: Int[Array, ""]) -> tuple[Memory, Batch]:
        """Some of what was written before."""
        assert memory.kept is not None
        rows = drawn(memory.kept, self._train.batch_size, self._key(step))
        return memory._replace(steps=memory.steps + 1), self._batch_of(rows)

    def _batch_of(self, rows) -> Batch:
        return batch_of(
            rows, accumulate=self._train.accumulate, isolated=self._isolated,
            alike=self._on_policy.sequences_alike,
        )  # fmt: skip

    def _key(self, step: Int[Array, ""]) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), _DRAWS), step)

    def _new_memory(self) -> Memory:
        on_policy = self._on_policy
        kept = None
        if on_policy.replays:
            kept = nothing_kept(on_policy.capacity, seq=self._length, factors=on_policy.mixes)
        return Memory(kept, jnp.int32(0), jnp.float32(0), jnp.float32(jnp.inf))

    def _remembering(self, state: TrainState, raised: np.float32, loss: np.float32) -> TrainState:
        self._raised, self._loss = raised, loss
        told = place({"raised": np.asarray(raised), "loss": np.asarray(loss)}, self._mesh)
        return state._replace(memory=_memory(state)._replace(**told))

    def _marks_of_text(self) -> tuple[jax.Array | None, jax.Array]:
        """What batches of text have besides, so that one program takes them and those that are written."""
        train = self._train
        written = place(np.zeros(train.accumulate, np.float32), self._mesh)
        if not self._on_policy.mixes:
            return None, written
        shape = (train.accumulate, train.batch_size // train.accumulate, self._length)
        count = shape[1]

        def ones(rows: slice) -> np.ndarray:
            return np.ones((shape[0], len(range(*rows.indices(count))), shape[2]), np.float32)

        return global_array(shape, ones, self._mesh, axis=1), written


def _memory(state: TrainState) -> Memory:
    assert state.memory is not None
    return state.memory
