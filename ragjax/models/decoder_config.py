"""What a decoder computes, as data: every field that changes its numbers."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True)
class DecoderConfig:
    """The shape and arithmetic of a decoder-only Transformer."""

    vocab_size: int
    """Tokens the model knows; arrays hold `padded_vocab_size` rows."""
    positions: int
    """Learned positions: the longest sequence, in tokens."""
    width: int
    """Residual width."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads of width // heads each."""
    mlp_width: int
    """Neurons between the two projections of a block's MLP."""
    activation: str = "gelu_new"
    """Nonlinearity of the MLP, by its Hugging Face name."""
    norm_epsilon: float = 1e-5
    """Added to the variance in LayerNorm."""
    tied: bool = True
    """Whether the token embedding is also the output projection."""
    scale_attention: bool = True
    """Divide attention scores by the root of the head width."""
    scale_attention_by_layer: bool = False
    """Divide attention scores of layer i (from 0) by i + 1."""
    upcast_attention: bool = False
    """Ask other runtimes for float32 attention scores; here they always are."""
    windows: tuple[int, ...] = ()
    """Attention window of each layer in tokens, repeated to the depth; 0 is dense (GPT-3: dense and
    banded in turn)."""
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    initializer_range: float = 0.02
    """Standard deviation of new weights."""
    bos_token: int | None = None
    """Token id that begins a text."""
    eos_token: int | tuple[int, ...] | None = None
    """Token id, or ids, that end one."""

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of 128."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The window of each of the `layers` layers; 0 where attention is dense."""
        pattern = self.windows or (0,)
        return tuple(pattern[i % len(pattern)] for i in range(self.layers))

    @property
    def attention_scales(self) -> tuple[float, ...]:
        """What the scores of each layer are multiplied by."""
        scale = self.head_width**-0.5 if self.scale_attention else 1.0
        return tuple(scale / (i + 1 if self.scale_attention_by_layer else 1) for i in range(self.layers))
