"""Quantized weights in safetensors: parameters by ragjax's own names, integers as they are.

The file is named `model.quantized.safetensors`; docs/quantization.md describes it. A parameter N that is an
array is stored under its name. A quantized kernel of L layers is stored as

    N/codes        int8 [L, in, out], or of 4 bits uint8 [L, in / 2, out]
    N/scale        float16 [L, groups, out]
    N/zero         int8 [L, groups, out], where the scheme is not symmetric
    N/input_scale  float32 [L, in], where the inputs are divided by it

and a quantized table of tokens as N/codes, int8 [vocabulary, width], and N/scale, float16 [vocabulary]. What
each quantized parameter is stands in the file's metadata, `{"format": "ragjax-quantized", "version": "1",
"quantized": JSON}`: an object by name, of the fields of `Scheme`, or of a table `{"table": true}`. Tables
have no rows that pad the vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding

from ragjax.errors import InputError, listing
from ragjax.interchange.assembly import Assembly
from ragjax.interchange.layout import parameter_shapes
from ragjax.interchange.sweep import is_finite
from ragjax.interchange.tensors import (
    READ_DTYPES,
    WeightFile,
    as_stored,
    check_dtype,
    open_weight_file,
    write_weight_file,
)
from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import named_leaves
from ragjax.parallel.rules import partition
from ragjax.quantization.quantized import Quantized
from ragjax.quantization.scheme import Scheme
from ragjax.quantization.table import QuantizedTable

FILE = "model.quantized.safetensors"
_FORMAT, _VERSION = "ragjax-quantized", "1"
_TABLES = ("embedding/tokens", "head")
_PARTS = ("codes", "scale", "zero", "input_scale")


def write_quantized(folder: Path, params: Params, config: DecoderConfig, *, dtype: str = "float32") -> None:
    """Writes parameters of which some are quantized.

    Args:
      folder: where to.
      params: the parameters.
      config: their architecture.
      dtype: type in which those are stored that are not quantized, of `STORED_DTYPES`.

    Raises:
      InputError: the type is not known, or values are not finite in it.
    """
    check_dtype(dtype, 1)
    tensors, about = {}, {}
    for name, leaf in named_leaves(params):
        rows = slice(config.vocab_size if name in _TABLES else None)
        if isinstance(leaf, Quantized):
            about[name] = asdict(leaf.scheme)
        elif isinstance(leaf, QuantizedTable):
            about[name] = {"table": True}
        else:
            tensors[name] = as_stored(np.asarray(leaf[rows]), dtype)
            continue
        parts = {part: getattr(leaf, part, None) for part in _PARTS}
        tensors |= {
            f"{name}/{part}": np.ascontiguousarray(values[rows])
            for part, values in parts.items()
            if values is not None
        }
    bad = [
        name for name, values in tensors.items() if values.dtype.kind not in "iu" and not is_finite(values)
    ]
    if bad:
        raise InputError(f"Weights that are not finite as they are stored cannot be saved:\n{listing(bad)}")
    metadata = {"format": _FORMAT, "version": _VERSION, "quantized": json.dumps(about)}
    write_weight_file(tensors, folder / FILE, metadata)


def read_quantized(
    folder: Path, config: DecoderConfig, dtype: Any, mesh: Mesh | None = None
) -> Params | None:
    """The parameters in a folder of quantized weights, on their devices; none where there is no such file.

    Args:
      folder: holds the file.
      config: the architecture.
      dtype: type in memory of those that are not quantized.
      mesh: devices over which they are split; none: all on the default device.

    Raises:
      InputError: the file is damaged, of a later version, or of another architecture; names what is wrong.
    """
    if not (folder / FILE).is_file():
        return None
    file = open_weight_file(folder / FILE)
    stated = file.metadata.get("format"), file.metadata.get("version")
    if stated != (_FORMAT, _VERSION):
        raise InputError(
            f"{folder / FILE}: {_FORMAT} of version {_VERSION} was expected, found {stated[0]} of "
            f"{stated[1]}."
        )
    about = _about(file, folder / FILE)
    expected = _expected(about, file, config)
    found = {name: (tuple(stated["shape"]), stated["dtype"]) for name, stated in file.header.items()}
    problems = [f"{name}: missing" for name in expected if name not in found]
    problems += [f"{name}: not expected" for name in found if name not in expected]
    problems += [
        f"{name}: expected {' or '.join(kinds)} {list(shape)}, found {found[name][1]} {list(found[name][0])}"
        for name, (shape, kinds) in expected.items()
        if name in found and (found[name][0] != shape or found[name][1] not in kinds)
    ]
    if problems:
        raise InputError(f"{folder / FILE} does not fit config.json:\n{listing(problems)}")

    def made(name: str, *, part: bool = False) -> Any:
        values = file.read(name)
        if values.dtype.kind not in "iu" and not is_finite(values):
            bad.append(name)
        elif part and name.endswith("/input_scale") and not (values > 0).all():
            bad.append(f"{name}, which must be above 0")
        shape = values.shape
        if name.removesuffix("/codes").removesuffix("/scale") in _TABLES:
            shape = (config.padded_vocab_size, *shape[1:])
        split = None if mesh is None else NamedSharding(mesh, partition(name, shape, mesh))
        # Norms have a scale too, which is no part of a quantized parameter.
        assembly = Assembly(shape, values.dtype if part else dtype, split)
        assembly.write(values)
        return assembly.finish()

    bad: list[str] = []
    flat = {}
    for name in parameter_shapes(config):
        if name not in about:
            flat[name] = made(name)
            continue
        parts = {part: made(f"{name}/{part}", part=True) for part in _PARTS if f"{name}/{part}" in expected}
        if "table" in about[name]:
            flat[name] = QuantizedTable(**parts)
        else:
            optional = {"zero": None, "input_scale": None}
            flat[name] = Quantized(**{**optional, **parts}, scheme=_scheme(name, about[name]))
    if bad:
        raise InputError(f"Weights must be finite, these hold NaN or infinity:\n{listing(bad)}")
    return unflatten_dict(flat, sep="/")


def _about(file: WeightFile, path: Path) -> dict[str, Any]:
    """What the file says of its quantized parameters, by name."""
    try:
        about = json.loads(file.metadata["quantized"])
    except (KeyError, ValueError):
        about = None
    if not isinstance(about, dict):
        raise InputError(
            f"{path}: its header must say what is quantized, as an object in JSON, found "
            f"{file.metadata.get('quantized')!r:.80}: copy or download it again."
        )
    return about


def _expected(
    about: dict[str, Any], file: WeightFile, config: DecoderConfig
) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape and possible types of each tensor there must be, by name."""
    shapes = parameter_shapes(config)
    shapes |= {name: (config.vocab_size, *shapes[name][1:]) for name in _TABLES if name in shapes}
    expected: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        name: (shape, READ_DTYPES) for name, shape in shapes.items() if name not in about
    }
    for name, fields in about.items():
        shape = shapes.get(name)
        if shape is None:
            raise InputError(f"Quantized weights: config.json has no parameter {name}.")
        if fields == {"table": True} and name in _TABLES:
            expected |= {f"{name}/codes": (shape, ("I8",)), f"{name}/scale": (shape[:1], ("F16",))}
            continue
        if not name.endswith("/kernel"):
            raise InputError(
                f"Quantized weights: {name} is said to be {fields!r}; only kernels are quantized so."
            )
        scheme, (*layers, inputs, outputs) = _scheme(name, fields), shape
        if scheme.group and inputs % scheme.group:
            raise InputError(
                f"Quantized weights: groups of {scheme.group} do not divide {name}, {list(shape)}."
            )
        if scheme.bits == 4 and inputs % 2:
            raise InputError(f"Quantized weights: {name} of 4 bits has {inputs} inputs, an odd number.")
        groups = (*layers, scheme.groups(inputs), outputs)
        packed = (*layers, inputs // 2, outputs), ("U8",)
        expected[f"{name}/codes"] = packed if scheme.bits == 4 else (shape, ("I8",))
        expected[f"{name}/scale"] = groups, ("F16",)
        if not scheme.symmetric:
            expected[f"{name}/zero"] = groups, ("I8",)
        if f"{name}/input_scale" in file.header:
            expected[f"{name}/input_scale"] = (*layers, inputs), ("F32",)
    return expected


def _scheme(name: str, fields: Any) -> Scheme:
    scheme: Scheme | None
    try:
        scheme = Scheme(**fields)
    except TypeError:
        scheme = None
    # 32.0 and True equal integers, and are none where shapes are made of them.
    if scheme is None or not all(
        type(value) is (bool if field == "symmetric" else int)
        for field, value in asdict(scheme).items()
        if (field, value) != ("activations", None)
    ):
        raise InputError(f"Quantized weights: {name} must name a scheme's fields, found {fields!r}.")
    return scheme
