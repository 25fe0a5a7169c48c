"""The model families that can be read and written: a later one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ragjax.errors import InputError
from ragjax.interchange import gpt2, gpt_neo, gpt_neox, llama, opt, qwen2
from ragjax.interchange.layout import Layout
from ragjax.models.decoder_config import DecoderConfig


class Family(NamedTuple):
    """One way of writing a decoder down."""

    config_from: Callable[[dict[str, Any]], DecoderConfig]
    """config.json to architecture."""
    config_to: Callable[[DecoderConfig], dict[str, Any]]
    """Architecture to config.json; what the family has no field for is left out."""
    layout: Callable[[DecoderConfig], Layout]
    """Where the tensors belong, in both directions."""

    def expresses(self, config: DecoderConfig) -> bool:
        """Whether this family's config.json says all that an architecture computes."""
        try:
            return self.config_from(self.config_to(config)).spelled_out() == config.spelled_out()
        except InputError:
            return False


FAMILIES: dict[str, Family] = {
    "gpt2": Family(gpt2.gpt2_from, gpt2.gpt2_to, gpt2.layout),
    "gpt3": Family(gpt2.gpt3_from, gpt2.gpt3_to, gpt2.layout),
    "gpt_neo": Family(gpt_neo.gpt_neo_from, gpt_neo.gpt_neo_to, gpt_neo.layout),
    "opt": Family(opt.opt_from, opt.opt_to, opt.layout),
    "gpt_neox": Family(gpt_neox.gpt_neox_from, gpt_neox.gpt_neox_to, gpt_neox.layout),
    "llama": Family(llama.llama_from, llama.llama_to, llama.layout),
    "qwen2": Family(qwen2.qwen2_from, qwen2.qwen2_to, qwen2.layout),
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
    """The family that writes an architecture.

    Raises:
      InputError: none has a field for all that it computes.
    """
    for family in FAMILIES.values():
        if family.expresses(config):
            return family
    raise InputError(
        f"No family of models ({', '.join(FAMILIES)}) has fields for all of this architecture, so that it "
        f"cannot be saved: {config}."
    )
