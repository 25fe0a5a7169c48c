"""A model on disk: a Hugging Face folder, with ragjax.json beside; read also from a GGUF file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ragjax.data.tokenizer import save_tokenizer
from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.bitmask import open_bitmask, write_bitmask
from ragjax.interchange.families import family_for, family_of
from ragjax.interchange.fields import TOKENS
from ragjax.interchange.gguf import read_gguf
from ragjax.interchange.json_file import read_object, write_object
from ragjax.interchange.layout import check_params, read_params, tensor_reader
from ragjax.interchange.onnx import is_onnx
from ragjax.interchange.quantized import read_quantized, write_quantized
from ragjax.interchange.record import read_history, write_record
from ragjax.interchange.resolve import resolve
from ragjax.interchange.tensors import open_tensors, write_tensors
from ragjax.interchange.tokenizer import check_vocabulary, read_tokenizer
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import has_stand_ins
from ragjax.parallel.rules import place

STORAGES = {"dense": write_tensors, "bitmask": write_bitmask}
"""Ways of storing weights as safetensors."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load(
    model: str | Path, *, dtype: Any = jnp.float32, mesh: Mesh | None = None, floats: bool = False
) -> Model:
    """Reads a model, tensor by tensor, onto its devices.

    Args:
      model: MODEL: a Hugging Face folder, a GGUF file, a ragjax run folder, or a hub id.
      dtype: type of the parameters in memory; training wants float32.
      mesh: devices over which the parameters are split; none: all on JAX's default device.
      floats: have quantized weights become the floats they stand for, as training and pruning want them;
        those of GGUF files always do.

    Returns:
      The model, with its tokenizer where there is one, and its history, which for a model that
      ragjax did not write begins with where it came from.

    Raises:
      InputError: the model is not there, not of a known family, or damaged.

    Example:
      >>> from tempfile import mkdtemp
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> folder = save(Model(config, init_params(config, seed=0)), mkdtemp())
      >>> model = load(folder)
      >>> model(jnp.array([[1, 2, 3]])).shape
      (1, 3, 300)
    """
    folder = resolve(model)
    if folder.is_file():
        return read_gguf(folder, source=str(model), dtype=dtype, mesh=mesh)
    if is_onnx(folder):
        raise InputError(
            f"{folder} holds an ONNX graph, whose weights nothing reads back: `ragjax generate` runs it, and "
            "in Python `ragjax.interchange.onnx.load_onnx`; for all else give the model it was made from."
        )
    values = read_object(folder / "config.json")
    family = family_of(values)
    config = _with_all_ends(family.config_from(values), folder)
    history = read_history(folder)
    tokenizer = read_tokenizer(folder, values["model_type"])
    if tokenizer is not None:
        check_vocabulary(tokenizer, config.vocab_size)
    history = _imported(model, folder) if history is None else history
    params = read_quantized(folder, config, dtype, mesh)
    if params is not None:
        found = Model(config, params, tokenizer, history)
        return _in_floats(found, dtype, mesh) if floats else found
    tensors = open_bitmask(folder) or open_tensors(folder)
    return Model(config, read_params(tensors, family.layout(config), config, dtype, mesh), tokenizer, history)


def _in_floats(model: Model, dtype: Any, mesh: Mesh | None) -> Model:
    whole = model.in_floats()
    params = jax.tree.map(lambda x: x.astype(dtype), whole.params)
    return replace(whole, params=params if mesh is None else place(params, mesh))


def _with_all_ends(config: DecoderConfig, folder: Path) -> DecoderConfig:
    """The architecture with the end tokens of generation_config.json, where it has any: chat models' do.

    Raises:
      InputError: what is there names no tokens.
    """
    file = folder / "generation_config.json"
    stated: Any = read_object(file).get("eos_token_id") if file.is_file() else None
    if not TOKENS.accepts(stated):
        raise InputError(f"{file}: eos_token_id must be {TOKENS.expected}, found {stated!r}.")
    ends = stated if isinstance(stated, list) else [stated]
    known = tuple(end for end in ends if end is not None and end < config.vocab_size)
    if not known:
        return config
    return replace(config, eos_token=known if isinstance(stated, list) else known[0])


def _imported(model: str | Path, folder: Path) -> tuple[dict[str, Any], ...]:
    entry = {"did": "import", "source": str(model)}
    if not Path(model).expanduser().exists() and _COMMIT.fullmatch(folder.name):
        entry["revision"] = folder.name
    return (entry,)


def save(
    model: Model,
    folder: str | Path,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    shard_bytes: int = 5_000_000_000,
    storage: str = "dense",
) -> Path:
    """Writes a model as a Hugging Face folder, whole or not at all.

    It opens in transformers, but for quantized weights, which ragjax alone reads. A GPT-2 with banded
    attention (GPT-3) has no class there, and is refused by it.

    Args:
      model: the model.
      folder: where to.
      dtype: type the weights are stored in, but for quantized ones: "float32", "float16" or "bfloat16".
      overwrite: replace a model that is there.
      shard_bytes: size above which the weights are spread over several files.
      storage: "dense", or "bitmask": one bit a weight and the values that are not zero, which ragjax alone
        reads; see `ragjax.interchange.bitmask`. Quantized weights are stored as
        `ragjax.interchange.quantized` says.

    Returns:
      The folder's path.

    Raises:
      InputError: the folder exists or cannot be written, the tokenizer is of another model, or weights
        are not finite.

    Example:
      >>> from tempfile import mkdtemp
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> folder = save(Model(config, init_params(config, seed=0)), mkdtemp(), dtype="bfloat16")
      >>> sorted(file.name for file in folder.iterdir())
      ['config.json', 'generation_config.json', 'model.safetensors', 'ragjax.json']
    """
    if storage not in STORAGES:
        raise InputError(f"storage must be one of {', '.join(STORAGES)}, found {storage!r}.")
    config = model.config
    check_params(model.params, config)
    if model.tokenizer is not None:
        check_vocabulary(model.tokenizer, config.vocab_size)
    family = family_for(config)
    layout = family.layout(config)
    values = {**family.config_to(config), "dtype": dtype}
    path = Path(folder).expanduser().resolve()
    with atomic_folder(path, overwrite) as partial:
        write_object(partial / "config.json", values)
        ids = {name: values[name] for name in ("bos_token_id", "eos_token_id") if values[name] is not None}
        write_object(partial / "generation_config.json", {"_from_model_config": True, **ids})
        if has_stand_ins(model.params):
            write_quantized(partial, model.params, config, dtype=dtype)
        else:
            shapes = {stored.name: stored.shape for stored in layout.stored}
            reader = tensor_reader(model.params, layout)
            STORAGES[storage](partial, shapes, reader, dtype=dtype, shard_bytes=shard_bytes)
        write_record(partial, model.params, model.history)
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, partial)
    return path
