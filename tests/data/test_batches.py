import jax
import numpy as np
import pytest

from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.errors import InputError

EOS = 60_000


def _corpus(*lengths: int) -> Corpus:
    """Documents whose tokens count up through the whole corpus, each closed by EOS."""
    lengths = np.array(lengths)
    tokens = np.arange(lengths.sum(), dtype=np.uint16)
    tokens[np.cumsum(lengths) - 1] = EOS
    return Corpus(tokens, np.cumsum(lengths) - lengths, utf8_bytes=0, words=0)


def _counting(size: int) -> Corpus:
    return Corpus(np.arange(size, dtype=np.uint16), np.zeros(1, np.int64), utf8_bytes=0, words=0)


def _epoch(batches: Batches, epoch: int) -> np.ndarray:
    """Tokens of all sequences of an epoch, with batches of one sequence."""
    first = epoch * batches.windows
    return np.concatenate([batches.batch(first + i).tokens for i in range(batches.windows)])


def _made(corpus: Corpus, **options) -> Batches:
    return Batches(corpus=corpus, **{"batch_size": 1, "sequence_length": 8, "seed": 0, **options})


def test_targets_are_the_next_tokens():
    batch = _made(_counting(100), batch_size=5).batch(3)
    assert batch.tokens.shape == batch.targets.shape == batch.weights.shape == (5, 8)
    np.testing.assert_array_equal(batch.targets, (batch.tokens + 1) % 100)
    np.testing.assert_array_equal(batch.weights, 1)
    assert (batch.tokens.dtype, batch.weights.dtype) == (np.int32, np.float32)
    assert batch.segments is None
    assert batch.positions is None


@pytest.mark.parametrize("size", [9, 16, 17, 100, 104, 1003])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_reads_no_token_twice_and_misses_less_than_a_window(size, epoch):
    tokens = _epoch(_made(_counting(size)), epoch).ravel()
    assert len(np.unique(tokens)) == len(tokens) > size - 8


def test_orders_and_cuts_differ_between_epochs_and_seeds():
    corpus = _counting(1003)
    epochs = [_epoch(_made(corpus, seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(epoch[:, 0]) for epoch in epochs}) == 4
    assert len({tuple(np.sort(epoch[:, 0])) for epoch in epochs}) == 4


def test_neighbours_in_the_text_are_not_neighbours_in_an_epoch():
    starts = _epoch(_made(_counting(8000)), 0)[:, 0]
    assert np.mean(np.abs(np.diff(starts.astype(int))) == 8) < 0.02


def test_a_batch_is_a_function_of_seed_and_step():
    corpus = _counting(500)
    first, second = _made(corpus, batch_size=3, seed=4), _made(corpus, batch_size=3, seed=4)
    for step in (11, 2, 10**9):
        first.batch(step + 1)
        np.testing.assert_array_equal(first.batch(step).tokens, second.batch(step).tokens)


def test_the_same_sequences_come_in_batches_of_any_size():
    corpus = _counting(100)
    rows = np.concatenate([_made(corpus, batch_size=1).batch(i).tokens for i in range(60)])
    many = np.concatenate([_made(corpus, batch_size=20).batch(i).tokens for i in range(3)])
    np.testing.assert_array_equal(rows, many)


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6, 12])
def test_the_rows_of_all_hosts_are_the_global_batch(hosts, isolate):
    batches = _made(_corpus(*[5, 11, 3] * 8), batch_size=12, isolate_documents=isolate)
    for step in (0, 1, 7):
        share = 12 // hosts
        parts = [batches.batch(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        whole = batches.batch(step)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *x: np.concatenate(x), *parts), whole)


def test_isolated_documents_are_numbered_and_start_at_position_zero():
    corpus = _corpus(3, 5, 1, 20, 4)
    batches = _made(corpus, batch_size=len(corpus), sequence_length=7, isolate_documents=True)
    owner = np.repeat(np.arange(corpus.documents), np.diff([*corpus.starts, len(corpus)]))
    place = {int(start): None for start in corpus.starts}
    for step in range(3):
        batch = batches.batch(step)
        for row in range(len(batch.tokens)):
            index = _index(corpus, batch.tokens[row], batch.targets[row])
            segment = position = 0
            for t, i in enumerate(index[:-1]):
                if t and int(i) in place:
                    segment, position = segment + 1, 0
                assert batch.segments[row, t] == segment
                assert batch.positions[row, t] == position
                same = owner[index[t + 1]] == owner[i] and int(index[t + 1]) not in place
                assert batch.weights[row, t] == float(same)
                position += 1


def _index(corpus: Corpus, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where in the corpus the sequence lies, found by comparing it with every place of the ring."""
    read = [*tokens, targets[-1]]
    ring = np.concatenate([corpus.tokens, corpus.tokens]).astype(np.int64)
    (found,) = (s for s in range(len(corpus)) if ring[s : s + len(read)].tolist() == read)
    return np.arange(found, found + len(read)) % len(corpus)


def test_isolation_changes_no_token():
    corpus = _corpus(*[5, 11, 3] * 8)
    plain, isolated = (
        _made(corpus, batch_size=4, isolate_documents=isolate).batch(2) for isolate in (False, True)
    )
    np.testing.assert_array_equal(plain.tokens, isolated.tokens)
    np.testing.assert_array_equal(plain.targets, isolated.targets)
    np.testing.assert_array_equal(isolated.weights, isolated.tokens != EOS)


def test_a_text_too_short_is_told_in_numbers():
    assert _made(_counting(9)).windows == 1
    with pytest.raises(InputError, match=r"8 tokens .* need 9 tokens, found 8 in 1 documents.*at most 7"):
        _made(_counting(8))
