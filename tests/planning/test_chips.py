import pytest

from ragjax.errors import InputError
from ragjax.planning.chips import CHIPS, slice_named


@pytest.mark.parametrize(("name", "count"), [("v5e:4x4", 16), ("v5p:4x4x4", 64), ("v4:2x2x4", 16)])
def test_a_slice_has_as_many_chips_as_its_sides_say(name, count):
    assert slice_named(name).chips == count
    assert slice_named(name).chip == CHIPS[name.split(":")[0]]


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v3:2x2", "v5e:0x4", "v5p:4x4x4x4", "v5e:4x4 "])
def test_other_names_are_refused_with_the_chips_there_are(name):
    with pytest.raises(InputError, match="v4, v5e, v5p, v6e"):
        slice_named(name)


def test_clock_rates_are_those_the_published_operations_come_from():
    """As in the "How to scale your model" book, https://jax-ml.github.io/scaling-book/tpus."""
    published = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
    assert {name: chip.cycles_per_second for name, chip in CHIPS.items()} == pytest.approx(
        published, rel=0.01
    )
