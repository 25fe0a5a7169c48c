"""The architectures of GGUF files that can be read and written: a later one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from ragjax.errors import InputError, listing
from ragjax.interchange.gguf import gpt2, llama
from ragjax.interchange.gguf.rope import FACTORS, factors
from ragjax.interchange.layout import Layout
from ragjax.interchange.tensors import Tensors
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.decoder_config import DecoderConfig

_ENDS = ("eos", "eot", "eom")
"""Tokens that end a text, or a turn, in the order in which a model names several."""


class Architecture(NamedTuple):
    """One way of writing a decoder down."""

    config_from: Callable[[dict[str, Any], Tensors], DecoderConfig]
    """Metadata, without the architecture's name before each key, and tensors, to a config."""
    metadata_to: Callable[[DecoderConfig], dict[str, Any]]
    """Config to metadata; what there is no key for is left out."""
    layout: Callable[[DecoderConfig], Layout]
    """Where the tensors belong, in both directions."""


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(gpt2.gpt2_from, gpt2.gpt2_to, gpt2.layout),
    "qwen2": Architecture(llama.qwen2_from, llama.llama_to, llama.qwen2_layout),
    "llama": Architecture(llama.llama_from, llama.llama_to, llama.llama_layout),
}
"""By `general.architecture`; the first that expresses a model writes it."""


def architecture_of(metadata: dict[str, Any]) -> Architecture:
    """The architecture of a file.

    Raises:
      InputError: it is not known.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            f"GGUF files of the architectures {', '.join(ARCHITECTURES)} are read, found {name!r}: give the "
            "model as a Hugging Face folder."
        )
    return ARCHITECTURES[name]


def read_config(metadata: dict[str, Any], tensors: Tensors) -> DecoderConfig:
    """The config of a file.

    Raises:
      InputError: the architecture is not known, or names every key that is wrong or not supported.
    """
    architecture = architecture_of(metadata)
    prefix = f"{metadata['general.architecture']}."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    table = tensors.shapes.get("token_embd.weight")
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    distinct = list(dict.fromkeys(end for end in ends if end is not None))
    values = {"vocab_size": table and table[0]} | values
    values["bos_token_id"] = metadata.get("tokenizer.ggml.bos_token_id")
    values["eos_token_id"] = distinct if len(distinct) > 1 else next(iter(distinct), None)
    config = architecture.config_from(values, tensors)
    if not any(name.startswith(f"blk.{config.layers - 1}.") for name in tensors.shapes):
        raise InputError(
            f"The GGUF file's metadata: block_count {config.layers}, but no tensor is of block "
            f"{config.layers - 1}: copy or download the file again."
        )
    return config


class Written(NamedTuple):
    """A model as one architecture writes it."""

    name: str
    metadata: dict[str, Any]
    layout: Layout
    constants: dict[str, np.ndarray]
    """Tensors that follow from the config."""


def write_config(config: DecoderConfig) -> Written:
    """The metadata and the tensors that express a config.

    Raises:
      InputError: no architecture has keys for all that it computes; says what the nearest lacks.
    """
    lacks = {}
    for name in ARCHITECTURES:
        written = _written(name, config)
        lacks[name] = _lost(written, config)
        if not lacks[name]:
            return written
    nearest = min(lacks, key=lambda name: len(lacks[name]))
    raise InputError(
        f"No GGUF architecture that is written here ({', '.join(ARCHITECTURES)}) says all that this model "
        f"computes; the nearest, {nearest}, would lose:\n{listing(lacks[nearest])}\n"
        "Export it in another format."
    )


def _written(name: str, config: DecoderConfig) -> Written:
    architecture = ARCHITECTURES[name]
    metadata = {f"{name}.{key}": value for key, value in architecture.metadata_to(config).items()}
    metadata["general.architecture"] = name
    constants = {}
    if config.rotary is not None and config.rotary.scaling and config.rotary.scaling.kind == "llama3":
        constants[FACTORS] = factors(config.rotary, config.head_width)
    return Written(name, metadata | _token_ids(config), architecture.layout(config), constants)


def _token_ids(config: DecoderConfig) -> dict[str, int]:
    ends = config.eos_token
    ends = ends if isinstance(ends, tuple) else () if ends is None else (ends,)
    if len(ends) > len(_ENDS):
        raise InputError(
            f"GGUF has room for {len(_ENDS)} tokens that end a text, the model has {list(ends)}."
        )
    names = ("bos", *_ENDS[: len(ends)])
    given = zip(names, (config.bos_token, *ends), strict=True)
    return {f"tokenizer.ggml.{name}_token_id": token for name, token in given if token is not None}


class _Planned:
    """Tensors that are to be written, of which shapes and constants are known."""

    def __init__(self, written: Written):
        self.shapes = {stored.name: stored.shape for stored in written.layout.stored}
        self.shapes |= {name: values.shape for name, values in written.constants.items()}
        self.dtypes = dict.fromkeys(self.shapes, "F32")
        self._constants = written.constants

    def read(self, name: str) -> np.ndarray:
        return self._constants[name]


def _lost(written: Written, config: DecoderConfig) -> list[str]:
    """The fields of `config` that what is written does not give back."""
    try:
        back = _plain(read_config(written.metadata, _Planned(written)))
    except InputError as error:
        return [str(error)]
    ours = _plain(config)
    return [
        f"{field.name} {getattr(ours, field.name)!r}"
        for field in fields(DecoderConfig)
        if getattr(ours, field.name) != getattr(back, field.name)
    ]


def _plain(config: DecoderConfig) -> DecoderConfig:
    """The same for who computes logits, with nothing left to defaults and one name for each activation."""
    same = [name for name, made in ACTIVATIONS.items() if made is ACTIVATIONS[config.activation]]
    return replace(
        config.spelled_out(),
        activation=same[0],
        upcast_attention=False,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        initializer_range=0.0,
    )
