"""What a decoder computes, as data: every field that changes its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ragjax.errors import InputError

VOCABULARY_MULTIPLE = 128


def _check_choices(config: object, **choices: tuple[str, ...]) -> None:
    wrong = [
        f"{name} must be one of {', '.join(known)}, found {getattr(config, name)!r}"
        for name, known in choices.items()
        if getattr(config, name) not in known
    ]
    if wrong:
        raise InputError(f"{type(config).__name__}: {'; '.join(wrong)}.")


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are changed for texts longer than those of the first training."""

    kind: str
    """"linear" divides all by `factor`; "llama3" those of long waves; "dynamic" none up to `positions`."""
    factor: float = 1.0
    """How much longer the texts are."""
    low_frequency_factor: float = 1.0
    """llama3: waves longer than `original_positions` over this are divided."""
    high_frequency_factor: float = 4.0
    """llama3: waves shorter than `original_positions` over this are not; between the two, in part."""
    original_positions: int = 8192
    """llama3: tokens of the first training's texts."""

    def __post_init__(self) -> None:
        _check_choices(self, kind=("linear", "dynamic", "llama3"))


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding: queries and keys turned by an angle that grows with the position.

    Su et al., "RoFormer", https://arxiv.org/abs/2104.09864. The two halves of a head are the pairs.
    """

    base: float = 10000.0
    """Wave lengths, over 2 pi, run from 1 to this."""
    width: int | None = None
    """Leading values of a head that are turned; none: all."""
    scaling: RotaryScaling | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """The shape and arithmetic of a decoder-only Transformer."""

    vocab_size: int
    """Tokens the model knows; arrays hold `padded_vocab_size` rows."""
    positions: int
    """The longest sequence, in tokens."""
    width: int
    """Residual width."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads."""
    mlp_width: int
    """Neurons between the two projections of a block's MLP."""
    head_size: int | None = None
    """Width of a head; none: width // heads."""
    kv_heads: int | None = None
    """Heads of keys and values, each for as many query heads; none: as many as `heads`."""
    embedding_width: int | None = None
    """Width of the tokens' table, projected to and from `width`; none: `width`, without projection."""
    learned_positions: bool = True
    """Whether each position has an embedding of its own, added to the token's."""
    position_offset: int = 0
    """Rows of the table of positions before that of the first position."""
    rotary: Rotary | None = None
    """Positions turn queries and keys; none: they do not."""
    norm: str = "layer"
    """"layer" for LayerNorm, "rms" for RMSNorm."""
    residual: str = "pre_norm"
    """A block's order: "pre_norm" x + attention(norm(x)), then x + mlp(norm(x)); "parallel"
    x + attention(norm(x)) + mlp(norm(x)); "post_norm" norm(x + attention(x)), then norm(x + mlp(x))."""
    final_norm: bool = True
    """Whether the last block's output is normalized."""
    gated: bool = False
    """MLP is down(activation(gate(x)) * up(x)), not down(activation(up(x)))."""
    attention_bias: bool = True
    """Biases on queries, keys and values."""
    attention_out_bias: bool = True
    """A bias on the attention's output projection."""
    mlp_bias: bool = True
    """Biases in the MLP."""
    activation: str = "gelu_new"
    """Nonlinearity of the MLP, by its Hugging Face name."""
    norm_epsilon: float = 1e-5
    """Added to the variance in norms."""
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

    def __post_init__(self) -> None:
        _check_choices(self, norm=("layer", "rms"), residual=("pre_norm", "parallel", "post_norm"))

    def spelled_out(self) -> DecoderConfig:
        """The same architecture with nothing left to defaults that follow from other fields."""
        rotary = self.rotary
        if rotary is not None and rotary.width == self.head_width:
            rotary = replace(rotary, width=None)
        return replace(
            self,
            windows=self.layer_windows if any(self.layer_windows) else (),
            head_size=self.head_width,
            kv_heads=self.key_value_heads,
            rotary=rotary,
        )

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_size or self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def token_width(self) -> int:
        """Width of the tables of tokens and of what scores them."""
        return self.embedding_width or self.width

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
