"""The folder of what can be made again: tokenized text, compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(chosen: str | Path | None = None) -> Path:
    """The folder that was chosen, else RAGJAX_CACHE, else ~/.cache/ragjax; it may not exist yet.

    Example:
      >>> str(cache_folder("/data/cache"))
      '/data/cache'
    """
    return Path(chosen or os.environ.get("RAGJAX_CACHE") or "~/.cache/ragjax").expanduser()
