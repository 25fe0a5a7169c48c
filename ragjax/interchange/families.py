"""The model families that can be read and written: a later one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ragjax.errors import InputError
from ragjax.interchange import gpt2
from ragjax.interchange.layout import Layout
from ragjax.models.decoder_config import DecoderConfig


class Family(NamedTuple):
    """One way of writing a decoder down."""

    config_from: Callable[[dict[str, Any]], DecoderConfig]
    """config.json to architecture."""
    config_to: Callable[[DecoderConfig], dict[str, Any]]
    """Architecture to config.json."""
    layout: Callable[[DecoderConfig], Layout]
    """Where the tensors belong, in both directions."""
    expresses: Callable[[DecoderConfig], bool]
    """Whether this family can say all that an architecture computes."""


FAMILIES: dict[str, Family] = {
    "gpt2": Family(gpt2.gpt2_from, gpt2.gpt2_to, gpt2.layout, gpt2.is_dense),
    "gpt3": Family(gpt2.gpt3_from, gpt2.gpt3_to, gpt2.layout, lambda config: True),
}
"""By the `model_type` of config.json; the first that expresses an architecture writes it."""


def family_of(config_json: dict[str, Any]) -> Family:
    """The family a config.json belongs to.

    Raises:
      InputError: its `model_type` is not known.
    """
    name = config_json.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"config.json: model_type must be one of {', '.join(FAMILIES)}, found {name!r}.")
    return FAMILIES[name]


def family_for(config: DecoderConfig) -> Family:
    """The family that writes an architecture."""
    return next(family for family in FAMILIES.values() if family.expresses(config))
