"""Divisions move into what makes the inputs, and the model computes what it did."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ragjax.models.blockwise import one_layer
from ragjax.models.run import run_decoder
from ragjax.quantization.folding import Maker, folded, maker, tied
from ragjax.sparsity.calibrated.statistics import readers

QKV = ("attention/key/kernel", "attention/query/kernel", "attention/value/kernel")
OUT, DOWN = ("attention/out/kernel",), ("mlp/down/kernel",)
LAYERED = {QKV: Maker(("attention_norm/scale", "attention_norm/bias"))}
VALUES = {OUT: Maker(("attention/value/kernel", "attention/value/bias"))}
UP = {("mlp/up/kernel",): Maker(("mlp_norm/scale", "mlp_norm/bias"))}
EXPECTED = {
    "gpt2": {**LAYERED, **VALUES, **UP, DOWN: None},
    "gpt_neox": {**LAYERED, **VALUES, **UP, DOWN: None},
    "opt": {**LAYERED, **VALUES, **UP, DOWN: Maker(("mlp/up/kernel", "mlp/up/bias"))},
    "opt-350m": {
        QKV: None, **VALUES, ("mlp/up/kernel",): None, DOWN: Maker(("mlp/up/kernel", "mlp/up/bias"))
    },
    "llama": {
        QKV: Maker(("attention_norm/scale",)),
        OUT: Maker(("attention/value/kernel",), copies=2),
        ("mlp/gate/kernel", "mlp/up/kernel"): Maker(("mlp_norm/scale",)),
        DOWN: Maker(("mlp/up/kernel",)),
    },
    "qwen2": {
        QKV: Maker(("attention_norm/scale",)),
        OUT: Maker(("attention/value/kernel", "attention/value/bias"), copies=2),
        ("mlp/gate/kernel", "mlp/up/kernel"): Maker(("mlp_norm/scale",)),
        DOWN: Maker(("mlp/up/kernel",)),
    },
}  # fmt: skip


def groups_of(config, params):
    block = one_layer(params["layers"], 0)
    return readers(config, block, [n for n in flatten_dict(block, sep="/") if n.endswith("kernel")])


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_makes_the_inputs_divides_them(kind, of_kind, random_model):
    config = of_kind(kind)
    found = {group: maker(config, group) for group in groups_of(config, random_model(config).params)}
    assert found == EXPECTED[kind]


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt-350m", "qwen2"])
def test_a_model_with_divisions_folded_computes_the_same(kind, of_kind, random_model):
    config = of_kind(kind, layers=1)
    rng = np.random.default_rng(0)
    params = random_model(config).params
    leaves = flatten_dict(one_layer(params["layers"], 0), sep="/")
    changed = {}
    for group, inputs in groups_of(config, params).items():
        made_by = maker(config, group)
        divisors = tied(config, made_by, np.exp(rng.normal(size=inputs)).astype(np.float32))
        new = folded(config, leaves | changed, group, made_by, divisors)
        assert set(new) == (set() if made_by is None else {*group, *made_by.leaves})
        changed |= new
    stacked = {name: leaf[None] for name, leaf in (leaves | changed).items()}
    moved = {**params, "layers": unflatten_dict(stacked, sep="/")}
    tokens = rng.integers(0, 50, (2, 12))
    before, after = (np.asarray(run_decoder(config, p, tokens).hidden) for p in (params, moved))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_heads_that_share_values_share_divisors(of_kind):
    config = of_kind("llama")
    divisors = np.exp(np.random.default_rng(0).normal(size=24)).astype(np.float32)
    found = np.asarray(tied(config, maker(config, OUT), divisors)).reshape(3, 2, 4)
    expected = np.sqrt(divisors.reshape(3, 2, 4).prod(1))
    np.testing.assert_allclose(found, np.stack([expected, expected], 1), rtol=1e-5)
