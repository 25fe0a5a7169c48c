"""How the tensors of a file and the parameters of a decoder correspond, read in either direction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from ragjax.errors import InputError, listing
from ragjax.interchange.assembly import Assembly
from ragjax.interchange.sweep import is_finite
from ragjax.interchange.tensors import READ_DTYPES, Tensors
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.rules import partition

_NAMED = 1000
"""Offending tensors that are named at most."""


class Packing(NamedTuple):
    """How the parameters that one tensor holds stand in it."""

    unpack: Callable[[np.ndarray, int], list[np.ndarray]]
    """From the tensor and their number to the parameters."""
    pack: Callable[[list[np.ndarray]], np.ndarray]
    """From the parameters to the tensor."""


SIDE_BY_SIDE = Packing(
    lambda tensor, count: np.split(tensor, count, axis=-1), lambda parts: np.concatenate(parts, axis=-1)
)
"""Along the last axis, [inputs, outputs]."""
TRANSPOSED = Packing(
    lambda tensor, count: [part.T for part in np.split(tensor, count)],
    lambda parts: np.concatenate([part.T for part in parts]),
)
"""Along the first axis, each [outputs, inputs]: the weights of `torch.nn.Linear`."""


def by_head(heads: int) -> Packing:
    """Along the first axis, each [outputs, inputs], head by head: what each has for a head is together."""

    def unpack(tensor: np.ndarray, count: int) -> list[np.ndarray]:
        inputs = tensor.shape[1:]
        split = tensor.reshape(heads, count, tensor.shape[0] // (heads * count), *inputs)
        return [split[:, i].reshape(-1, *inputs).T for i in range(count)]

    def pack(parts: list[np.ndarray]) -> np.ndarray:
        split = [part.T.reshape(heads, part.shape[-1] // heads, *part.shape[:-1]) for part in parts]
        return np.stack(split, axis=1).reshape(-1, *parts[0].shape[:-1])

    return Packing(unpack, pack)


class Stored(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    """Parameters it holds."""
    layer: int | None = None
    """Where on the parameters' leading axis; none: they have no such axis."""
    packing: Packing = SIDE_BY_SIDE
    """How they stand in it."""


def linear_tensors(
    name: str,
    targets: tuple[str, ...],
    *,
    inputs: int,
    outputs: int,
    layer: int | None = None,
    bias: bool = True,
    packing: Packing = TRANSPOSED,
) -> list[Stored]:
    """The tensors of a `torch.nn.Linear`.

    Args:
      name: of the module.
      targets: layers whose kernels and biases it holds, as in 'layers/mlp/up'.
      inputs: its features.
      outputs: features of all that it holds.
      layer: as in `Stored`.
      bias: whether it has one.
      packing: how the layers stand in it.
    """
    kernels, biases = (tuple(f"{target}/{kind}" for target in targets) for kind in ("kernel", "bias"))
    weight = Stored(f"{name}.weight", (outputs, inputs), kernels, layer, packing)
    return [weight, Stored(f"{name}.bias", (outputs,), biases, layer, packing)] if bias else [weight]


def layer_norm_tensors(name: str, target: str, width: int, layer: int | None = None) -> list[Stored]:
    """The tensors of a `torch.nn.LayerNorm` over `width` features."""
    return [
        Stored(f"{name}.weight", (width,), (f"{target}/scale",), layer),
        Stored(f"{name}.bias", (width,), (f"{target}/bias",), layer),
    ]


class Layout(NamedTuple):
    """All tensors of a file."""

    stored: tuple[Stored, ...]
    prefix: str = ""
    """Beginning of a name that may be left out."""
    copies: tuple[tuple[str, str], ...] = ()
    """Names that may be there a second time, and the tensor they must equal."""
    ignored: str = r"(?!)"
    """Pattern of names that hold nothing learned."""
    source: str = "config.json"
    """What says which tensors there must be."""


