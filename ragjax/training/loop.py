"""The loop around the step: feeds it, reads its metrics one step late, saves, and stops when asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import optax

from ragjax.config import Train
from ragjax.data.batches import Batches
from ragjax.models.decoder import Params
from ragjax.sparsity.masks import mask_sparsity
from ragjax.training.checkpoints import Checkpoints
from ragjax.training.feed import batch_on_mesh
from ragjax.training.interrupts import Interrupts
from ragjax.training.metrics import MetricsLog, Progress
from ragjax.training.on_policy import Kind, OwnWriting
from ragjax.training.state import TrainState, abstract_state
from ragjax.training.step import Metrics, Step


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the same command goes on."""


class Diverged(Exception):
    """Too many steps in a row had a gradient that was not finite; the saved parameters are finite."""


class _Pending(NamedTuple):
    """A step whose metrics have not been read."""

    done: int
    metrics: Metrics
    sparsity: jax.Array | None
    written: jax.Array | None
    """Steps so far whose batch the student wrote."""
    kind: Kind


@dataclass(frozen=True)
class Training:
    """One training, ready to run.

    Attributes:
      stage: its name in the metrics.
      train: how long, and how often it reports and saves.
      step: the compiled step.
      schedule: learning rate of each optimizer step.
      batches: training batches.
      validate: validation loss of the parameters, in nats a token.
      mesh: the devices.
      log: where metrics are written.
      progress: where they are shown.
      checkpoints: where the state is saved.
      interrupts: whether someone asked to stop.
      writing: what the student writes itself; none: nothing.
    """

    stage: str
    train: Train
    step: Step
    schedule: optax.Schedule
    batches: Batches
    validate: Callable[[Params], float]
    mesh: jax.sharding.Mesh
    log: MetricsLog
    progress: Progress
    checkpoints: Checkpoints
    interrupts: Interrupts
    writing: OwnWriting | None = None

    def run(self, state: TrainState, teachers: tuple[Params, ...] = ()) -> TrainState:
        """Trains from `state`, or from the latest sound checkpoint, to the last step.

        Args:
          state: the state before the first step; donated.
          teachers: parameters of the teachers, where the objective needs them.

        Raises:
          Interrupted: stopped on request, after saving.
          Diverged: `max_bad_steps` steps in a row were skipped, after saving.
        """
        restored = self.checkpoints.restore(abstract_state(state))
        if restored is not None:
            _, state = restored
        start = int(state.step)
        self.progress.begin(start, seconds=self.log.resume(self.stage, start))
        if self.writing is not None:
            state = self.writing.begin(state, self.validate)

        pending: _Pending | None = None
        for done in range(start + 1, self.train.steps + 1):
            batch = batch_on_mesh(self.batches, done - 1, self.mesh, accumulate=self.train.accumulate)
            kind: Kind = "text"
            if self.writing is not None:
                kind = self.writing.kind(done - 1)
                state, batch = self.writing.batch(kind, state, teachers, batch)
            state, metrics = self.step(state, teachers, batch)
            # While the step just dispatched runs, the one before it is read.
            if pending is not None:
                self._read(pending, state)
            due = self._due(done, self.train.log_every)
            pending = _Pending(done, metrics, *(_seen(state) if due else (None, None)), kind)

            loss = None
            if self._due(done, self.train.evaluate_every):
                self._read(pending, state)
                pending, loss = None, self._evaluate(done, state)
                if self.writing is not None:
                    state = self.writing.validated(state, loss)
            stop = self.interrupts.requested()
            if stop or self._due(done, self.train.checkpoint_every):
                self.checkpoints.save(done, state, loss=loss)
            if stop and done < self.train.steps:
                if pending is not None:
                    self._read(pending, state)
                self.checkpoints.wait()
                raise Interrupted(
                    f"{self.stage} stopped at step {done} of {self.train.steps}; its state is saved"
                )
        self.checkpoints.wait()
        return state

    def _due(self, done: int, every: int) -> bool:
        return done == self.train.steps or (every > 0 and done % every == 0)

    def _evaluate(self, done: int, state: TrainState) -> float:
        loss = self.validate(state.params)
        self.log.write(self.stage, done, time=self.progress.seconds, validation_loss=loss)
        self.progress.validation(done, loss)
        return loss

    def _read(self, pending: _Pending, state: TrainState) -> None:
        done, metrics, sparsity, written, kind = pending
        values = jax.device_get(metrics)
        if values.bad_in_a_row >= self.train.max_bad_steps:
            self.checkpoints.save(int(state.step), state, loss=None)
            self.checkpoints.wait()
            self.log.write(self.stage, done, time=self.progress.seconds, skipped=int(values.skipped))
            raise Diverged(
                f"{self.stage}: {values.bad_in_a_row} steps in a row up to step {done} had a loss "
                "or gradient that was not finite. The parameters were left as before them and are saved. "
                "Lower the learning rate, clip harder, or compute in float32, and start in a new folder."
            )
        if not self._due(done, self.train.log_every):
            return
        figures = {name: float(value) for name, value in values.terms.items()}
        rate, tokens = self.progress.steps_per_second(done), float(values.tokens)
        if written is not None:
            figures = _of_writing(figures, kind, tokens / self.train.batch_size)
            figures["on_policy"] = float(written) / done
            # The pace of all steps is told in tokens of text: written ones differ from step to step.
            tokens = self.batches.tokens_per_batch
        figures |= {
            "loss": float(values.loss),
            "gradient_norm": float(values.gradient_norm),
            "learning_rate": float(self.schedule(done - 1 - int(values.skipped))),
            "sparsity": 0.0 if sparsity is None else float(sparsity),
            "skipped": int(values.skipped),
            "tokens_per_second": tokens * rate,
        }
        read = done * self.batches.tokens_per_batch
        self.log.write(self.stage, done, time=self.progress.seconds, tokens=read, **figures)
        self.progress.line(done, figures, steps_per_second=rate)


def _seen(state: TrainState) -> tuple[jax.Array | None, jax.Array | None]:
    """What a line of figures tells of the state, before the next step takes it."""
    return _sparsity(state), None if state.memory is None else state.memory.steps + 0


def _of_writing(terms: dict[str, float], kind: Kind, length: float) -> dict[str, float]:
    """The losses of a batch by its kind: the likelihood of the student's own words is not that of a text."""
    if kind == "text":
        return terms
    named = {name if name != "cross_entropy" else "own_cross_entropy": x for name, x in terms.items()}
    return named | {"written_tokens": length}


def _sparsity(state: TrainState) -> jax.Array | None:
    """Share of the prunable weights whose mask is 0, still on the device; none where nothing is pruned."""
    masks = optax.tree.get(state.opt_state, "masks")
    return None if masks is None else mask_sparsity(masks)
