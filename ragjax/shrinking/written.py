"""What a family's config.json can say of a shrunk model, and heads of zeros where it cannot."""

from __future__ import annotations

from dataclasses import replace

from ragjax.errors import InputError
from ragjax.interchange.families import FAMILIES
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.shrink import HeadShape, head_shape, pad_heads, parameter_count, with_heads


def as_written(model: Model) -> Model:
    """The model as its family can be saved: itself, or with heads of zeros, which its history then tells.

    It computes the same. GPT-2, GPT-Neo, OPT and GPT-NeoX have no field for heads that do not fill the
    width; Llama's number of heads must divide it.

    Args:
      model: a shrunk model.

    Raises:
      InputError: no number of heads of zeros makes it a model that can be saved.
    """
    to = as_saved(model.config)
    if to == head_shape(model.config):
        return model
    params, config = pad_heads(model.params, model.config, to)
    told = {
        "did": "pad heads",
        "heads": [model.config.heads, config.heads],
        "kv_heads": [model.config.key_value_heads, config.key_value_heads],
        "head_width": [model.config.head_width, config.head_width],
        "parameters": [parameter_count(model.config), parameter_count(config)],
    }
    return replace(model, config=config, params=params, history=(*model.history, told))


def as_saved(config: DecoderConfig) -> HeadShape:
    """The heads with which an architecture can be saved: its own, or more or wider ones.

    Args:
      config: the architecture.

    Raises:
      InputError: there are none.
    """
    now = head_shape(config)
    if writable(config):
        return now
    most = max(2 * config.heads, config.width // now.head_width)
    shapes = [
        HeadShape(groups, queries, width)
        for groups in range(now.kv_heads, most + 1)
        for queries in range(now.queries, most // groups + 1)
        for width in {now.head_width, config.width // (groups * queries)}
        if width >= now.head_width
    ]
    fitting = [shape for shape in shapes if writable(with_heads(config, shape))]
    if not fitting:
        raise InputError(
            f"No family of models can write {config.heads} heads of {now.head_width} ({now.kv_heads} of keys "
            f"and values) in a width of {config.width}, not even filled up with heads of zeros: choose heads "
            f"and width so that heads x {now.head_width} is the width."
        )
    return min(fitting, key=lambda shape: (parameter_count(with_heads(config, shape)), shape))


def writable(config: DecoderConfig) -> bool:
    """Whether a family's config can say an architecture as it is."""
    return any(family.expresses(config) for family in FAMILIES.values())
