"""Perplexity as a run measured it, of models that the run does not know, in JAX or in onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ragjax.config import Compress
from ragjax.data.corpus import Corpus, open_corpus
from ragjax.data.sources import Split
from ragjax.data.tokenizer import fingerprint
from ragjax.evaluation.figures import LONGEST_DEFAULT
from ragjax.evaluation.perplexity import exp, score
from ragjax.evaluation.windows import Windows, corpus_windows
from ragjax.generation.onnx.network import Network
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = 32
"""Windows that onnxruntime reads side by side."""


class HeldOut(NamedTuple):
    """The held-out text of a run, cut as the run cut it."""

    corpus: Corpus
    windows: Windows
    length: int
    """Tokens in the longest window."""
    batch_size: int
    tokenizer: PreTrainedTokenizerBase


def held_out(config: Compress, summary: dict[str, Any], own: Model | OnnxModel) -> HeldOut:
    """What a run measured its models on.

    Args:
      config: the run's.
      summary: its figures.
      own: a model of the run, with its tokenizer.

    Raises:
      InputError: the text is not there any more.
    """
    assert own.tokenizer is not None
    data, wanted = config.data, config.evaluate
    # Runs of before summaries told the length had models of one.
    most = min(LONGEST_DEFAULT, own.config.positions)
    length = summary.get("sequence_length") or wanted.sequence_length or most
    split: Split | None = "validation" if data.validation is None else None
    corpus = open_corpus(data.validation or data.train, split, own.tokenizer, cache=data.cache)
    stride = wanted.stride or max(1, length // 2)
    windows = corpus_windows(corpus, sequence_length=length, stride=stride, max_tokens=wanted.max_tokens)
    return HeldOut(corpus, windows, length, wanted.batch_size, own.tokenizer)


def why_not(model: Model | OnnxModel, text: HeldOut) -> str | None:
    """Why the perplexity of a model would not compare with those of the run; none: it does."""
    if model.tokenizer is None:
        return "it has no tokenizer"
    if fingerprint(model.tokenizer) != fingerprint(text.tokenizer):
        return "its tokenizer is not the run's"
    if model.config.positions < text.length:
        return f"it has {model.config.positions} positions, and the run measured {text.length} tokens at once"
    return None


def perplexity_on(model: Model | OnnxModel, text: HeldOut) -> float:
    """Perplexity per token, as `ragjax eval` has it.

    Args:
      model: of whom `why_not` says nothing.
      text: of the run.
    """
    tokens = text.corpus.tokens
    if isinstance(model, Model):
        return score(model, tokens, text.windows, batch_size=text.batch_size).perplexity
    nats = 0.0
    for start in range(0, len(text.windows.begin), _ROWS):
        nats += _nats(model, tokens, Windows(*(x[start : start + _ROWS] for x in text.windows)))
    return exp(nats / int((text.windows.end - text.windows.first).sum()))


def _nats(model: OnnxModel, tokens: Int[np.ndarray, " n"], windows: Windows) -> float:
    """Of the scored tokens of windows that are read side by side: a step feeds one token to each."""
    rows = range(len(windows.begin))
    network = Network(model, batch=len(rows), room=int((windows.end - windows.begin).max()))
    prompts = [tokens[windows.begin[row] : windows.first[row]].tolist() for row in rows]
    scores, place, total = network.read(prompts), windows.first.copy(), 0.0
    while True:
        going = place < windows.end
        following = tokens[np.minimum(place, windows.end - 1)].astype(np.int32)
        total += float(_cost(scores, following)[going].sum())
        # A window that has ended is fed its last token at one place over and over.
        place = np.minimum(place + 1, windows.end)
        if (place == windows.end).all():
            return total
        scores = network.feed(following, (place - windows.begin).astype(np.int32))


def _cost(scores: np.ndarray, following: Int[np.ndarray, " batch"]) -> np.ndarray:
    """Nats of the token that follows each row of scores."""
    highest = scores.max(-1, keepdims=True)
    total = np.exp(scores - highest).sum(-1, dtype=np.float64)
    return highest[:, 0] + np.log(total) - scores[np.arange(len(following)), following]
