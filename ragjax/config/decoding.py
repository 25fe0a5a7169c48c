"""How tokens follow a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ragjax.config.checked import Checked, at_least

EarlyStopping: TypeAlias = Literal[True, False, "never"]
CacheDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class Decoding(Checked):
    """How tokens are chosen, and when a text ends.

    Names and meanings are those of transformers' `GenerationConfig` where it has them.
    """

    max_new_tokens: int = 64
    """Tokens to add at most."""
    temperature: float = 0.0
    """0 takes the likeliest token; above it one is drawn from softmax(scores / temperature)."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have this probability; 1: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the likeliest; 0: from all."""
    repetition_penalty: float = 1.0
    """Divides positive scores of tokens that were there before, and multiplies negative ones; 1: neither."""
    seed: int = 0
    """Of the draws; a prompt at one place in the list draws the same whatever the others are."""
    beams: int = 1
    """Texts that are followed at once, of which the best is kept; 1: no beam search."""
    length_penalty: float = 1.0
    """Power of the length that divides a beam's log-probability: above 0 favours long texts."""
    early_stopping: EarlyStopping = False
    """Beam search ends when: True: as many texts have ended as there are beams; False: by the present length
    no beam can become better; never: by no length."""
    stop: tuple[str, ...] = ()
    """Strings that end a text, and are left out of it."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end a text, besides the model's own."""
    stop_at_eos: bool = True
    """End a text at the model's end-of-text token; else go on to max_new_tokens."""
    log_probs: int | None = None
    """Tell the log-probability of each token under the model, and of this many likeliest beside it."""
    cache_dtype: CacheDtype = "float32"
    """Type in which keys and values are kept; int8 with a scale for each position and head."""
    draft_tokens: int = 4
    """With a draft: tokens it proposes at once, at most."""
    adapt_draft: bool = True
    """With a draft: propose fewer, or none, where that is faster by what was measured."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "max_new_tokens", "beams", "draft_tokens") + at_least(self, 0, "top_k")
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature must be 0 (greedy) or above, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be above 0 and at most 1, found {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must lie between 0 and 1, found {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            found.append(f"repetition_penalty must be above 0, found {self.repetition_penalty}")
        if not math.isfinite(self.length_penalty):
            found.append(f"length_penalty must be a number, found {self.length_penalty}")
        if isinstance(self.stop, str) or not all(isinstance(each, str) and each for each in self.stop):
            found.append(f"stop must be strings of at least one character, found {self.stop!r}")
        if self.draft_tokens > 64:
            found.append(f"draft_tokens must be at most 64, found {self.draft_tokens}")
        if self.log_probs is not None:
            found += at_least(self, 0, "log_probs")
        return found + self._combinations()

    def _combinations(self) -> list[str]:
        drawn = (self.top_k, self.top_p, self.min_p) != (0, 1.0, 0.0)
        found = []
        if drawn and self.temperature == 0:
            found.append("top_k, top_p and min_p choose among draws: set temperature above 0 as well")
        if self.beams > 1:
            if self.temperature:
                found.append("beams take the likeliest texts: leave temperature at 0")
            if self.stop:
                found.append("beams end at tokens, not at strings: give stop_tokens instead of stop")
            if self.log_probs:
                found.append("beams tell log-probabilities of their own tokens alone: set log_probs to 0")
        return found
