"""Sizes for a budget: one share for all that may shrink, then neurons for what is left over."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from ragjax.errors import InputError
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.shrink.sizes import Sizes, resized, sizes_of

KINDS = {"neurons": "mlp_width", "width": "width", "heads": "kv_heads", "layers": "layers"}
"""What may shrink, and the field of `Sizes` that counts it; heads leave with their keys and values."""

Cost = Callable[[DecoderConfig], float]
"""What an architecture costs, in any unit; no more where a size is smaller."""


class Range(NamedTuple):
    """What a search may change, and in what steps."""

    start: Sizes
    """The largest sizes: the model's own, or smaller ones somebody asked for."""
    what: tuple[str, ...]
    """Kinds that shrink: neurons, heads, width, layers."""
    neurons: int
    """Neurons are multiples of it."""
    width: int
    """The width is a multiple of it."""
    tensor: int
    """Heads and neurons are divisible by it."""
    writable: Callable[[DecoderConfig], bool]
    """Whether a file's config can say the architecture."""


class Found(NamedTuple):
    """What a search came to."""

    sizes: Sizes
    share: float
    """Cost over the original's."""


def search(config: DecoderConfig, over: Range, cost: Cost, budget: float) -> Found:
    """The largest sizes whose cost is within a budget.

    All of `over.what` shrink by one share, rounded down to their steps; the largest share that is within
    the budget is found by bisection. As heads and layers leave in large steps, neurons then come back, one
    step after another, as long as the cost stays within it.

    Where heads have to fill the width, as GPT-2's config.json has it, heads leave with the width.

    Args:
      config: the original.
      over: what may change.
      cost: what an architecture costs; measured costs must be remembered by the caller.
      budget: share of the original's cost.

    Raises:
      InputError: not even the smallest sizes are within the budget; says which they are.
    """
    whole = cost(config)

    def share(sizes: Sizes) -> float:
        return cost(resized(config, sizes)) / whole

    sizes = candidates(config, over)
    if not sizes:
        raise InputError(
            f"No smaller model of this family can be written where only {', '.join(over.what)} shrink: its "
            "config.json ties heads to the width. Add heads and width to what."
        )
    reached = bisect_right(sizes, budget, key=share)
    if not reached:
        smallest = share(sizes[0])
        absent = [kind for kind in KINDS if kind not in over.what]
        more = f", or add to what: {', '.join(absent)}" if absent else ""
        named = ", ".join(f"{name} {size}" for name, size in zip(Sizes._fields, sizes[0], strict=True))
        raise InputError(
            f"{budget:g} of the original cannot be reached by shrinking {', '.join(over.what)}: the closest "
            f"is {smallest:.4f}, with {named}. Ask for that{more}."
        )
    best = sizes[reached - 1]
    if "neurons" in over.what:
        fuller = [
            best._replace(mlp_width=n)
            for n in _steps(over.start.mlp_width, over.neurons, over.tensor)
            if n >= best.mlp_width
        ]
        best = fuller[max(bisect_right(fuller, budget, key=share) - 1, 0)]
    return Found(best, share(best))


def candidates(config: DecoderConfig, over: Range) -> Sequence[Sizes]:
    """All sizes a share may lead to that can be written, from the smallest to the largest.

    Args:
      config: the original.
      over: what may change.
    """
    most = over.start
    steps: dict[str, Sequence[int]] = {
        "neurons": _steps(most.mlp_width, over.neurons, over.tensor),
        "width": _steps(most.width, over.width, 1),
        "heads": range(over.tensor, most.kv_heads + 1, over.tensor),
        "layers": range(1, most.layers + 1),
    }
    wholes = {kind: getattr(most, field) for kind, field in KINDS.items()}
    queries = most.heads // most.kv_heads

    @cache
    def writable(width: int, kv_heads: int) -> bool:
        heads = kv_heads * queries
        return over.writable(resized(config, most._replace(width=width, heads=heads, kv_heads=kv_heads)))

    def at(share: Fraction) -> Sizes | None:
        """The sizes at a share of all that shrinks; none where there are no such."""
        fitting = {
            kind: [size for size in steps[kind] if size <= share * wholes[kind]][::-1]
            if kind in over.what
            else [wholes[kind]]
            for kind in KINDS
        }
        if "width" in over.what and "heads" not in over.what:
            fitting["heads"] = [*steps["heads"]][::-1]
        pairs = ((w, g) for g in fitting["heads"] for w in fitting["width"] if writable(w, g))
        width, kv_heads = next(pairs, (0, 0))
        if not (width and fitting["neurons"] and fitting["layers"]):
            return None
        return Sizes(fitting["layers"][0], width, kv_heads * queries, kv_heads, fitting["neurons"][0])

    shares = {Fraction(size, wholes[kind]) for kind in over.what for size in steps[kind]}
    found: list[Sizes] = []
    for sizes in map(at, sorted(shares)):
        # Each at least as large as the one before in every size, so that costs rise along the list.
        if sizes and all(new >= last for new, last in zip(sizes, found[-1] if found else sizes, strict=True)):
            found.append(sizes)
    return [sizes for sizes in dict.fromkeys(found) if sizes != sizes_of(config)]


def _steps(most: int, multiple: int, tensor: int) -> list[int]:
    """Multiples up to `most`, and `most` itself where devices can split it."""
    step = math.lcm(multiple, tensor)
    return sorted({*range(step, most + 1, step), *([most] if most % tensor == 0 else [])})
