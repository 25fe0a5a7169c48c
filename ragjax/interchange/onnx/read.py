"""A folder with an ONNX graph, opened in onnxruntime."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ragjax.errors import InputError
from ragjax.interchange.families import family_of
from ragjax.interchange.json_file import read_object
from ragjax.interchange.layout import parameter_shapes
from ragjax.interchange.onnx.package import onnxruntime_package
from ragjax.interchange.onnx.write import DATA, GRAPH, export_onnx
from ragjax.interchange.record import RECORD, read_history
from ragjax.interchange.tokenizer import check_vocabulary, read_tokenizer
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel

_FILES = (GRAPH, DATA, "config.json", RECORD)


def is_onnx(model: str | Path) -> bool:
    """Whether MODEL is a folder that `export_onnx` wrote."""
    folder = Path(model).expanduser()
    return all((folder / name).is_file() for name in _FILES)


def load_onnx(folder: str | Path, *, threads: int | None = None) -> OnnxModel:
    """Opens a folder that `export_onnx` wrote.

    Args:
      folder: the folder.
      threads: threads of onnxruntime; none: as many as the machine has cores.

    Raises:
      InputError: the folder holds no such graph, or onnxruntime cannot open it or is not installed.
    """
    folder = Path(folder).expanduser()
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} holds no ONNX model of ragjax: {', '.join(missing)} missing.")
    options = _options(threads)
    values = read_object(folder / "config.json")
    config = family_of(values).config_from(values)
    tokenizer = read_tokenizer(folder, values["model_type"])
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size)
    try:
        session = onnxruntime_package().InferenceSession(
            folder / GRAPH, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has an exception for each status, of no common kind
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{folder / GRAPH}: onnxruntime cannot open it: {first}") from error
    size = sum(map(math.prod, parameter_shapes(config).values()))
    return OnnxModel(config, session, tokenizer, read_history(folder) or (), size)


def in_onnxruntime(model: Model, *, threads: int | None = None) -> OnnxModel:
    """`model` in onnxruntime, in float32; for fewer bits export it first.

    Args:
      model: the model.
      threads: as in `load_onnx`.

    Raises:
      InputError: the packages onnx and onnxruntime are not installed, or the model cannot be exported; or as
        `load_onnx`.
    """
    _options(threads)
    with TemporaryDirectory(prefix="ragjax-onnx-") as folder:
        return load_onnx(export_onnx(model, Path(folder) / "model"), threads=threads)


def _options(threads: int | None) -> Any:
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, found {threads}.")
    options = onnxruntime_package().SessionOptions()
    options.intra_op_num_threads = threads or 0
    return options
