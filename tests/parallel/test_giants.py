"""Models no laptop holds, by their shapes: parameters to the last unit, and how they split."""

import re
import runpy
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from ragjax.interchange.families import family_of
from ragjax.models.decoder import init_params
from ragjax.models.names import path_name
from ragjax.parallel.mesh import AXES
from ragjax.parallel.rules import RULES, check_divisible, partition

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "model_shapes.py"))
GIANTS, measure = SCRIPT["GIANTS"], SCRIPT["measure"]

PARAMETERS = {
    "gpt2-xl": 1_557_611_200,
    "gpt-neo-2.7B": 2_651_307_520,
    "pythia-12b": 11_846_072_320,
    "Meta-Llama-3-70B": 70_553_706_496,
    "Qwen2.5-72B": 72_706_203_648,
    "opt-175b": 174_604_468_224,
}
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def rows():
    return {name: measure(giant) for name, giant in GIANTS.items()}


def shapes_of(giant):
    config = family_of(giant.values).config_from(giant.values)
    params = jax.eval_shape(lambda: init_params(config, 0))
    return config, [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


@pytest.mark.parametrize("name", GIANTS)
def test_parameters_are_as_published_and_as_transformers_counts_them(rows, name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(GIANTS[name].values)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    # A tied head is one parameter of two modules, which torch lists once.
    counted = sum(parameter.numel() for parameter in theirs.parameters())
    assert rows[name].parameters == counted == PARAMETERS[name]


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
def test_our_arrays_hold_that_many_and_the_rows_that_pad(giant):
    config, leaves = shapes_of(giant)
    tables = 1 if config.tied else 2
    padding = tables * (config.padded_vocab_size - config.vocab_size) * config.token_width
    assert sum(leaf.size for _, leaf in leaves) - padding == measure(giant).parameters


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
def test_every_parameter_has_a_rule_that_the_recommended_mesh_divides(giant):
    config, leaves = shapes_of(giant)
    mesh = AbstractMesh(giant.sizes, AXES)
    check_divisible(config, mesh, batch_size=giant.sizes[1])
    for name, leaf in leaves:
        rules = [axes for pattern, axes in RULES if re.search(pattern, name)]
        assert rules, f"{name} has no rule"
        assert len(rules[0]) in (0, len(leaf.shape)), f"{name} has a rule of another rank"
        # An axis that does not divide would be dropped without a word.
        assert tuple(partition(name, leaf.shape, mesh)) == rules[0], name


@pytest.mark.parametrize("giant", GIANTS.values(), ids=GIANTS)
def test_only_norms_and_biases_of_the_residual_stream_are_kept_whole(giant):
    _, leaves = shapes_of(giant)
    mesh = AbstractMesh(giant.sizes, AXES)
    whole = [
        (name, leaf)
        for name, leaf in leaves
        if not any(partition(name, leaf.shape, mesh)) and leaf.size * leaf.dtype.itemsize > MEGABYTE
    ]
    for name, leaf in whole:
        assert re.search(r"norm/(scale|bias)$|(out|down)/bias$", name), name
        assert leaf.shape[-1] == leaf.size // leaf.shape[0]
    every = sum(leaf.size for _, leaf in leaves)
    assert sum(leaf.size for _, leaf in whole) < 1e-4 * every + 1e6


@pytest.mark.parametrize("name", GIANTS)
def test_what_a_chip_holds_is_its_share_of_seventeen_bytes_a_parameter(rows, name):
    """Four each of parameter, gradient and two moments, one of mask; all of it fits beside a teacher."""
    row, giant = rows[name], GIANTS[name]
    chips = giant.sizes[0] * giant.sizes[1] * giant.sizes[2]
    assert row.training == pytest.approx(17 * row.parameters / chips, rel=0.01)
    assert row.inference == pytest.approx(2 * row.parameters / chips, rel=0.01)
    assert row.training + row.teacher < 0.5 * giant.hbm * 1e9
