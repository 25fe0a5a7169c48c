import pytest

from ragjax.report import words


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (words.percent, 0.4446, "44 %"), (words.percent, 0.05, "5 %"), (words.percent, 0.0473, "4.7 %"),
        (words.percent, 0.0, "0 %"), (words.percent, 1.0, "100 %"), (words.percent, 0.9999, "99.99 %"),
        (words.signed_percent, -0.48, "−48 %"), (words.signed_percent, 0.031, "+3.1 %"),
        (words.signed_percent, -0.0001, "±0 %"),
        (words.in_bytes, 21_315_584, "21.3 MB"), (words.in_bytes, 999, "999 bytes"),
        (words.in_bytes, 999_900, "1.00 MB"), (words.in_bytes, 0, "0 bytes"),
        (words.compact, 5_328_896, "5.33 M"), (words.compact, 9020, "9.02 k"), (words.compact, 12, "12"),
        (words.compact, 0.123, "0.12"), (words.compact, 0, "0"),
        (words.decimal, 31.5, "31.50"), (words.decimal, 102.44, "102.4"), (words.decimal, 1240.4, "1,240"),
        (words.times, 0.87, "0.87"), (words.times, 1.07, "1.07"), (words.times, 1.83, "1.8"),
        (words.times, 12.4, "12"),
        (words.duration, 0.84, "0.8 s"), (words.duration, 59.8, "1 min 0 s"),
        (words.duration, 200, "3 min 20 s"), (words.duration, 18_720, "5 h 12 min"),
        (words.grouped, 131_072, "131,072"), (words.precise, 1.2584, "1.258"),
    ],
)  # fmt: skip
def test_numbers_read_as_a_person_writes_them(write, value, text):
    assert plain(write(value)) == text


def test_what_is_not_known_is_a_dash():
    writers = (
        words.percent, words.signed_percent, words.in_bytes, words.compact, words.decimal, words.times,
        words.duration, words.grouped, words.precise,
    )  # fmt: skip
    assert {write(None) for write in writers} == {words.NONE}


def test_change_is_relative_and_needs_both():
    assert words.change(31.5, 30) == pytest.approx(0.05)
    assert words.change(None, 30) is None
    assert words.change(3, 0) is None
