"""Costs in closed form, and sizes for a budget."""

import dataclasses
import math
from functools import partial

import jax
import pytest
from jax.sharding import AbstractMesh

from ragjax.errors import InputError
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig, Rotary
from ragjax.parallel.rules import check_divisible
from ragjax.sparsity.figures import sparsity_figures
from ragjax.sparsity.shrink import (
    Range,
    Sizes,
    explicit_sizes,
    flops_per_token,
    parameter_count,
    resized,
    search,
    sizes_of,
)
from ragjax.sparsity.shrink.search import candidates

GPT2 = DecoderConfig(vocab_size=50257, positions=1024, width=768, layers=12, heads=12, mlp_width=3072)
SMOLLM2 = DecoderConfig(
    vocab_size=49152, positions=8192, width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536, norm="rms",
    gated=True, learned_positions=False, rotary=Rotary(), attention_bias=False, attention_out_bias=False,
    mlp_bias=False,
)  # fmt: skip
COSTS = {"params": parameter_count, "flops": partial(flops_per_token, length=512)}


def over(config, *what, multiple=8, tensor=1, writable=lambda config: True, start=None):
    return Range(start or sizes_of(config), what, multiple, multiple, tensor, writable)


def fills(config):
    """As GPT-2's config.json has it."""
    return config.heads * config.head_width == config.width


def test_parameters_are_counted_as_they_are(kin):
    assert parameter_count(kin.config) == sparsity_figures(kin.params, kin.config).parameters


def test_parameters_of_gpt2_are_those_of_the_published_model():
    assert parameter_count(GPT2) == 124_439_808


def test_operations_are_two_for_each_weight_of_a_product_and_the_attention(kin):
    config = kin.config
    shapes = jax.eval_shape(lambda: init_params(config, 0))
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
    weights = sum(leaf.size for leaf in kernels) + config.vocab_size * config.token_width
    keys = sum(min(window or 10, 10) for window in config.layer_windows)
    attention = 2 * 2 * keys * config.heads * config.head_width
    assert flops_per_token(config, 10) == 2 * weights + attention


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("budget", [0.4, 0.6, 0.83])
@pytest.mark.parametrize(
    ("config", "what", "writable"),
    [
        (GPT2, ("neurons", "heads", "width"), fills),
        (GPT2, ("neurons", "width", "layers"), fills),
        (SMOLLM2, ("neurons", "heads", "width"), lambda config: config.width % config.heads == 0),
        (SMOLLM2, ("neurons", "layers"), lambda config: True),
    ],
    ids=["gpt2", "gpt2 with layers", "llama", "llama with layers"],
)
def test_a_budget_is_kept_and_used_to_a_step_of_neurons(config, what, writable, budget, cost):
    space = over(config, *what, writable=writable)
    found = search(config, space, COSTS[cost], budget)
    assert found.share == COSTS[cost](resized(config, found.sizes)) / COSTS[cost](config) <= budget
    one_more = found.sizes._replace(mlp_width=found.sizes.mlp_width + 8)
    assert found.sizes.mlp_width == config.mlp_width or (
        COSTS[cost](resized(config, one_more)) / COSTS[cost](config) > budget
    )
    assert found.share > budget - 0.05
    assert writable(resized(config, found.sizes))
    untouched = {"heads", "width", "layers"} - set(what)
    if "width" in what:
        untouched -= {"heads"}
    assert all(getattr(found.sizes, name) == getattr(sizes_of(config), name) for name in untouched)


def test_all_parts_shrink_by_about_one_share():
    found = search(GPT2, over(GPT2, "neurons", "heads", "width"), parameter_count, 0.5)
    shares = [found.sizes.width / 768, found.sizes.heads / 12, found.sizes.mlp_width / 3072]
    assert max(shares) - min(shares) < 1.5 / 12


def test_costs_rise_along_the_candidates():
    for config, what in ((GPT2, ("neurons", "heads", "width", "layers")), (SMOLLM2, ("heads", "width"))):
        found = candidates(config, over(config, *what, writable=lambda c: c.width % c.heads == 0))
        costs = [parameter_count(resized(config, sizes)) for sizes in found]
        assert len(found) > 10
        assert costs == sorted(costs)


@pytest.mark.parametrize("tensor", [2, 3, 4])
def test_sizes_can_be_split_over_the_devices_and_are_multiples(tensor):
    wide = dataclasses.replace(GPT2, kv_heads=12)
    found = search(wide, over(wide, "neurons", "heads", multiple=128, tensor=tensor), parameter_count, 0.62)
    check_divisible(
        resized(wide, found.sizes), AbstractMesh((1, 1, tensor), ("data", "fsdp", "tensor")), batch_size=1
    )
    assert found.sizes.mlp_width % math.lcm(128, tensor) == 0
    assert found.sizes.heads % tensor == 0


def test_a_budget_out_of_reach_is_refused_with_the_closest():
    with pytest.raises(
        InputError,
        match=r"closest is 0\.5\d+, with layers 12, width 768, heads 12, .* mlp_width 8\. Ask "
        "for that, or add to what: width, heads, layers",
    ):
        search(GPT2, over(GPT2, "neurons"), parameter_count, 0.5)
    with pytest.raises(InputError, match="ties heads to the width"):
        search(GPT2, over(GPT2, "heads", writable=lambda c: fills(c) and c.heads != 12), parameter_count, 0.5)


def test_costs_that_are_measured_are_asked_for_few_candidates():
    asked = []

    def cost(config):
        asked.append(config)
        return parameter_count(config)

    search(GPT2, over(GPT2, "neurons", "heads", multiple=192), cost, 0.6)
    assert len(set(asked)) < 12


def test_sizes_asked_for():
    assert explicit_sizes(GPT2, heads=6, layers=3) == Sizes(3, 768, 6, 6, 3072)
    # Whole groups leave; where that does not come out even, every group gives up as many.
    assert explicit_sizes(SMOLLM2, heads=6)[2:4] == (6, 2)
    wide = dataclasses.replace(SMOLLM2, heads=8, kv_heads=2)
    assert explicit_sizes(wide, heads=6)[2:4] == (6, 2)
    assert explicit_sizes(wide, heads=2, kv_heads=2)[2:4] == (2, 2)


def test_all_impossible_sizes_are_named_at_once():
    with pytest.raises(InputError) as refused:
        explicit_sizes(GPT2, layers=13, width=0, mlp_width=4000, tensor=7)
    for said in ("layers", "width", "mlp_width 4000 must be divisible by tensor 7", "heads 12", "found 13"):
        assert said in str(refused.value)
    with pytest.raises(InputError, match=r"heads 5 must be divisible by kv_heads 2"):
        explicit_sizes(SMOLLM2, heads=5, kv_heads=2)
