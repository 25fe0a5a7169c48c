"""A language model as a graph that onnxruntime has opened: one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ragjax.models.decoder_config import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class OnnxModel:
    """A decoder whose weights are inside onnxruntime: it writes texts, and cannot be trained or changed.

    Attributes:
      config: the architecture.
      session: `onnxruntime.InferenceSession` of a graph as `ragjax.interchange.onnx` writes it.
      tokenizer: Hugging Face tokenizer of the same vocabulary; none for models of raw token ids.
      history: what was done to the model, oldest first.
      parameters: how many it has.
    """

    config: DecoderConfig
    session: Any
    tokenizer: PreTrainedTokenizerBase | None = None
    history: tuple[dict[str, Any], ...] = field(default=())
    parameters: int = 0
