"""A language model in memory: one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ragjax.errors import InputError
from ragjax.models.decoder import Params, logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder
from ragjax.models.stand_ins import has_stand_ins, made_whole, named_leaves

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """A decoder, its parameters, its tokenizer, and what was done to it.

    Attributes:
      config: the architecture.
      params: float32 parameters, in the layout of `ragjax.models.decoder`; of a quantized model some are
        integers with scales.
      tokenizer: Hugging Face tokenizer of the same vocabulary; none for models of raw token ids.
      history: what was done to the model, oldest first: JSON objects, kept in `ragjax.json`.
    """

    config: DecoderConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase | None = None
    history: tuple[dict[str, Any], ...] = field(default=())

    @property
    def parameters(self) -> int:
        """How many it has."""
        return sum(leaf.size for _, leaf in named_leaves(self.params))

    def __call__(self, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq vocab"]:
        """Float32 logits of the token after each position.

        Raises:
          InputError: there are more tokens than the model has positions.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        if tokens.shape[1] > self.config.positions:
            raise InputError(
                f"The model has {self.config.positions} positions, found {tokens.shape[1]} tokens: "
                "give it fewer, or windows of them."
            )
        return _logits(self.params, tokens, config=self.config)

    def in_floats(self) -> Model:
        """The same with float32 weights in the place of quantized ones, and a line in its history."""
        if not has_stand_ins(self.params):
            return self
        return replace(self, params=made_whole(self.params), history=(*self.history, {"did": "dequantize"}))


def check_floats(model: Model) -> None:
    """Refuses a quantized model where weights are to be changed.

    Raises:
      InputError: some weights are integers.
    """
    if has_stand_ins(model.params):
        raise InputError(
            "The model is quantized, and floats are wanted here: give what it was made from, or "
            "model.in_floats(), or read it with load(..., floats=True)."
        )


@partial(jax.jit, static_argnames="config")
def _logits(params: Params, tokens: jax.Array, *, config: DecoderConfig) -> jax.Array:
    return logits(params, run_decoder(config, params, tokens).hidden, config)
