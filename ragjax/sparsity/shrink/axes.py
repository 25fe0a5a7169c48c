"""Which axis of which parameter goes with which part of a model: a table of patterns over names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array, Int

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.names import path_name
from ragjax.parallel.hosts import to_host

FEATURES, HEADS, GROUPS, NEURONS = "features", "heads", "groups", "neurons"
"""Places of the residual stream; heads of queries; heads of keys and values; neurons of an MLP."""

_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/query/kernel$", (FEATURES, HEADS)),
    (r"attention/query/bias$", (HEADS,)),
    (r"attention/(key|value)/kernel$", (FEATURES, GROUPS)),
    (r"attention/(key|value)/bias$", (GROUPS,)),
    (r"attention/out/kernel$", (HEADS, FEATURES)),
    (r"mlp/(up|gate)/kernel$", (FEATURES, NEURONS)),
    (r"mlp/(up|gate)/bias$", (NEURONS,)),
    (r"mlp/down/kernel$", (NEURONS, FEATURES)),
    (r"(attention/out|mlp/down)/bias$", (FEATURES,)),
    (r"norm/(scale|bias)$", (FEATURES,)),
    (r"embedding/(positions|projection/kernel)$", (None, FEATURES)),
    (r"output_projection/kernel$", (FEATURES, None)),
)
_TOKEN_TABLES = re.compile(r"(embedding/tokens|\bhead)$")


def axes_of(name: str, config: DecoderConfig) -> tuple[str | None, ...]:
    """What the last axes of a parameter count; none: nothing that can be removed.

    Args:
      name: of the parameter in the model or in one block, whose axis of layers is not spoken of.
      config: the architecture.

    Example:
      >>> gpt2 = DecoderConfig(vocab_size=9, positions=9, width=4, layers=1, heads=2, mlp_width=8)
      >>> axes_of("layers/mlp/up/kernel", gpt2)
      ('features', 'neurons')
    """
    if _TOKEN_TABLES.search(name):
        return (None, None if config.embedding_width else FEATURES)
    return next(axes for pattern, axes in _AXES if re.search(pattern, name))


def take(tree: Params, config: DecoderConfig, kept: Mapping[str, Int[np.ndarray, " kept"]]) -> Params:
    """The parameters with these parts alone.

    Args:
      tree: parameters of a model, or of one block.
      config: their architecture.
      kept: indices of what stays, rising, by kind of part; kinds that are not named stay whole.
    """
    within = np.arange(config.head_width)
    values = {
        kind: (index[:, None] * config.head_width + within).ravel() if kind in (HEADS, GROUPS) else index
        for kind, index in kept.items()
    }

    def cut(path, leaf):
        axes = axes_of(path_name(path), config)
        for axis, kind in enumerate(axes, start=leaf.ndim - len(axes)):
            if kind in values and len(values[kind]) < leaf.shape[axis]:
                leaf = leaf.take(values[kind], axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(cut, tree)


def sum_over(
    tree: Params, config: DecoderConfig, kind: str, term: Callable[[str, Array], Array]
) -> np.ndarray:
    """Sums a term of every parameter that has a kind of part, over all its axes but those of layers and part.

    Args:
      tree: parameters, stacked over layers.
      config: their architecture.
      kind: of part; heads and groups are summed over their values.
      term: from the name of a parameter and its values to an array of the same shape.

    Returns:
      [layers, parts]; for features [parts], over all layers.
    """
    total: Array | int = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        axes = axes_of(name, config)
        if kind not in axes:
            continue
        own = leaf.ndim - len(axes) + axes.index(kind)
        kept_axes = {own} if kind == FEATURES else {0, own}
        added = term(name, leaf).sum(tuple(i for i in range(leaf.ndim) if i not in kept_axes))
        if kind in (HEADS, GROUPS):
            added = added.reshape(len(added), -1, config.head_width).sum(-1)
        total = total + added
    return to_host(total)
