"""The losses between what student and teacher compute on the way to their scores."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ragjax.config import Distill
from ragjax.distillation.hidden import HIDDEN
from ragjax.distillation.layer_map import layer_pairs
from ragjax.distillation.projections import projected
from ragjax.distillation.relations import relation_kl
from ragjax.models.blockwise import QueriesKeysValues, one_layer, queries_keys_values
from ragjax.models.decoder import DecoderOutput, Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import BATCH_AXES
from ragjax.parallel.pin import pin


class Network(NamedTuple):
    """A network that has run, and what it captured."""

    config: DecoderConfig
    params: Params
    ran: DecoderOutput


def inner_losses(
    student: Network,
    teacher: Network,
    token_weights: Float[Array, "batch seq"],
    *,
    weights: Distill,
    segments: Int[Array | np.ndarray, "batch seq"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Each loss that is asked for, by the name of its weight, before its weight.

    Args:
      student: with its projections, where the widths differ.
      teacher: no gradient goes there.
      token_weights: what each token counts; they sum to 1 over the whole step.
      weights: which losses, of which layers.
      segments: number of the document each token belongs to.
    """
    asked, terms = weights.inner, {}
    hidden = [name for name in HIDDEN if name in asked]
    if hidden:
        pairs = layer_pairs(weights.layer_map, student.config.layers, teacher.config.layers)
        chosen, answered = zip(*pairs, strict=True)
        own = projected(student.params, _picked(_layers(student), chosen))
        others = _picked(_layers(teacher), answered)
        terms = {name: HIDDEN[name](own, others, token_weights) for name in hidden}
    if "relations" in asked:
        layer, other = _relation_layers(weights, student.config, teacher.config)
        terms["relations"] = relation_kl(
            _vectors(student, layer), _vectors(teacher, other), token_weights,
            heads=weights.relation_heads or teacher.config.heads, segments=segments,
        )  # fmt: skip
    return terms


def inner_problems(student: DecoderConfig, teacher: DecoderConfig, weights: Distill) -> list[str]:
    """What keeps two networks from being compared inside, each said in a line.

    Args:
      student: architecture of the student.
      teacher: that of the teacher.
      weights: which losses, of which layers.
    """
    asked, found = weights.inner, []
    table = weights.layer_map
    if HIDDEN.keys() & asked.keys() and isinstance(table, tuple):
        if len(table) != student.layers:
            found.append(
                f"distill.layer_map must have a number for each of the student's {student.layers} layers, "
                f"found {len(table)}"
            )
        if max(table) >= teacher.layers:
            found.append(
                f"distill.layer_map must name layers of the teacher, 0 to {teacher.layers - 1}, "
                f"found {max(table)}"
            )
    if "relations" in asked:
        chosen = _relation_layers(weights, student, teacher)
        for who, layer, network in zip(("student", "teacher"), chosen, (student, teacher), strict=True):
            if not 0 <= layer < network.layers:
                found.append(
                    f"distill.relation_layers must name a layer of the {who}, 0 to {network.layers - 1}, "
                    f"found {layer}"
                )
        heads = weights.relation_heads or teacher.heads
        widths = [network.heads * network.head_width for network in (student, teacher)]
        if any(width % heads for width in widths):
            found.append(
                f"distill.relation_heads must divide the width of all heads together, {widths[0]} in the "
                f"student and {widths[1]} in the teacher, found {heads}"
            )
    return found


def _relation_layers(weights: Distill, student: DecoderConfig, teacher: DecoderConfig) -> tuple[int, int]:
    return weights.relation_layers or (student.layers - 1, teacher.layers - 1)


def _picked(
    layers: Float[Array, "layers batch seq width"], chosen: tuple[int, ...]
) -> Float[Array, "pairs batch seq width"]:
    # All of them are not copied.
    return layers if chosen == tuple(range(len(layers))) else layers[jnp.asarray(chosen)]


def _layers(network: Network) -> Float[Array, "layers batch seq width"]:
    assert network.ran.layers is not None
    # Whole along the width: split there, as projections are, XLA's partitioner has been seen to run the
    # teacher's blocks wrongly (jax 0.10.2, data x fsdp x tensor = 2 x 2 x 2).
    return pin(network.ran.layers, (), BATCH_AXES, (), ())


def _vectors(network: Network, layer: int) -> QueriesKeysValues:
    """Made again from what the layer was given: kept, they would be kept of all layers."""
    before = _layers(network)[layer - 1] if layer else network.ran.embedded
    assert before is not None
    return queries_keys_values(network.config, one_layer(network.params["layers"], layer), before)
