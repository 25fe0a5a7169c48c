"""The figures of a model: how good, how large, how sparse, how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Bool

from ragjax.data.corpus import Corpus, open_corpus
from ragjax.data.encoding import document_ends
from ragjax.data.sources import Split
from ragjax.errors import InputError
from ragjax.evaluation.perplexity import check_length, exp, score
from ragjax.evaluation.speed import Speed, forward_speed
from ragjax.evaluation.text import count_text
from ragjax.evaluation.windows import corpus_windows, scored_tokens
from ragjax.model import Model
from ragjax.models.stand_ins import is_stand_in, named_leaves
from ragjax.sparsity.figures import VOCABULARY_ROWS, sparsity_figures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FLOAT32_BYTES = 4
LONGEST_DEFAULT = 2048
"""Attention over all positions of a model made for 100,000 would take hours and most of a machine."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one model; the keys of `ragjax eval --json`."""

    perplexity: float
    """Per token, over the scored tokens, the end-of-text tokens between documents among them."""
    bits_per_byte: float
    """Bits to encode a byte of UTF-8 text, over the scored tokens of the text itself."""
    word_perplexity: float
    """Per word (as white space parts them), over the same; what lm-eval calls word_perplexity."""
    tokens: int
    """Tokens scored for `perplexity`."""
    parameters: int
    """All parameters, without rows that only pad the vocabulary; a tied output projection once."""
    nonzero_parameters: int
    """Those that are not 0."""
    sparsity_prunable: float
    """Share of zeros among the weights that pruning looks at: the matrices of the blocks."""
    sparsity_total: float
    """Share of zeros among all parameters."""
    stored_bytes: int
    """Bytes of the model's weights on disk; where it is not on disk, of integers with their scales, and of
    float32 weights."""
    tokens_per_second: float
    """Tokens read per second by the forward pass."""
    speed_vs_teacher: float | None
    """Its speed over the teacher's, measured in the same run; none where no teacher was."""
    layers: int
    """Transformer blocks."""


