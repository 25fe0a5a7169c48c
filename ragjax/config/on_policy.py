"""What the student learns of its own writing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ragjax.config.checked import Checked, at_least
from ragjax.config.distill import Distill, Ramp, asked, values
from ragjax.config.train import Train


@dataclass(frozen=True)
class OnPolicy(Checked):
    """How much of the training is on text the student writes itself, and how it writes.

    p is the teacher's distribution of the next token, q the student's, both at `temperature`.
    """

    share: Ramp = 0.0
    """Probability that the batch of a step is one the student writes; else it is the text."""
    prompt_tokens: int = 32
    """Tokens at the beginning of each sequence of text that the student goes on from; pairs of prompt and
    completion have prompts of their own."""
    new_tokens: int | None = None
    """Tokens it writes at most; none: up to the end of the sequence."""
    temperature: float = 1.0
    """0 takes the likeliest token; above it one is drawn from softmax(scores / temperature)."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have this probability; 1: from all."""
    teacher_share: Ramp = 0.0
    """a: tokens are drawn from a p + (1 - a) q, and count q over the probability they were drawn with."""
    sequences_alike: bool = False
    """Every written sequence counts alike, however long it is; else every written token does."""
    replay: Ramp = 0.0
    """Probability that a written batch is drawn from those kept instead of written anew."""
    capacity: int = 1000
    """Sequences kept for replay: the latest."""
    rise: float = 0.0
    """Added to `share` each time the validation loss has risen; needs train.evaluate_every."""
    rise_over: float = 0.0
    """By how much it must lie above the loss at the last rise, or before the first step."""

    @property
    def asked(self) -> bool:
        """Whether any batch is written."""
        return asked(self.share) or self.rise > 0

    @property
    def mixes(self) -> bool:
        """Whether the teacher has a part in the writing at any time."""
        return asked(self.teacher_share)

    @property
    def replays(self) -> bool:
        """Whether what was written is kept."""
        return asked(self.replay)

    def _problems(self) -> list[str]:
        ramps = ("share", "teacher_share", "replay")
        found = [
            f"{name} must lie between 0 and 1 throughout, found {getattr(self, name)!r}"
            for name in ramps
            if not all(0 <= x <= 1 for x in values(getattr(self, name)))
        ]
        found += [
            f"{name} must name at least one number, found none"
            for name in ramps
            if not values(getattr(self, name))
        ]
        found += at_least(self, 1, "prompt_tokens", "capacity")
        found += at_least(self, 1, "new_tokens") if self.new_tokens is not None else []
        if not 0 <= self.temperature < math.inf:
            found.append(f"temperature must be 0 (greedy) or above, found {self.temperature!r}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be above 0 and at most 1, found {self.top_p!r}")
        if not 0 <= self.rise <= 1:
            found.append(f"rise must lie between 0 and 1, found {self.rise!r}")
        if not 0 <= self.rise_over < math.inf:
            found.append(f"rise_over must be at least 0, found {self.rise_over!r}")
        if self.temperature == 0 and (self.mixes or self.top_p < 1):
            found.append("teacher_share and top_p are about draws: set temperature above 0 as well")
        return found


def misfits(
    on_policy: OnPolicy, *, distill: Distill, sequence_length: int, train: Train, cached: bool
) -> list[str]:
    """What in the other parts of a config keeps a student from learning of its own writing.

    Args:
      on_policy: nothing is amiss where it asks for no writing.
      distill: the losses.
      sequence_length: tokens in a sequence of text.
      train: the training.
      cached: whether the teacher is known by what was kept of it.
    """
    if not on_policy.asked:
        return []
    found = []
    if cached:
        found.append("on_policy needs a teacher that runs, as no cache knows what a student will write")
    if not distill.divergences and not distill.inner:
        found.append("on_policy has nothing to learn by: give a loss that looks at the teacher a weight")
    if on_policy.prompt_tokens > sequence_length:
        found.append(
            f"on_policy.prompt_tokens {on_policy.prompt_tokens} must not exceed data.sequence_length "
            f"{sequence_length}"
        )
    if on_policy.replays and on_policy.capacity < train.batch_size:
        found.append(
            f"on_policy.capacity {on_policy.capacity} must hold a batch: at least train.batch_size "
            f"{train.batch_size}"
        )
    if on_policy.rise and not train.evaluate_every:
        found.append("on_policy.rise looks at validation losses: set train.evaluate_every")
    return found
