"""LLVM's text of a custom call whose pieces XLA's threads share: `shared.ll`."""

from __future__ import annotations

from pathlib import Path
from string import Template

_NOTHING_TO_PREPARE = """
define void @prepare(ptr %call, ptr %room) alwaysinline {
  ret void
}
"""


def shared_text(minor: int, *, prepares: bool = False) -> str:
    """What calls `@plan`, `@prepare` and `@piece`, which are to stand before it.

    Args:
      minor: version of XLA's interface.
      prepares: whether there is a `@prepare`; else it is one that does nothing.
    """
    text = Template(Path(__file__).with_name("shared.ll").read_text()).substitute(minor=minor)
    return text if prepares else _NOTHING_TO_PREPARE + text
