"""LLVM's text of a custom call whose pieces XLA's threads share: `shared.ll`."""

from __future__ import annotations

from pathlib import Path
from string import Template


def shared_text(minor: int) -> str:
    """What calls `@plan`, `@prepare` and `@piece`, which are to stand before it.

    Args:
      minor: version of XLA's interface.
    """
    return Template(Path(__file__).with_name("shared.ll").read_text()).substitute(minor=minor)
