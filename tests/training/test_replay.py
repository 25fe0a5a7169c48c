"""A ring of sequences: the latest stay, and each is as likely to be drawn."""

from collections import deque

import jax
import numpy as np

from ragjax.training.replay import drawn, nothing_kept, put
from ragjax.training.written_rows import Rows


def rows(numbers, factors=True):
    """Sequences that can be told apart."""
    numbers = np.array(numbers, np.int32)
    return Rows(
        numbers[:, None] * 10 + np.arange(5, dtype=np.int32), numbers % 4, numbers % 7,
        np.repeat(numbers[:, None], 4, 1).astype(np.float32) if factors else None,
    )  # fmt: skip


def told(found):
    """The numbers of sequences that are whole: all of a row is of one."""
    numbers = np.asarray(found.tokens[:, 0]) // 10
    jax.tree.map(np.testing.assert_array_equal, found, rows(numbers, found.factors is not None))
    return numbers.tolist()


def test_the_latest_sequences_are_kept_whole():
    kept, expected, number = nothing_kept(7, seq=4, factors=True), deque(maxlen=7), 1
    for size in (3, 3, 2, 7, 1, 5):
        new = list(range(number, number + size))
        kept, number = jax.jit(put)(kept, rows(new)), number + size
        expected.extend(new)
        there = Rows(*(x[: min(number - 1, 7)] for x in kept.rows))
        assert sorted(told(there)) == sorted(expected)
        assert int(kept.total) == number - 1


def test_nothing_is_drawn_twice_and_nothing_that_is_not_there():
    kept = put(nothing_kept(9, seq=4, factors=False), rows(range(1, 6), factors=False))
    draw = jax.jit(drawn, static_argnums=1)
    for seed in range(20):
        found = told(draw(kept, 4, jax.random.key(seed)))
        assert len(set(found)) == 4
        assert set(found) <= set(range(1, 6))
        assert told(draw(kept, 4, jax.random.key(seed))) == found


def test_each_sequence_is_as_likely_to_be_drawn():
    kept = put(nothing_kept(8, seq=4, factors=False), rows(range(8), factors=False))
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda key: drawn(kept, 3, key)))(keys).tokens[..., 0] // 10
    count = np.bincount(np.asarray(found).ravel(), minlength=8)
    # 1500 each, with a deviation of 31.
    assert abs(count - 1500).max() < 130