def evaluate(
    model: Model,
    data: str = "builtin:python",
    *,
    split: Split | None = None,
    sequence_length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 8,
    stored_bytes: int | None = None,
    speed: Speed | None = None,
    cache: str | Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Figures:
    """Measures a model on a text.

    Documents stand one after another, each closed by the end-of-text token. Perplexity per token is
    that of this stream, as Hugging Face's guide computes it. Bits per byte and perplexity per word
    leave the end-of-text tokens out of the sum, as they are no text, and count the bytes and words of
    exactly the tokens that were scored: a token without anything before it in any window (the
    first of the stream, or of every window where stride equals length) is missing on both sides.
    So a model to which all 257 tokens of a byte-level vocabulary are equally likely has a perplexity
    of 257 per byte, log2(257) bits.

    Of pairs, each is a window of its own, and the figures are those of the completions: the tokens of
    prompts are read and not scored, and a stride has no meaning.

    Args:
      model: a model with a tokenizer.
      data: source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME; of
        pairs, with two fields, the completions are scored.
      split: side of the source's split; none: all of it, but of builtin:python what is held out.
      sequence_length: tokens the model sees at once; none: all its positions, 2048 at most.
      stride: tokens the window moves; none: half of `sequence_length`.
      max_tokens: tokens scored at most, from the start; none: all.
      batch_size: windows computed at once.
      stored_bytes: size of the model's files of weights; none: what its parameters take, in float32 those
        that are not quantized.
      speed: from `forward_speed`, measured side by side with a teacher; none: measured here, alone.
      cache: folder of the token cache; none: RAGJAX_CACHE or ~/.cache/ragjax.
      mesh: devices over which the parameters lie; none: one device.

    Returns:
      The figures. Sparsity is logical: zeros make nothing smaller or faster by themselves.

    Raises:
      InputError: a model without tokenizer, a source that cannot be read, or windows that do not
        fit the model.

    Example:
      >>> from ragjax.data import train_tokenizer
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> tokenizer = train_tokenizer(["some text to learn from"], vocab_size=300)
      >>> model = Model(config, init_params(config, seed=0), tokenizer)
      >>> figures = evaluate(model, "builtin:python", max_tokens=500)
      >>> figures.tokens, 250 < figures.perplexity < 350  # it knows nothing yet
      (500, True)
    """
    if model.tokenizer is None:
        raise InputError(
            "Evaluation needs a model with a tokenizer, found one without: load one that has tokenizer files."
        )
    given = {"sequence_length": sequence_length, "stride": stride, "max_tokens": max_tokens}
    given["batch_size"] = batch_size
    wrong = [f"{name} must be at least 1, found {n}" for name, n in given.items() if n is not None and n < 1]
    if wrong:
        raise InputError(f"Cannot evaluate: {'; '.join(wrong)}.")
    length = default_length(model) if sequence_length is None else sequence_length
    stride = max(1, length // 2) if stride is None else stride
    check_length(model, length)
    corpus = open_corpus(data, split, model.tokenizer, cache=cache)
    before, after = document_ends(model.tokenizer)
    separators = (*before, *after)
    windows = corpus_windows(corpus, sequence_length=length, stride=stride, max_tokens=max_tokens)
    found = score(model, corpus.tokens, windows, batch_size=batch_size, separators=separators, mesh=mesh)
    text_bytes, words = _text_size(model.tokenizer, corpus, scored_tokens(windows), separators)
    counts = sparsity_figures(model.params, model.config)
    measured = speed or forward_speed({"model": model}, batch=1, length=length)["model"]
    return Figures(
        perplexity=found.perplexity,
        bits_per_byte=found.text_nats / math.log(2) / text_bytes,
        word_perplexity=exp(found.text_nats / words),
        tokens=found.tokens,
        parameters=counts.parameters,
        nonzero_parameters=counts.nonzero_parameters,
        sparsity_prunable=counts.sparsity_prunable,
        sparsity_total=counts.sparsity_total,
        stored_bytes=_weight_bytes(model, counts.parameters) if stored_bytes is None else stored_bytes,
        tokens_per_second=measured.tokens_per_second,
        speed_vs_teacher=speed.ratio if speed else None,
        layers=model.config.layers,
    )


def _weight_bytes(model: Model, parameters: int) -> int:
    """Bytes of the parameters without rows that only pad the vocabulary, as a file would have them."""
    kept = [(name, leaf) for name, leaf in named_leaves(model.params) if is_stand_in(leaf)]
    small = real = 0
    for name, leaf in kept:
        # A table's rows are all alike; the other stand-ins have no rows that pad.
        share = model.config.vocab_size / leaf.shape[0] if name in VOCABULARY_ROWS else 1
        small += round(share * sum(array.nbytes for array in jax.tree.leaves(leaf)))
        real += round(share * leaf.size)
    return small + (parameters - real) * _FLOAT32_BYTES


def default_length(*models: Model) -> int:
    """Tokens at once with which models are compared where nobody says: their positions, 2048 at most."""
    return min(LONGEST_DEFAULT, *(model.config.positions for model in models))


def _text_size(
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    scored: Bool[np.ndarray, " n"],
    separators: tuple[int, ...],
) -> tuple[float, float]:
    """Bytes and words of the scored tokens; their share of the corpus where a token's bytes are unknown."""
    tokens, starts = corpus.tokens[: len(scored)], corpus.completions
    starts = None if starts is None else starts[starts < len(tokens)]
    counts = count_text(tokens, scored, tokenizer, separators, starts)
    if counts is None:
        text = scored & ~np.isin(tokens, separators)
        share = float(text.sum()) / (len(corpus.tokens) - corpus.documents * len(separators))
        return corpus.utf8_bytes * share, corpus.words * share
    if not counts.words:
        raise InputError(
            f"The {int(scored.sum())} scored tokens begin no word, so that there is no perplexity per word: "
            "give a longer text or a larger max_tokens."
        )
    return counts
