"""Heads of zeros change no logit."""

import dataclasses

import numpy as np
import pytest

from ragjax.model import Model
from ragjax.models.decoder_config import Rotary
from ragjax.sparsity.shrink import HeadShape, head_shape, pad_heads, parameter_count, with_heads


def test_padded_heads_compute_the_same(kin, text):
    now = head_shape(kin.config)
    to = HeadShape(now.kv_heads + 2, now.queries + (now.queries > 1), now.head_width)
    params, config = pad_heads(kin.params, kin.config, to)
    assert head_shape(config) == to
    np.testing.assert_allclose(Model(config, params)(text[0]), kin(text[0]), rtol=1e-4, atol=1e-4)
    sizes = sum(np.size(leaf) for group in params["layers"]["attention"].values() for leaf in group.values())
    assert sizes > sum(np.size(x) for g in kin.params["layers"]["attention"].values() for x in g.values())


@pytest.mark.parametrize("rotary", [None, Rotary()])
@pytest.mark.parametrize("scaled", [True, False])
def test_wider_heads_scale_and_turn_as_before(gpt2, text, rotary, scaled):
    config = dataclasses.replace(gpt2.config, scale_attention=scaled, rotary=rotary)
    params, wider = pad_heads(gpt2.params, config, HeadShape(6, 1, 8))
    assert (wider.head_width, wider.heads) == (8, 6)
    found, expected = Model(wider, params)(text[0]), Model(config, gpt2.params)(text[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_architecture_says_how_many_parameters_there_are(grouped):
    to = HeadShape(4, 3, 6)
    params, config = pad_heads(grouped.params, grouped.config, to)
    assert config == with_heads(grouped.config, to)
    assert params["layers"]["attention"]["key"]["kernel"].shape == (3, 24, 24)
    assert params["layers"]["attention"]["out"]["kernel"].shape == (3, 72, 24)
    assert parameter_count(config) > parameter_count(grouped.config)
