"""What a student learns from: the losses of one batch, summed by weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ragjax.config import Distill
from ragjax.data.batches import Batch
from ragjax.distillation.hidden import hidden_mse, uniform_pairs
from ragjax.distillation.vocabulary import Head, vocabulary_loss
from ragjax.models.decoder import DecoderOutput, Params, output_table
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder

Terms = dict[str, Float[Array, ""]]
"""Loss terms of a batch by name, before their weights; each the mean over real tokens."""


@dataclass(frozen=True)
class Objective:
    """The loss of a student of one shape under a teacher of another, or under none.

    Attributes:
      student: the model that learns.
      teacher: the model it learns from; none where no loss asks for one.
      weights: weights of the losses.
      dtype: type both networks compute in.
      remat: what the student's backward pass computes again.
      shards: parts the batch is split into over the mesh.
    """

    student: DecoderConfig
    teacher: DecoderConfig | None
    weights: Distill
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    shards: int = 1

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss with a weight looks at the teacher."""
        return bool(self.weights.forward_kl or self.weights.hidden_mse)

    def __call__(
        self,
        params: Params,
        teacher_params: Params | None,
        batch: Batch,
        token_weights: Float[Array, "batch seq"],
        dropout_key: jax.Array | None = None,
    ) -> tuple[Float[Array, ""], Terms]:
        """The weighted sum of the losses, and the losses themselves.

        Args:
          params: the student's.
          teacher_params: the teacher's, where `needs_teacher`.
          batch: tokens and targets.
          token_weights: what each token counts; they sum to 1 over the whole step.
          dropout_key: random key of the student's dropout; none: without dropout.
        """
        weights = self.weights
        capture = bool(weights.hidden_mse)
        run = partial(
            run_decoder, tokens=batch.tokens, positions=batch.positions, segments=batch.segments,
            dtype=self.dtype, capture=capture,
        )  # fmt: skip
        student = run(self.student, params, remat=self.remat, dropout_key=dropout_key)
        taught: DecoderOutput | None = None
        teacher_head: Head | None = None
        if self.needs_teacher:
            assert self.teacher is not None
            assert teacher_params is not None
            frozen = jax.lax.stop_gradient(teacher_params)
            taught = jax.lax.stop_gradient(run(self.teacher, frozen))
            if weights.forward_kl:
                teacher_head = Head(taught.hidden, output_table(frozen))

        loss, terms = vocabulary_loss(
            Head(student.hidden, output_table(params)),
            jnp.asarray(batch.targets),
            token_weights,
            vocab_size=self.student.vocab_size,
            cross_entropy=weights.cross_entropy,
            forward_kl=weights.forward_kl,
            temperature=weights.temperature,
            teacher=teacher_head,
            chunk_tokens=weights.chunk_tokens,
            shards=self.shards,
        )
        named = {"cross_entropy": terms.cross_entropy}
        if weights.forward_kl:
            named["forward_kl"] = terms.forward_kl
        if capture:
            own, others = student.layers, taught.layers if taught else None
            assert own is not None
            assert others is not None
            pairs = uniform_pairs(len(own), len(others))
            named["hidden_mse"] = hidden_mse(own, others, token_weights, pairs=pairs)
            loss = loss + weights.hidden_mse * named["hidden_mse"]
        return loss, jax.lax.stop_gradient(named)
