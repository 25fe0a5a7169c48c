import math

import numpy as np
import pytest

from ragjax.interchange.gguf.rope import factors, scaling_of
from ragjax.models.decoder_config import Rotary, RotaryScaling


def test_factors_are_those_llama_cpp_s_converter_writes():
    base, width, factor = 5e5, 64, 8.0
    expected = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * base ** (i / width)
        smooth = (8192 / wave - 1) / (4 - 1)
        long, short = wave > 8192, wave < 8192 / 4
        expected.append(factor if long else 1 if short else 1 / ((1 - smooth) / factor + smooth))
    found = factors(Rotary(base, None, RotaryScaling("llama3", factor)), width)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len({round(value, 3) for value in found}) > 3


@pytest.mark.parametrize(("base", "width", "factor"), [(5e5, 128, 8.0), (5e5, 64, 32.0), (5e5, 8, 8.0)])
def test_the_scaling_is_known_by_its_factors(base, width, factor):
    scaling = RotaryScaling("llama3", factor)
    assert scaling_of(factors(Rotary(base, None, scaling), width), base) == scaling
