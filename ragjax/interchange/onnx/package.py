"""The packages onnx, which writes graphs, and onnxruntime, which runs them: extras, asked for when needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from ragjax.errors import InputError


def onnx_package() -> ModuleType:
    """The package that writes graphs.

    Raises:
      InputError: it is not installed.
    """
    return _package("onnx", "written")


def onnxruntime_package() -> ModuleType:
    """The package that runs them.

    Raises:
      InputError: it is not installed.
    """
    return _package("onnxruntime", "run")


def _package(name: str, done: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"ONNX models are {done} with the package {name}, which is not installed: "
            "pip install 'ragjax[onnx]'."
        ) from None
