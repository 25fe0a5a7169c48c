"""The model that a student learns from."""

from __future__ import annotations

from dataclasses import dataclass, field

from ragjax.config.architecture import Architecture
from ragjax.config.checked import Checked
from ragjax.config.train import Train


@dataclass(frozen=True)
class Teacher(Checked):
    """The model to compress: one that exists, or one trained here first."""

    model: str | None = None
    """MODEL: a Hugging Face folder, a hub id, or a run folder; none: train `architecture`."""
    cache: str | None = None
    """Folder that `ragjax cache-teacher` wrote: what the teacher says of the text, so that it need not run
    while the student trains; none: it runs."""
    architecture: Architecture = field(default_factory=Architecture)
    """Shape of a teacher trained here."""
    train: Train = field(default_factory=Train)
    """Training of a teacher trained here."""
    also: tuple[str, ...] = ()
    """MODELs that teach beside it, of its vocabulary; the losses over the vocabulary look at all of them."""
    shares: tuple[float, ...] = ()
    """What each teacher counts, as parts of their sum, this one first; none: all alike."""

    def _problems(self) -> list[str]:
        found = [f"shares must be above 0, found {share!r}" for share in self.shares if not share > 0]
        teachers = 1 + len(self.also)
        if self.shares and len(self.shares) != teachers:
            found.append(
                f"shares must have a number for each of {teachers} teachers, found {len(self.shares)}: "
                "the first is that of the teacher itself, then those of also"
            )
        return found
