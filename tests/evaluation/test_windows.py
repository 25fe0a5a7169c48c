import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.evaluation.windows import scored_tokens, sliding_windows


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
