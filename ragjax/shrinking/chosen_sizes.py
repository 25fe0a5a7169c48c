"""The sizes a config asks for, or the largest within its budget."""

from __future__ import annotations

import math
from typing import NamedTuple

from ragjax.config import Shrink
from ragjax.models.decoder_config import DecoderConfig
from ragjax.shrinking.written import writable
from ragjax.sparsity.shrink import (
    Found,
    Range,
    Sizes,
    explicit_sizes,
    flops_per_token,
    parameter_count,
    resized,
    search,
    sizes_of,
)
from ragjax.sparsity.shrink.search import Cost

_TIMED_STEPS = 16
"""Into how many steps a size is cut at most where every candidate has to be timed."""


class Budget(NamedTuple):
    """What a shrunk model may cost."""

    name: str
    """params, flops or latency."""
    share: float
    """Of the model's own."""


def budget_of(config: Shrink) -> Budget | None:
    """The budget of a config; none where it names sizes alone."""
    shares = {"params": config.params, "flops": config.flops, "latency": config.latency}
    return next((Budget(name, share) for name, share in shares.items() if share is not None), None)


def chosen_sizes(shape: DecoderConfig, config: Shrink, *, length: int, tensor: int, latency: Cost) -> Found:
    """The sizes asked for, or the largest within the budget.

    Args:
      shape: the architecture that shrinks.
      config: how small.
      length: tokens in a sequence, for which operations are counted.
      tensor: devices that have to be able to split each layer.
      latency: share of the model's latency that a candidate takes.

    Raises:
      InputError: the model cannot be cut so, or the budget is out of reach.
    """
    budget, tensor = budget_of(config), math.lcm(config.tensor, tensor)
    asked = explicit_sizes(
        shape, layers=config.layers, width=config.width, heads=_heads(shape, config),
        kv_heads=config.kv_heads, mlp_width=config.mlp_width, tensor=tensor if budget is None else 1,
    )  # fmt: skip
    if budget is None:
        return Found(asked, parameter_count(resized(shape, asked)) / parameter_count(shape))
    steps = {"neurons": asked.mlp_width, "width": asked.width} if budget.name == "latency" else {}
    multiples = {kind: _coarse(config.multiple, size) for kind, size in steps.items()}
    over = Range(
        asked, _what(shape, asked, config), multiples.get("neurons", config.multiple),
        multiples.get("width", config.multiple), tensor, writable,
    )  # fmt: skip
    costs: dict[str, Cost] = {
        "params": parameter_count,
        "flops": lambda candidate: flops_per_token(candidate, length),
        "latency": latency,
    }
    found = search(shape, over, costs[budget.name], budget.share)
    explicit_sizes(shape, **found.sizes._asdict(), tensor=tensor)
    return found


def _coarse(multiple: int, size: int) -> int:
    """A multiple of `multiple` that goes into a size not much more often than `_TIMED_STEPS` times."""
    return multiple * max(1, size // (_TIMED_STEPS * multiple))


def _heads(shape: DecoderConfig, config: Shrink) -> int | None:
    """The query heads asked for; where a width alone is, as many as can be written with it."""
    searched = "heads" in config.what
    if config.width is None or searched or config.heads is not None or config.kv_heads is not None:
        return config.heads
    now = sizes_of(shape)
    queries = now.heads // now.kv_heads
    for groups in range(now.kv_heads, 0, -1):
        tried = now._replace(width=config.width, heads=groups * queries, kv_heads=groups)
        if writable(resized(shape, tried)):
            return tried.heads
    return None


def _what(shape: DecoderConfig, start: Sizes, config: Shrink) -> tuple[str, ...]:
    """What a budget may shrink: what was said, or what can be written and was not given a size."""
    if config.what:
        return config.what
    queries = start.heads // start.kv_heads
    alone = (
        resized(shape, start._replace(heads=groups * queries, kv_heads=groups))
        for groups in range(1, start.kv_heads)
    )
    tied = start.kv_heads > 1 and not any(map(writable, alone))
    given = {
        "neurons": config.mlp_width is not None,
        "heads": bool(config.heads or config.kv_heads or (tied and config.width)),
        "width": config.width is not None or (tied and bool(config.heads or config.kv_heads)),
    }
    wanted = ("neurons", "heads", "width") if tied else ("neurons", "heads")
    return tuple(kind for kind in wanted if not given[kind])
