import numpy as np
import pytest

from ragjax.errors import InputError


def test_a_sequence_longer_than_the_positions_is_refused(tiny_model):
    assert tiny_model(np.zeros((1, 64), int)).shape == (1, 64, 300)
    with pytest.raises(InputError, match="64 positions, found 65 tokens"):
        tiny_model(np.zeros((1, 65), int))
