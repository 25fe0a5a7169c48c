import pytest

from ragjax.generation.stopping import StopStrings


def fed(strings, pieces):
    stop = StopStrings(strings)
    handed = [stop.push(piece) for piece in pieces]
    return handed, stop.met, stop.finish()


def test_a_text_ends_before_the_string_wherever_it_is_cut():
    text, end = "one two<end>three", "<end>"
    for size in (1, 2, 3, 5, 7, 20):
        handed, met, rest = fed([end], [text[i : i + size] for i in range(0, len(text), size)])
        assert "".join(handed) == "one two"
        assert (met, rest) == (True, "")


def test_what_may_begin_a_string_is_held_back_until_it_shows():
    handed, met, rest = fed(["abc"], ["xa", "b", "aby", "ab"])
    assert handed == ["x", "", "ababy"[:5], ""]
    assert (met, rest) == (False, "ab")


@pytest.mark.parametrize(
    ("strings", "expected"), [(["bc", "abcd"], "xa"), (["abcd", "b"], "xa"), (["d", "xa"], "")]
)
def test_the_string_that_is_complete_first_ends_the_text(strings, expected):
    handed, met, _ = fed(strings, "xabcde")
    assert "".join(handed) == expected
    assert met


def test_without_strings_everything_passes():
    assert fed([], ["a", "b"]) == (["a", "b"], False, "")
