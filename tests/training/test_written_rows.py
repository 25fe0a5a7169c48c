"""From a batch of text to prompts, and from what was written after them to a batch."""

import jax
import numpy as np
import pytest

from ragjax.data.batches import Batch, Batches
from ragjax.data.corpus import Corpus
from ragjax.generation.rollout import Written
from ragjax.training.written_rows import Rows, batch_of, prompts_of, rows_of

ROWS, SEQ = 6, 10


def text(isolated=False):
    tokens = np.arange(100, 300, dtype=np.uint16)
    corpus = Corpus(tokens, np.array([0, 13, 22, 31, 33, 44, 60, 99]), utf8_bytes=0, words=0)
    batches = Batches(
        corpus=corpus, batch_size=ROWS, sequence_length=SEQ, isolate_documents=isolated, fixed_cuts=True
    )
    return batches.at(np.arange(ROWS)), corpus


def dealt(batch, accumulate=2):
    return jax.tree.map(lambda x: x.reshape(accumulate, ROWS // accumulate, *x.shape[1:]), batch)


def prompts(prompted):
    """Each prompt without what stands before it."""
    cut = zip(np.asarray(prompted.tokens), np.asarray(prompted.padding), strict=True)
    return [row[padding:].tolist() for row, padding in cut]


def rows_in(batch):
    """The rows in the order in which prompts are taken: those of one place in all microbatches together."""
    return [np.asarray(batch.tokens[micro, row]) for row in range(ROWS // 2) for micro in range(2)]


def test_a_sequence_of_text_begins_with_its_prompt():
    batch = dealt(text()[0])
    found = prompts_of(batch, longest=4, new_tokens=None)
    assert prompts(found) == [row[:4].tolist() for row in rows_in(batch)]
    assert found.limit.tolist() == [SEQ + 1 - 4] * ROWS
    assert prompts_of(batch, longest=4, new_tokens=5).limit.tolist() == [5] * ROWS
    assert prompts_of(batch, longest=4, new_tokens=50).limit.tolist() == [SEQ + 1 - 4] * ROWS


def test_a_prompt_is_of_one_document_where_they_are_isolated():
    whole, corpus = text(isolated=True)
    batch = dealt(whole)
    found = prompts_of(batch, longest=5, new_tokens=None)
    expected = []
    for row in rows_in(batch):
        begins = [i for i in range(1, 5) if row[i] - 100 in corpus.starts]
        expected.append(row[max(begins, default=0) : 5].tolist())
    assert prompts(found) == expected
    assert sorted(map(len, expected)) == [1, 2, 2, 3, 5, 5]
    assert found.limit.tolist() == [SEQ + 1 - len(prompt) for prompt in expected]


@pytest.fixture
def pairs():
    """Batches of pairs whose tokens count up, and the prompts by their first token."""
    sizes = [(3, 4), (1, 1), (8, 2), (2, 9), (7, 1), (5, 20), (1, 5), (2, 2), (1, 3), (4, 4)]
    prompts_, completions = np.array(sizes).T
    ends = np.cumsum(prompts_ + completions)
    starts = ends - prompts_ - completions
    corpus = Corpus(
        np.arange(100, 100 + ends[-1], dtype=np.uint16), starts, utf8_bytes=0, words=0,
        completions=starts + prompts_,
    )  # fmt: skip
    made = {
        pack: Batches(corpus=corpus, batch_size=ROWS, sequence_length=SEQ, pack_pairs=pack) for pack in (0, 1)
    }
    return made, {100 + start: length for start, (length, _) in zip(starts.tolist(), sizes, strict=True)}


def test_a_pair_has_a_prompt_of_its_own(pairs):
    made, lengths = pairs
    batch = dealt(made[False].batch(0))
    found = prompts_of(batch, longest=8, new_tokens=6, one_of_pairs=jax.random.key(0))
    assert prompts(found) == [row[: lengths[row[0]]].tolist() for row in rows_in(batch)]
    assert found.limit.tolist() == [min(6, SEQ + 1 - lengths[row[0]]) for row in rows_in(batch)]


def test_of_pairs_in_one_sequence_each_is_as_likely_to_be_continued(pairs):
    made, lengths = pairs
    batch = dealt(made[True].batch(0))
    choose = jax.jit(lambda key: prompts_of(batch, longest=8, new_tokens=None, one_of_pairs=key))
    chosen = [[] for _ in range(ROWS)]
    for seed in range(300):
        for number, prompt in enumerate(prompts(choose(jax.random.key(seed)))):
            assert prompt == list(range(prompt[0], prompt[0] + lengths[prompt[0]]))
            chosen[number].append(prompt[0])
    several = 0
    for found, row in zip(chosen, rows_in(batch), strict=True):
        there = [token for token in dict.fromkeys(row.tolist()) if token in lengths]
        several += len(there) > 1
        # With a deviation of 0.03 at most.
        assert [found.count(token) / 300 for token in there] == pytest.approx(
            [1 / len(there)] * len(there), abs=0.1
        )
    assert several > 1


@pytest.fixture
def made():
    """Prompts of isolated documents, something written after each, and the rows of both."""
    batch = dealt(text(isolated=True)[0])
    prompted = prompts_of(batch, longest=5, new_tokens=6)
    rng = np.random.default_rng(0)
    lengths = np.array([6, 1, 3, 2, 6, 4], np.int32)
    ratio = rng.uniform(0.1, 2, (ROWS, 6)).astype(np.float32)
    written = Written(rng.integers(1, 50, (ROWS, 6)).astype(np.int32), lengths, ratio)
    return batch, prompted, written, rows_of(prompted, written, seq=SEQ)


def test_a_row_is_prompt_and_writing_flush_left(made):
    _, prompted, written, rows = made
    for number, prompt in enumerate(prompts(prompted)):
        new = written.tokens[number, : written.length[number]].tolist()
        assert rows.tokens[number].tolist() == (prompt + new + [0] * SEQ)[: SEQ + 1]
        assert (rows.begin[number], rows.end[number]) == (len(prompt), len(prompt) + len(new))
        expected = np.ones(SEQ, np.float32)
        expected[len(prompt) - 1 :][: len(new)] = written.ratio[number, : len(new)]
        np.testing.assert_array_equal(rows.factors[number], expected)


@pytest.mark.parametrize("alike", [False, True])
def test_what_was_written_counts_and_all_tokens_or_all_sequences_alike(made, alike):
    batch, prompted, written, rows = made
    found = batch_of(rows, accumulate=2, isolated=True, alike=alike)
    assert found.tokens.shape == found.weights.shape == (2, 3, SEQ)
    assert found.written.tolist() == [1, 1]
    total = written.length.sum()
    for number, prompt in enumerate(prompts(prompted)):
        micro, row = number % 2, number // 2
        # Each goes to the microbatch its prompt came from.
        assert set(prompt) <= set(batch.tokens[micro, row].tolist())
        assert found.tokens[micro, row].tolist() == rows.tokens[number, :-1].tolist()
        assert found.targets[micro, row].tolist() == rows.tokens[number, 1:].tolist()
        assert found.factors[micro, row].tolist() == rows.factors[number].tolist()
        length = written.length[number]
        each = total / ROWS / length if alike else 1.0
        expected = np.zeros(SEQ)
        expected[len(prompt) - 1 :][:length] = each
        np.testing.assert_allclose(found.weights[micro, row], expected, rtol=1e-6)
        assert found.weights[micro, row].sum() == pytest.approx(total / ROWS if alike else length, rel=1e-6)
    assert found.weights.sum() == pytest.approx(total, rel=1e-6)
    assert found.segments.tolist() == np.zeros((2, 3, SEQ)).tolist()
    assert found.positions.tolist() == np.broadcast_to(np.arange(SEQ), (2, 3, SEQ)).tolist()


def test_a_written_batch_has_the_arrays_of_a_text_and_two_marks():
    rows = Rows(np.ones((ROWS, SEQ + 1), np.int32), np.full(ROWS, 3), np.full(ROWS, 8), None)
    for isolated in (False, True):
        batch = dealt(text(isolated)[0])
        found = batch_of(rows, accumulate=2, isolated=isolated, alike=False)
        shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), b) for b in (batch, found)]
        assert shapes[1]._replace(written=None) == shapes[0]
    assert Batch._fields[-2:] == ("factors", "written")
