"""The package gguf, which knows the quantized types: an extra, asked for when the first such file is met."""

from __future__ import annotations

from types import ModuleType

from ragjax.errors import InputError


def gguf_package() -> ModuleType:
    """The package.

    Raises:
      InputError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF files need the package gguf: pip install 'ragjax[gguf]'.") from None
    return gguf
