"""What several verbs are given."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

ModelName = Annotated[
    Positional[str],
    arg(metavar="MODEL", help="MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder."),
]
"""MODEL, as every verb about a model takes it."""