def language_model(
    config: DecoderConfig,
    stored: Iterable[Stored],
    *,
    tokens: str,
    head: str = "lm_head.weight",
    prefix: str,
    ignored: str = r"(?!)",
) -> Layout:
    """The layout of a model with its tables of tokens: the one it reads and, untied, the one that scores.

    Args:
      config: the architecture.
      stored: all tensors but the tables, each of which is [vocabulary, token width].
      tokens: name of the table it reads.
      head: name of the table that scores.
      prefix: as in `Layout`.
      ignored: as in `Layout`.
    """
    table = (config.vocab_size, config.token_width)
    own = () if config.tied else (Stored(head, table, ("head",)),)
    return Layout(
        stored=(Stored(tokens, table, ("embedding/tokens",)), *stored, *own),
        prefix=prefix,
        copies=((head, tokens),) if config.tied else (),
        ignored=ignored,
    )


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter, by path, as in 'layers/mlp/up/kernel'."""
    shapes = flatten_dict(jax.eval_shape(lambda: init_params(config, 0)), sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}


def read_params(
    tensors: Tensors, layout: Layout, config: DecoderConfig, dtype: Any, mesh: Mesh | None = None
) -> Params:
    """Parameters of a decoder, filled tensor by tensor; rows that pad the vocabulary are zero.

    Args:
      tensors: open weight files.
      layout: where their tensors belong.
      config: the architecture.
      dtype: type of the parameters.
      mesh: devices over which they are split; none: all on the default device.

    Raises:
      InputError: tensors are missing, left over, of another shape or type, or not finite; names them all.
    """
    names = _match(tensors, layout)
    shapes = parameter_shapes(config)
    split = {} if mesh is None else {n: NamedSharding(mesh, partition(n, s, mesh)) for n, s in shapes.items()}
    made = {path: Assembly(shape, dtype, split.get(path)) for path, shape in shapes.items()}
    bad = []
    for stored in layout.stored:
        values = tensors.read(names[stored.name])
        if np.dtype(dtype).itemsize < values.dtype.itemsize:
            with np.errstate(over="ignore"):
                values = values.astype(dtype)
        if not is_finite(values):
            bad.append(names[stored.name])
        parts = stored.packing.unpack(values, len(stored.targets))
        for path, part in zip(stored.targets, parts, strict=True):
            made[path].write(part, stored.layer)
    if bad:
        raise InputError(f"Weights must be finite, these hold NaN or infinity:\n{listing(bad, limit=_NAMED)}")
    for copy, original in layout.copies:
        if copy in names and not _equal(tensors.read(names[copy]), tensors.read(names[original])):
            raise InputError(
                f"{names[copy]} must equal {names[original]}, since config.json ties them "
                "(tie_word_embeddings): set it to false, or drop one of the two."
            )
    return unflatten_dict({path: made.pop(path).finish() for path in list(made)}, sep="/")


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two tables are equal, row by row, so that neither is ever whole in memory."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def tensor_reader(params: Params, layout: Layout) -> Callable[[str], np.ndarray]:
    """A function from a tensor's name in the file to its values."""
    flat = {
        path: np.asarray(leaf) if _in_host_memory(leaf) else leaf
        for path, leaf in flatten_dict(params, sep="/").items()
    }
    by_name = {stored.name: stored for stored in layout.stored}

    def read(name: str) -> np.ndarray:
        stored = by_name[name]
        # Of which shape the parts are, an empty tensor tells.
        empty = np.broadcast_to(np.float32(0), stored.shape)
        shapes = [part.shape for part in stored.packing.unpack(empty, len(stored.targets))]
        parts = [
            _window(flat[path], stored, shape) for path, shape in zip(stored.targets, shapes, strict=True)
        ]
        return stored.packing.pack(parts)

    return read


def check_params(params: Params, config: DecoderConfig) -> None:
    """Refuses parameters that are not those of `config`.

    Raises:
      InputError: names every parameter that is missing, left over or of another shape.
    """
    expected = parameter_shapes(config)
    found = {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}
    problems = _differences(expected, found)
    if problems:
        raise InputError(f"The parameters do not belong to the config:\n{listing(problems)}")


def _in_host_memory(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or {device.platform for device in leaf.devices()} == {"cpu"}


def _window(parameter: np.ndarray | jax.Array, stored: Stored, shape: tuple[int, ...]) -> np.ndarray:
    """The part of a parameter that a stored tensor of `shape` fills; no more of it is fetched."""
    here = np.asarray(parameter if stored.layer is None else parameter[stored.layer])
    return here[tuple(slice(size) for size in shape)]


def _match(tensors: Tensors, layout: Layout) -> dict[str, str]:
    """From the layout's names to those in the file; refuses what does not fit."""
    expected = {stored.name: stored.shape for stored in layout.stored}
    known = {**expected, **{copy: expected[original] for copy, original in layout.copies}}
    names: dict[str, str] = {}
    problems = []
    for name in tensors.shapes:
        if re.fullmatch(layout.ignored, name):
            continue
        full = layout.prefix + name if layout.prefix + name in known else name
        if full in names:
            problems.append(f"{name}: there twice, also as {names[full]}")
        else:
            names[full] = name
    optional = {copy for copy, _ in layout.copies} - names.keys()
    expected = {name: shape for name, shape in known.items() if name not in optional}
    problems += _differences(expected, {full: tensors.shapes[name] for full, name in names.items()})
    problems += [
        f"{full}: expected {', '.join(READ_DTYPES)}, found {tensors.dtypes[name]}"
        for full, name in names.items()
        if full in known and tensors.dtypes[name] not in READ_DTYPES
    ]
    if problems:
        raise InputError(
            f"The weights do not fit {layout.source}:\n{listing(problems, limit=_NAMED)}\n"
            "Check that both belong to one model, and that it is a language model."
        )
    return names


def _differences(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{n}: missing, expected {list(expected[n])}" for n in expected if n not in found]
    problems += [f"{n}: not expected, found {list(found[n])}" for n in found if n not in expected]
    return problems + [
        f"{n}: expected {list(shape)}, found {list(found[n])}"
        for n, shape in expected.items()
        if n in found and found[n] != shape
    ]
