"""How many bytes a model takes on disk."""

from __future__ import annotations

from pathlib import Path

from ragjax.interchange.resolve import resolve


def stored_bytes(model: str | Path) -> int:
    """Bytes of the safetensors files of MODEL.

    Raises:
      InputError: there is no such model.
    """
    return sum(file.stat().st_size for file in resolve(model).glob("*.safetensors"))
