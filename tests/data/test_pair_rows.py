"""Batches of pairs: a prompt and its completion in each sequence, of which the completion counts."""

import jax
import numpy as np
import pytest

from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.data.pair_rows import described
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
    assert described(pairs, 9) == (
        "pairs: 6, sequences: 6, filled to 76%; completions cut at 9 tokens: 2; "
        "left out, as the prompt leaves no room: 1"
    )
    assert described(pairs, 40) == "pairs: 7, sequences: 7, filled to 25%"
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


@pytest.mark.parametrize("length", [9, 12, 16, 24, 60])
def test_packed_pairs_are_those_that_are_not_one_after_another(pairs, length):
    alone, packed = (_made(pairs, batch_size=1, sequence_length=length, pack_pairs=pack) for pack in (0, 1))
    assert packed.windows <= alone.windows
    found = [row for i in range(packed.windows) for row in _unpacked(packed.batch(i))]
    expected = [row for i in range(alone.windows) for row in _unpacked(alone.batch(i))]
    assert sorted(found) == sorted(expected)
    assert packed.tokens_per_batch * packed.windows == pytest.approx(alone.tokens_per_batch * alone.windows)


def _unpacked(batch):
    """Each pair of a batch of one sequence: what is read, and what is to follow where it counts."""
    tokens, targets, weights = batch.tokens[0], batch.targets[0], batch.weights[0]
    segments = np.zeros_like(tokens) if batch.segments is None else batch.segments[0]
    for number in np.unique(segments):
        inside = segments == number
        if batch.positions is not None:
            np.testing.assert_array_equal(batch.positions[0][inside], np.arange(inside.sum()))
        if weights[inside].any():
            last = np.flatnonzero(weights[inside])[-1] + 1
            learned = targets[inside][weights[inside] > 0]
            yield tokens[inside][:last].tolist(), learned.tolist()


def test_many_pairs_fit_one_sequence(pairs):
    assert _made(pairs, sequence_length=82, pack_pairs=True).windows == 1
    assert [_made(pairs, sequence_length=n, pack_pairs=True).windows for n in (40, 24, 9)] == [2, 4, 5]
    assert described(pairs, 82, pack=True) == "pairs: 7, sequences: 1, filled to 94%"


def test_targets_that_count_are_told(pairs):
    batches = _made(pairs, batch_size=1)
    sums = [batches.batch(i).weights.sum() for i in range(batches.windows)]
    assert batches.tokens_per_batch == pytest.approx(np.mean(sums))
    texts = _made(pairs.as_text, batch_size=1, isolate_documents=True, sequence_length=4, fixed_cuts=True)
    sums = [texts.batch(i).weights.sum() for i in range(texts.windows)]
    assert texts.tokens_per_batch == pytest.approx(np.mean(sums), rel=0.05)
    assert _made(pairs.as_text).tokens_per_batch == 3 * 9


def test_texts_are_not_packed(pairs):
    with pytest.raises(InputError, match=r"data\.pack_pairs is for pairs"):
        _made(pairs.as_text, pack_pairs=True)
