"""What a student learns from: the losses of one batch, summed by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ragjax.config import Distill
from ragjax.data.batches import Batch
from ragjax.distillation.inner import Network, inner_losses
from ragjax.distillation.losses import Mixing
from ragjax.distillation.ramp import at_step
from ragjax.distillation.vocabulary import Head, Teacher, vocabulary_loss
from ragjax.models.decoder import DecoderOutput, Params, output_table
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder

Terms = dict[str, Float[Array, ""]]
"""Loss terms of a batch by name, before their weights; each the mean over real tokens."""


@dataclass(frozen=True)
class Objective:
    """The loss of a student of one shape under teachers of others, or under none.

    Attributes:
      student: the model that learns.
      teachers: the models it learns from, which run in the step; none where no loss asks for one, or where
        what is known of the teacher comes with the batch. Losses inside the networks look at the first.
      weights: weights of the losses.
      shares: what each teacher counts; none: all alike, 1 together.
      dtype: type all networks compute in.
      remat: what the student's backward pass computes again.
      shards: parts the batch is split into over the mesh.
      steps: of the training, which weights that change go along.
    """

    student: DecoderConfig
    teachers: tuple[DecoderConfig, ...]
    weights: Distill
    shares: tuple[float, ...] = ()
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    shards: int = 1
    steps: int = 1

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss with a weight looks at a teacher."""
        return bool(self.weights.divergences or self.weights.inner)

    def __call__(
        self,
        params: Params,
        teachers: Sequence[Params],
        batch: Batch,
        token_weights: Float[Array, "batch seq"],
        dropout_key: jax.Array | None = None,
        step: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, ""], Terms]:
        """The weighted sum of the losses, and the losses themselves.

        Args:
          params: the student's, with its projections where hidden states of unlike widths are compared.
          teachers: those of the teachers.
          batch: tokens and targets, and what is known of a teacher that does not run.
          token_weights: what each token counts; they sum to 1 over the whole step.
          dropout_key: random key of the student's dropout; none: without dropout.
          step: number of the step, from 0.
        """
        weights = self.weights
        capture = bool(weights.inner)
        run = partial(
            run_decoder, tokens=batch.tokens, positions=batch.positions, segments=batch.segments,
            dtype=self.dtype, capture=capture,
        )  # fmt: skip
        student = run(self.student, params, remat=self.remat, dropout_key=dropout_key)
        taught: list[DecoderOutput] = []
        heads: list[Teacher] = []
        if batch.known is not None:
            heads.append(batch.known)
        elif self.needs_teacher:
            for config, frozen in zip(self.teachers, teachers, strict=True):
                frozen = jax.lax.stop_gradient(frozen)
                taught.append(jax.lax.stop_gradient(run(config, frozen)))
                heads.append(Head(taught[-1].hidden, output_table(frozen)))

        def now(ramp):
            return at_step(ramp, step, self.steps)

        # Of its own words the student learns no likelihood: that gradient is 0 in the mean.
        text = 1.0 if batch.written is None else 1 - batch.written
        loss, terms = vocabulary_loss(
            Head(student.hidden, output_table(params)),
            jnp.asarray(batch.targets),
            token_weights,
            vocab_size=self.student.vocab_size,
            coefficients={
                "cross_entropy": now(weights.cross_entropy) * text,
                **{name: now(weight) for name, weight in weights.divergences.items()},
            },
            teachers=heads,
            shares=self.shares or (1 / max(len(heads), 1),) * len(heads),
            temperature=now(weights.temperature),
            mixing=Mixing(weights.skew, weights.teacher_share),
            top_k=weights.top_k,
            chunk_tokens=weights.chunk_tokens,
            shards=self.shards,
        )
        if capture:
            inner = inner_losses(
                Network(self.student, params, student),
                Network(self.teachers[0], jax.lax.stop_gradient(teachers[0]), taught[0]),
                token_weights,
                weights=weights,
                segments=batch.segments,
            )
            loss = loss + sum(now(weights.inner[name]) * value for name, value in inner.items())
            terms |= inner
        return loss, jax.lax.stop_gradient(terms)
