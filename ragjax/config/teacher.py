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
