import pytest

from ragjax.errors import InputError
from ragjax.quantization import SCHEMES, Scheme


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 3}, "bits must be 4 or 8, found 3"),
        ({"group": 1}, "group must be 0 .all inputs. or at least 2, found 1"),
        ({"bits": 4, "group": 7}, "group must be even"),
        ({"activations": 4}, "activations must be 8 or none"),
        ({"activations": 8, "group": 32}, "one scale an output .group 0., found 8 bits, group 32"),
        ({"bits": 2, "group": -1}, "(?s)bits must be .*group must be"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, said):
    with pytest.raises(InputError, match=said):
        Scheme(**fields)


def test_bits_count_scales_and_zero_points():
    assert SCHEMES["int8"].bits_per_weight(768) == 8 + 16 / 768
    assert Scheme(4, 128, symmetric=False).bits_per_weight(768) == 4 + 24 / 128
