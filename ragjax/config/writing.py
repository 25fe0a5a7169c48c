"""A corpus that a model writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least


@dataclass(frozen=True)
class Writing(Checked):
    """What a model is asked to go on from, and how it writes."""

    prompts: str
    """Source URI of the prompts: those of pairs, as jsonl:PATH#prompt,completion, or texts of any source."""
    split: Literal["train", "validation"] | None = None
    """Side of the source's split; none: all of it, but of builtin:python what is not held out."""
    prompt_tokens: int | None = None
    """Begin each text with its first tokens, so many, and leave out shorter ones; none: texts are prompts."""
    max_prompts: int | None = None
    """Prompts that are used, the first ones of the source; none: all."""
    samples: int = 1
    """Completions of each prompt."""
    max_new_tokens: int = 256
    """Tokens of a completion at most."""
    temperature: float = 1.0
    """0 takes the likeliest token; at 1 completions are draws from what the model says."""
    seed: int = 0
    """Of the draws."""
    batch_size: int = 16
    """Completions written at once."""

    def _problems(self) -> list[str]:
        found = at_least(self, 1, "samples", "max_new_tokens", "batch_size")
        for name in ("prompt_tokens", "max_prompts"):
            if getattr(self, name) is not None:
                found += at_least(self, 1, name)
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature must be 0 (greedy) or above, found {self.temperature}")
        elif self.temperature == 0 and self.samples > 1:
            found.append(f"samples must be 1 at temperature 0, where all are alike, found {self.samples}")
        return found
