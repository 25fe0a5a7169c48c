"""Batches of pairs: a prompt and its completion in each sequence, of which the completion counts."""

import jax
import numpy as np
import pytest

from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.data.pair_rows import too_long
from ragjax.errors import InputError

SIZES = [(3, 4), (1, 1), (8, 2), (2, 9), (7, 1), (12, 3), (5, 20)]
"""Tokens of each prompt and completion."""


@pytest.fixture
def pairs() -> Corpus:
    """Pairs whose tokens count up through the whole corpus."""
    prompts, completions = np.array(SIZES).T
    ends = np.cumsum(prompts + completions)
    starts = ends - prompts - completions
    return Corpus(
        np.arange(100, 100 + ends[-1], dtype=np.uint16), starts, utf8_bytes=0, words=0,
        completions=starts + prompts,
    )  # fmt: skip


def _made(corpus: Corpus, **options) -> Batches:
    return Batches(corpus=corpus, **{"batch_size": 3, "sequence_length": 9, "seed": 0, **options})


def _expected(corpus: Corpus, first: int, length: int):
    """The tokens of the pair that begins with a token, what follows them, and what of that counts."""
    (number,) = np.flatnonzero(corpus.starts + 100 == first)
    prompt, completion = SIZES[number]
    ids = [first + i for i in range(prompt + completion)][: length + 1]
    return ids[:-1], ids[1:], [float(i >= prompt) for i in range(1, len(ids))]


@pytest.mark.parametrize("length", [7, 9, 16, 40])
def test_a_sequence_is_a_pair_from_its_beginning_of_which_the_completion_counts(pairs, length):
    batches = _made(pairs, sequence_length=length)
    for step in range(9):
        batch = batches.batch(step)
        assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (3, length)
        assert (batch.tokens.dtype, batch.targets.dtype, batch.weights.dtype) == ("int32", "int32", "float32")
        for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
            ids, following, counts = _expected(pairs, tokens[0], length)
            assert tokens[: len(ids)].tolist() == ids
            assert targets[: len(ids)].tolist() == following
            assert weights.tolist() == counts + [0.0] * (length - len(ids))
            assert (weights > 0).any()


def test_padding_holds_tokens_of_the_vocabulary(pairs):
    batch = _made(pairs, sequence_length=40).batch(0)
    assert np.isin(batch.tokens, pairs.tokens).all()
    assert np.isin(batch.targets, pairs.tokens).all()


def test_an_epoch_reads_every_pair_that_fits_once(pairs):
    batches = _made(pairs, batch_size=1, sequence_length=9)
    assert batches.windows == 6
    for epoch in range(3):
        firsts = [batches.batch(6 * epoch + i).tokens[0, 0] - 100 for i in range(6)]
        assert sorted(firsts) == sorted(pairs.starts[[0, 1, 2, 3, 4, 6]])
    orders = {tuple(batches.batch(6 * epoch + i).tokens[0, 0] for i in range(6)) for epoch in range(3)}
    assert len(orders) == 3


def test_pairs_that_are_too_long_are_counted(pairs):
    assert too_long(pairs, 9) == (2, 1)
    assert too_long(pairs, 40) == (0, 0)
    assert too_long(pairs.as_text, 2) == (0, 0)
    with pytest.raises(InputError, match=r"none of 7 leaves room .* sequence of 0\."):
        _made(pairs, sequence_length=0)


@pytest.mark.parametrize("hosts", [1, 2, 3, 6])
def test_the_rows_of_all_hosts_are_the_global_batch(pairs, hosts):
    batches, share = _made(pairs, batch_size=6), 6 // hosts
    for step in (0, 3):
        parts = [batches.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        whole = batches.batch(step)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *x: np.concatenate(x), *parts), whole)


def test_a_batch_is_a_function_of_seed_and_step_wherever_text_would_be_cut(pairs):
    batch = _made(pairs, fixed_cuts=True, isolate_documents=True, seed=2**63).batch(5)
    again = _made(pairs, seed=2**63).batch(5)
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_as_text_pairs_are_documents_like_others(pairs):
    batch = _made(pairs.as_text, isolate_documents=True).batch(0)
    assert batch.segments is not None
    np.testing.assert_array_equal(_made(pairs.as_text).batch(0).weights, 1)
