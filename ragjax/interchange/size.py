"""Which files hold a model's weights, and how many bytes they take."""

from __future__ import annotations

from pathlib import Path

from ragjax.interchange.resolve import resolve


def stored_bytes(model: str | Path) -> int:
    """Bytes of the files of weights of MODEL.

    Raises:
      InputError: there is no such model.
    """
    return sum(file.stat().st_size for file in weight_files(model))


def weight_files(model: str | Path) -> list[Path]:
    """The safetensors files of MODEL, by name, or its GGUF file.

    Raises:
      InputError: there is no such model.
    """
    found = resolve(model)
    return [found] if found.is_file() else sorted(found.glob("*.safetensors"))
