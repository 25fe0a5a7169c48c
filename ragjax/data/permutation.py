"""Shuffled orders that are computed, not stored."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt

_ROUNDS = 6


def mixed(*keys: int | np.uint64 | UInt[np.ndarray, "*shape"]) -> UInt[np.ndarray, "*shape"]:
    """Numbers in [0, 2^64) that look random and depend on every one of `keys`.

    Reference: Steele et al., "Fast Splittable Pseudorandom Number Generators" (SplitMix64).
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            state = (state ^ np.asarray(key, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permuted(
    index: Int[np.ndarray, "*shape"], size: int, *keys: int | np.uint64 | UInt[np.ndarray, "*shape"]
) -> Int[np.ndarray, "*shape"]:
    """The place of each `index` in a shuffled order of `size` things: a bijection of [0, size).

    A Feistel network permutes the next power of four; what falls outside goes through it again.

    Args:
      index: numbers in [0, size).
      size: how many things are shuffled.
      *keys: each choice of keys is another order; numbers or arrays like `index`.

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (cycle walking).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    place = np.asarray(index, np.uint64)
    outside = np.ones(place.shape, bool)
    while outside.any():
        left, right = place >> half, place & low
        for number in range(_ROUNDS):
            left, right = right, left ^ (mixed(*keys, number, right) & low)
        place = np.where(outside, (left << half) | right, place)
        outside = place >= np.uint64(size)
    return place.astype(np.int64)
