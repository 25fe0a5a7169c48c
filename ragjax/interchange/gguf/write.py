"""A model to a GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ragjax.errors import InputError, listing
from ragjax.interchange.atomic import atomic_file
from ragjax.interchange.gguf.architectures import Written, write_config
from ragjax.interchange.gguf.blocks import BLOCK, taken_over
from ragjax.interchange.gguf.package import gguf_package
from ragjax.interchange.gguf.read import HISTORY
from ragjax.interchange.gguf.tokenizer import write_gguf_tokenizer
from ragjax.interchange.layout import check_params, tensor_reader
from ragjax.interchange.sweep import is_finite
from ragjax.interchange.tokenizer import check_vocabulary
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import has_stand_ins, made_whole

DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
"""Types weights can be stored in, and what GGUF calls files of them."""

_TABLES = ("token_embd.weight", "output.weight")
_KEPT = ("position_embd.weight",)
_CHUNK = 1 << 20
"""Values that are quantized at once."""


class GgufFile(NamedTuple):
    """What was written."""

    path: Path
    tensors: dict[str, int]
    """How many tensors there are of each type."""
    kept: int = 0
    """How many hold a quantized model's own integers and scales."""


def write_gguf(model: Model, path: str | Path, *, dtype: str = "f32", overwrite: bool = False) -> GgufFile:
    """Writes a model as a GGUF file, whole or not at all.

    Norms, biases and learned positions are float32 in every file. With "q4_0" the tables of tokens are
    Q8_0, and rows that are no whole number of blocks of 32 are F16. Of a quantized model integers and scales
    are taken over as they are, where the type has room for them; the rest is quantized from floats.

    Args:
      model: the model.
      path: where to.
      dtype: type of the weights: "f32", "f16", "q8_0" (8.5 bits a weight) or "q4_0" (4.5 bits).
      overwrite: replace a file that is there.

    Returns:
      The file's path and what is in it.

    Raises:
      InputError: GGUF cannot say all that the model or its tokenizer does, weights are not finite, the
        file exists or cannot be written, or the package gguf is not installed.
    """
    gguf = gguf_package()
    if dtype not in DTYPES:
        raise InputError(f"dtype of a GGUF file must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    path = Path(path).expanduser().resolve()
    check_params(model.params, model.config)
    written = write_config(_with_tokens(model))
    metadata = {**_about(model, path, written.name, dtype), **written.metadata}
    kinds = {stored.name: _kind(stored.name, stored.shape, dtype) for stored in written.layout.stored}
    kinds |= dict.fromkeys(written.constants, "F32")
    with (
        atomic_file(path, overwrite) as partial,
        closing(gguf.GGUFWriter(partial, written.name)) as writer,
    ):
        for key, value in metadata.items():
            if key != "general.architecture":
                _add(writer, key, value)
        kept = _write_tensors(writer, model, written, kinds)
    return GgufFile(path, dict(Counter(kinds.values())), kept)


def _with_tokens(model: Model) -> DecoderConfig:
    """The config with the token that the tokenizer puts before a text, and one that ends it."""
    config, tokenizer = model.config, model.tokenizer
    if tokenizer is None:
        return config
    check_vocabulary(tokenizer, config.vocab_size)
    begins, ends = tokenizer.bos_token_id, config.eos_token
    begins = config.bos_token if begins is None else begins
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise InputError(
            "The model and its tokenizer name no end-of-text token, for which llama.cpp would take another: "
            "set tokenizer.eos_token."
        )
    return replace(config, bos_token=begins, eos_token=ends)


def _about(model: Model, path: Path, architecture: str, dtype: str) -> dict[str, Any]:
    gguf = gguf_package()
    about: dict[str, Any] = {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": int(gguf.LlamaFileType[DTYPES[dtype]]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        HISTORY: json.dumps(model.history),
    }
    if model.tokenizer is None:
        return about | {"tokenizer.ggml.model": "none", f"{architecture}.vocab_size": model.config.vocab_size}
    return write_gguf_tokenizer(model.tokenizer, model.config.vocab_size) | about


def _kind(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) == 1 or name in _KEPT:
        return "F32"
    quantized = dtype.startswith("q")
    if quantized and shape[-1] % BLOCK:
        return "F16"
    return "Q8_0" if quantized and name in _TABLES else dtype.upper()


def _add(writer: Any, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32,
        str: writer.add_string, list: writer.add_array,
    }  # fmt: skip
    add[type(value)](key, value)


def _write_tensors(writer: Any, model: Model, written: Written, kinds: dict[str, str]) -> int:
    """Writes all tensors, and tells how many are a quantized model's own integers."""
    gguf = gguf_package()
    own = taken_over(model.params, written.layout, kinds) if has_stand_ins(model.params) else {}
    of_model = tensor_reader(made_whole(model.params), written.layout)
    shapes = {stored.name: stored.shape for stored in written.layout.stored}
    shapes |= {name: values.shape for name, values in written.constants.items()}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[kinds[name]]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        # Of bytes, which the writer turns into that of values.
        stored = (*shape[:-1], shape[-1] // values * size)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    bad: list[str] = []
    for name in shapes:
        if name in own:
            if not bad:
                writer.write_tensor_data(own[name]())
            continue
        values = written.constants[name] if name in written.constants else of_model(name)
        made = _encode(np.asarray(values, np.float32), kinds[name])
        if made is None:
            bad.append(f"{name}: {kinds[name]}")
        elif not bad:
            writer.write_tensor_data(made)
    if bad:
        raise InputError(f"Weights that are not finite in the type they would have:\n{listing(bad)}")
    return len(own)


def _encode(values: np.ndarray, kind: str) -> np.ndarray | None:
    """The values as a file stores them; none where they are not finite there."""
    gguf = gguf_package()
    if kind == "F16":
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
    if not is_finite(values):
        return None
    values = np.ascontiguousarray(values)
    if kind in ("F32", "F16"):
        return values
    step = max(1, _CHUNK // values.shape[-1])
    code = gguf.GGMLQuantizationType[kind]
    rows = [gguf.quantize(values[i : i + step], code) for i in range(0, len(values), step)]
    return np.concatenate(rows)
