import math

import pytest

from ragjax.config import Decoding
from ragjax.errors import InputError


def test_everything_wrong_is_named_at_once():
    with pytest.raises(InputError) as error:
        Decoding(
            max_new_tokens=0, temperature=-1.0, top_k=-1, top_p=0.0, min_p=1.5, repetition_penalty=math.nan,
            beams=0, length_penalty=math.inf, early_stopping="always", stop=("",),
            log_probs=-1, cache_dtype="int4",
        )  # fmt: skip
    message = str(error.value)
    for name in (
        "max_new_tokens must be at least 1, found 0", "temperature must be 0 (greedy) or above, found -1.0",
        "top_k", "top_p", "min_p", "repetition_penalty", "beams", "length_penalty", "early_stopping",
        "stop must be", "log_probs", "cache_dtype",
    ):  # fmt: skip
        assert name in message


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"top_p": 0.9}, "set temperature above 0"),
        ({"beams": 2, "temperature": 1.0}, "leave temperature at 0"),
        ({"beams": 2, "stop": ("x",)}, "stop_tokens instead"),
        ({"beams": 2, "log_probs": 3}, "log_probs to 0"),
        ({"stop": "abc"}, "found 'abc'"),
        ({"temperature": math.nan}, "temperature"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, told):
    with pytest.raises(InputError, match=told):
        Decoding(**fields)
