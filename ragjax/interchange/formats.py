"""What a model can be exported as: a later format is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import jax
import numpy as np

from ragjax.errors import InputError
from ragjax.interchange.atomic import check_creatable
from ragjax.interchange.folder import save
from ragjax.interchange.gguf import write_gguf
from ragjax.interchange.gguf.package import gguf_package
from ragjax.interchange.gguf.write import DTYPES
from ragjax.interchange.onnx import write_onnx
from ragjax.interchange.onnx.package import onnx_package
from ragjax.interchange.onnx.weights import PRECISIONS
from ragjax.interchange.size import weight_files
from ragjax.interchange.stablehlo import DTYPES as PROGRAM_DTYPES
from ragjax.interchange.stablehlo import PLATFORMS, check_flatbuffers, export_stablehlo
from ragjax.interchange.tensors import STORED_DTYPES
from ragjax.model import Model
from ragjax.models.stand_ins import has_stand_ins


class Exported(NamedTuple):
    """What was written, for a person to read."""

    path: Path
    size: int
    """Bytes, of all files."""
    contents: str
    """What is in it."""
    use: str
    """How to run it."""


class Format(NamedTuple):
    """One way of writing a model down."""

    dtypes: tuple[str, ...]
    """Types the weights can have, the usual one first."""
    write: Callable[[Model, Path, str], Exported]
    """From the model, where to, and the type of the weights."""
    needs: Callable[[], object] = lambda: None
    """Raises InputError where a package it needs is not installed."""
    is_file: bool = False
    """Whether it is one file, not a folder."""


def export(model: Model, out: str | Path, *, format: str, dtype: str | None = None) -> Exported:
    """Writes a model for another runtime, whole or not at all; nothing that is there is replaced.

    Args:
      model: the model.
      out: the folder or file to write.
      format: one of `FORMATS`.
      dtype: type of the weights, of those of the format; none: its usual one.

    Raises:
      InputError: the format or the type is not known, the format cannot say all that the model does, or
        `out` exists or cannot be written.
    """
    chosen = check_request(out, format, dtype)
    return FORMATS[format].write(model, Path(out).expanduser(), chosen)


def check_request(out: str | Path, format: str, dtype: str | None) -> str:
    """Refuses what cannot be exported whatever the model, so that none need be loaded for it.

    Args:
      out: as in `export`.
      format: as in `export`.
      dtype: as in `export`.

    Returns:
      The type of the weights.

    Raises:
      InputError: the format or the type is not known, a package it needs is not there, `out` exists or
        cannot be written.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, found {format!r}.")
    known = FORMATS[format].dtypes
    chosen = known[0] if dtype is None else dtype
    if chosen not in known:
        raise InputError(f"dtype of the format {format} must be one of {', '.join(known)}, found {dtype!r}.")
    FORMATS[format].needs()
    path = Path(out).expanduser()
    if path.is_dir() and FORMATS[format].is_file:
        raise InputError(
            f"{path} exists already, as a folder: name the file to write, as in {path / 'model.gguf'}."
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path} exists already: choose another name.")
    check_creatable(path)
    return chosen


def _hugging_face(model: Model, out: Path, dtype: str) -> Exported:
    path = save(model.in_floats(), out, dtype=dtype)
    size = sum(file.stat().st_size for file in path.iterdir())
    use = f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})"
    return Exported(path, size, f"a Hugging Face folder, weights {dtype}", use)


def _bitmask(model: Model, out: Path, dtype: str) -> Exported:
    model = model.in_floats()
    path = save(model, out, dtype=dtype, storage="bitmask")
    size = sum(file.stat().st_size for file in path.iterdir())
    dense = sum(leaf.size for leaf in jax.tree.leaves(model.params)) * np.dtype(STORED_DTYPES[dtype]).itemsize
    share = sum(file.stat().st_size for file in weight_files(path)) / dense
    what = f"sparse weights {dtype}, one bit each and the values that are not zero: {share:.1%} of dense"
    return Exported(path, size, what, f"with ragjax alone: ragjax eval {quote(str(out))}")


def _gguf(model: Model, out: Path, dtype: str) -> Exported:
    written = write_gguf(model, out, dtype=dtype)
    tensors = ", ".join(f"{count} {kind}" for kind, count in written.tensors.items())
    size = written.path.stat().st_size
    use = f"llama-cli -m {quote(str(out))} -p 'Once upon a time'"
    what = f"GGUF, tensors: {tensors}"
    if has_stand_ins(model.params):
        small = sum(count for kind, count in written.tensors.items() if kind.startswith("Q"))
        what += f"; of the {small} of Q types {written.kept} with the model's own integers and scales"
    return Exported(written.path, size, what, use)


def _stablehlo(model: Model, out: Path, dtype: str) -> Exported:
    path = export_stablehlo(model, out, dtype=dtype)
    size = sum(file.stat().st_size for file in path.iterdir())
    use = f"with JAX alone, by the lines in {out / 'README.md'}"
    return Exported(path, size, f"a StableHLO program for {', '.join(PLATFORMS)}, weights {dtype}", use)


def _onnx(model: Model, out: Path, dtype: str) -> Exported:
    written = write_onnx(model, out, dtype=dtype)
    size = sum(file.stat().st_size for file in written.path.iterdir())
    use = f"ragjax generate {quote(str(out))} --prompt 'Once upon a time'; or without ragjax: README.md there"
    what = f"an ONNX graph for onnxruntime, weights {dtype}"
    if has_stand_ins(model.params):
        what += f"; of {written.matrices} matrices {written.kept} with the model's own integers and scales"
    return Exported(written.path, size, what, use)


FORMATS: dict[str, Format] = {
    "hf": Format(tuple(STORED_DTYPES), _hugging_face),
    "bitmask": Format(tuple(STORED_DTYPES), _bitmask),
    "gguf": Format(tuple(DTYPES), _gguf, gguf_package, is_file=True),
    "stablehlo": Format(PROGRAM_DTYPES, _stablehlo, check_flatbuffers),
    "onnx": Format(tuple(PRECISIONS), _onnx, onnx_package),
}
"""By name."""
