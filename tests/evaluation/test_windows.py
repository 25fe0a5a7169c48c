import numpy as np
import pytest

from ragjax.data.corpus import Corpus
from ragjax.errors import InputError
from ragjax.evaluation.windows import corpus_windows, pair_windows, scored_tokens, sliding_windows


def guide(tokens, length, stride):
    """The loop of Hugging Face's guide: (begin, tokens scored by the shifted loss, end)."""
    found, before = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        targets = end - before
        labels = np.full(end - begin, -100)
        labels[-targets:] = np.arange(begin, end)[-targets:]
        found.append((begin, [int(x) for x in labels[1:] if x != -100], end))
        before = end
        if end == tokens:
            break
    return found


@pytest.mark.parametrize(
    ("length", "stride"), [(2, 1), (2, 2), (7, 1), (7, 2), (7, 5), (7, 7), (16, 1), (16, 5), (16, 16)]
)
@pytest.mark.parametrize("tokens", [2, 3, 15, 16, 17, 31, 32, 33, 64])
def test_windows_read_and_score_what_the_guide_does(tokens, length, stride):
    windows = sliding_windows(tokens, sequence_length=length, stride=stride)
    found = [(b, list(range(f, e)), e) for b, f, e in zip(*map(np.ndarray.tolist, windows), strict=True)]
    assert found == guide(tokens, length, stride)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_no_token_is_scored_twice_and_only_first_tokens_are_left_out(stride):
    windows = sliding_windows(30, sequence_length=8, stride=stride)
    scored = scored_tokens(windows)
    assert scored.sum() == (windows.end - windows.first).sum()
    left_out = np.flatnonzero(~scored).tolist()
    assert left_out == ([0, 8, 16, 24] if stride == 8 else [0])


@pytest.mark.parametrize(("tokens", "length", "stride"), [(9, 1, 1), (9, 4, 5), (9, 4, 0), (1, 4, 2)])
def test_windows_that_cannot_score_are_refused(tokens, length, stride):
    with pytest.raises(InputError, match="found"):
        sliding_windows(tokens, sequence_length=length, stride=stride)


@pytest.fixture(scope="module")
def pairs() -> Corpus:
    """Pairs of 3 + 4, 1 + 1, 6 + 2 and 2 + 9 tokens."""
    starts = np.array([0, 7, 9, 17])
    return Corpus(np.arange(28), starts, utf8_bytes=0, words=0, completions=np.array([3, 8, 15, 19]))


def test_a_pair_is_a_window_that_scores_its_completion(pairs):
    windows = corpus_windows(pairs, sequence_length=11, stride=1)
    assert np.array(windows).T.tolist() == [[0, 3, 7], [7, 8, 9], [9, 15, 17], [17, 19, 28]]
    assert np.flatnonzero(scored_tokens(windows)).tolist() == [3, 4, 5, 6, 8, 15, 16, *range(19, 28)]


def test_completions_end_with_the_window_and_prompts_without_room_are_left_out(pairs):
    windows = pair_windows(pairs, sequence_length=6)
    assert np.array(windows).T.tolist() == [[0, 3, 6], [7, 8, 9], [17, 19, 23]]
    with pytest.raises(InputError, match="None of 4 prompts leaves room for a token in windows of 1:"):
        pair_windows(pairs, sequence_length=1)


@pytest.mark.parametrize("most", [1, 3, 4, 5, 6, 15, 16, 99])
def test_at_most_so_many_tokens_of_completions_are_scored(pairs, most):
    windows = corpus_windows(pairs, sequence_length=11, stride=1, max_tokens=most)
    all_of_them = np.flatnonzero(scored_tokens(corpus_windows(pairs, sequence_length=11, stride=1)))
    assert np.flatnonzero(scored_tokens(windows)).tolist() == all_of_them[:most].tolist()


def test_a_text_is_cut_as_before(pairs):
    found = corpus_windows(pairs.as_text, sequence_length=8, stride=3, max_tokens=20)
    np.testing.assert_array_equal(found, sliding_windows(21, sequence_length=8, stride=3))
