"""A model as one StableHLO program for CPU, CUDA and TPU, with its weights beside it: runs without ragjax."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from jaxtyping import Array, Float, Int
from safetensors.flax import load_file
from safetensors.numpy import save_file

from ragjax.data.tokenizer import save_tokenizer
from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.families import family_for, family_of
from ragjax.interchange.json_file import read_object, write_object
from ragjax.interchange.layout import check_params
from ragjax.interchange.record import write_record
from ragjax.interchange.tokenizer import check_vocabulary
from ragjax.model import Model
from ragjax.models.decoder import logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder

if TYPE_CHECKING:
    from jax.export import Exported

PLATFORMS = ("cpu", "cuda", "tpu")
DTYPES = ("float32", "bfloat16")
"""Types the program can be exported in."""
# Not model.safetensors: beside config.json, transformers would take the names in it for its own.
_PARAMS, _PROGRAM, _BYTECODE = "params.safetensors", "program.jax", "program.mlirbc"

_README = Template("""\
# A language model as a StableHLO program

From int32 tokens [batch, length] to float32 logits [batch, length, $vocabulary], for any batch and any length
up to $positions, on $platforms. Weights and arithmetic are $dtype. It runs with JAX alone
(`pip install jax safetensors flatbuffers`):

```python
import jax
from safetensors.flax import load_file

params = load_file("$params")
with open("$program", "rb") as file:
    logits = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
print(logits(params, jax.numpy.array([[1, 2, 3]], "int32")).shape)
```

- `$params`: the weights by name; replace them by others of the same shapes and types as you like.
- `$program`: written by `jax.export` of JAX $version; later versions read it for half a year at least.
- `$bytecode`: the same program as a portable StableHLO artifact, for tools other than JAX. Its `main` takes,
  where there are several platforms, the index of one in ($platforms); the weights in the order of their
  names; and the tokens.
- `config.json`, and the tokenizer's files where the model has one: as on the Hugging Face hub.
""")


def export_stablehlo(
    model: Model,
    folder: str | Path,
    *,
    platforms: Sequence[str] = PLATFORMS,
    dtype: str = "float32",
) -> Path:
    """Writes a folder with a program from (weights, tokens) to logits, whole or not at all.

    The program is made once for every batch, every length up to the model's positions, and all
    platforms. Weights are its arguments, by their names in a safetensors file, so that it is small. A
    README.md beside it says how to run it with JAX alone.

    Args:
      model: the model; of a quantized one, the floats that its integers stand for.
      folder: where to; must not exist.
      platforms: what the program runs on, of `PLATFORMS`.
      dtype: type of the weights and of the arithmetic: "float32" or "bfloat16".

    Returns:
      The folder's path.

    Raises:
      InputError: the folder exists or cannot be written, a platform or type is not known, the weights are
        not those of the config, or the package flatbuffers is not installed.
    """
    _check_request(platforms, dtype)
    model = model.in_floats()
    config = model.config
    check_params(model.params, config)
    if model.tokenizer is not None:
        check_vocabulary(model.tokenizer, config.vocab_size)
    values = family_for(config).config_to(config)
    weights = {
        name: np.asarray(leaf, jnp.dtype(dtype)) for name, leaf in flatten_dict(model.params, sep="/").items()
    }
    path = Path(folder).expanduser().resolve()
    with atomic_folder(path) as partial:
        program = _program(config, weights, platforms, dtype)
        (partial / _PROGRAM).write_bytes(program.serialize())
        (partial / _BYTECODE).write_bytes(program.mlir_module_serialized)
        save_file(weights, partial / _PARAMS)
        write_object(partial / "config.json", {**values, "dtype": dtype})
        write_record(partial, model.params, model.history)
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, partial)
        (partial / "README.md").write_text(
            _README.substitute(
                vocabulary=config.vocab_size, positions=config.positions, platforms=", ".join(platforms),
                dtype=dtype, params=_PARAMS, program=_PROGRAM, bytecode=_BYTECODE, version=jax.__version__,
            )
        )  # fmt: skip
    return path


def load_stablehlo(
    folder: str | Path,
) -> Callable[[Int[Array, "batch length"]], Float[Array, "batch length vocab"]]:
    """The function from tokens to logits that `export_stablehlo` wrote to a folder.

    Raises:
      InputError: the folder holds none; and, when called, there are more tokens than the model has
        positions.
    """
    folder = Path(folder).expanduser()
    missing = [n for n in (_PROGRAM, _PARAMS, "config.json") if not (folder / n).is_file()]
    if missing:
        raise InputError(f"{folder} holds no exported program: {', '.join(missing)} missing.")
    check_flatbuffers()
    program = jax.jit(export.deserialize(bytearray((folder / _PROGRAM).read_bytes())).call)
    weights = load_file(folder / _PARAMS)
    values = read_object(folder / "config.json")
    positions = family_of(values).config_from(values).positions

    def call(tokens: Int[Array, "batch length"]) -> Float[Array, "batch length vocab"]:
        tokens = jnp.asarray(tokens, jnp.int32)
        if tokens.shape[1] > positions:
            raise InputError(f"The program takes up to {positions} tokens, found {tokens.shape[1]}.")
        return program(weights, tokens)

    return call


def _program(
    config: DecoderConfig, weights: dict[str, np.ndarray], platforms: Sequence[str], dtype: str
) -> Exported:
    def scores(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
        tree = unflatten_dict(params, sep="/")
        return logits(tree, run_decoder(config, tree, tokens, dtype=jnp.dtype(dtype)).hidden, config)

    sizes = export.symbolic_shape("batch, length", constraints=[f"length <= {config.positions}"])
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}
    tokens = jax.ShapeDtypeStruct(sizes, jnp.int32)
    return export.export(jax.jit(scores), platforms=tuple(platforms))(shapes, tokens)


def _check_request(platforms: Sequence[str], dtype: str) -> None:
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(f"platforms must be some of {', '.join(PLATFORMS)}, found {list(platforms)}.")
    if dtype not in DTYPES:
        raise InputError(f"dtype of a StableHLO program must be {' or '.join(DTYPES)}, found {dtype!r}.")
    check_flatbuffers()


def check_flatbuffers() -> None:
    """Asks for the package that writes and reads programs.

    Raises:
      InputError: it is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "Programs of jax.export are written and read with the package flatbuffers, which is not "
            "installed: pip install 'ragjax[stablehlo]'."
        )
