"""What the seconds of turns tell: medians over rounds, and ratios paired within a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ragjax.benchmark.turns import Round
from ragjax.benchmark.weights import WeightBytes
from ragjax.config import Bench


@dataclass(frozen=True)
class Figures:
    """How fast a model writes at a batch; each is the median over rounds."""

    first_token_seconds: float
    """From the prompts to the first new token of each."""
    prefill_tokens_per_second: float
    """Tokens of all prompts over those seconds."""
    decode_tokens_per_second: float
    """New tokens of all sequences, the first ones apart."""
    bytes_per_token: float
    """Bytes of weights that a step reads, over the tokens it writes."""
    share_of_bandwidth: float
    """Bytes of weights read in a second while decoding, over what the machine reads."""
    prefill_ratio: float
    """Its speed over that of the first model."""
    decode_ratio: float


def figures(rounds: Sequence[Round], model: int, batch: int, weights: WeightBytes, options: Bench) -> Figures:
    """Figures of a model at a batch.

    Args:
      rounds: what was measured.
      model: its number; that of the first is 0.
      batch: prompts at once.
      weights: what it reads.
      options: as in the measurement.
    """
    taken = [each.turns[batch][model] for each in rounds]
    reference = [each.turns[batch][0] for each in rounds]
    steps, read = options.new_tokens - 1, weights.of_step(batch)
    first = median(turn.first for turn in taken)
    pairs = list(zip(reference, taken, strict=True))
    return Figures(
        first_token_seconds=first,
        prefill_tokens_per_second=batch * options.prompt_tokens / first,
        decode_tokens_per_second=batch * steps / median(turn.rest for turn in taken),
        bytes_per_token=read / batch,
        share_of_bandwidth=median(
            read * steps / turn.rest / each.bandwidth for turn, each in zip(taken, rounds, strict=True)
        ),
        prefill_ratio=median(other.first / own.first for other, own in pairs),
        decode_ratio=median(other.rest / own.rest for other, own in pairs),
    )
