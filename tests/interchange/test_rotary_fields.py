from copy import deepcopy

import pytest

from ragjax.interchange.rotary_fields import read_rotary, rotary_values
from ragjax.models.decoder_config import Rotary, RotaryScaling

LLAMA3 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
"""As meta-llama/Llama-3.2-1B has it."""

SPELLINGS = [
    {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_theta": 500000, "rope_scaling": {**LLAMA3, "type": "llama3"}},
    {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    {"rope_parameters": LLAMA3, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    {"rope_theta": 5e5, "rope_scaling": {n: LLAMA3[n] for n in LLAMA3 if not n.startswith("original")}},
]


def rotary_of(values, head_width=64, **names):
    found = read_rotary(values, **names)
    assert found.problems == []
    return found.rotary(head_width)


@pytest.mark.parametrize("values", SPELLINGS)
def test_all_spellings_say_what_transformers_understands(values):
    from transformers import LlamaConfig

    values = {"max_position_embeddings": 8192, **values}
    expected = Rotary(5e5, None, RotaryScaling("llama3", 32.0, 1.0, 4.0, 8192))
    assert rotary_of(values) == expected
    # A copy, since transformers fills in what it is given.
    assert rotary_of(LlamaConfig(**deepcopy(values)).to_dict()) == expected


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_a_scaling_by_type_is_read_as_older_files_have_it(kind):
    values = {"rope_theta": 100, "rope_scaling": {"type": kind, "factor": 2}}
    assert rotary_of(values) == Rotary(100.0, None, RotaryScaling(kind, 2.0))


@pytest.mark.parametrize("values", [{}, {"rope_scaling": None, "rope_theta": None}, {"rope_parameters": {}}])
def test_nothing_stated_is_ten_thousand_unscaled(values):
    assert rotary_of(values) == Rotary(10000.0)


def test_a_family_may_name_base_and_share_otherwise():
    names = {"theta": ("rotary_emb_base",), "share": ("rotary_pct",), "default_share": 0.25}
    assert rotary_of({"rotary_emb_base": 77, "rotary_pct": 0.5}, **names) == Rotary(77.0, 32)
    assert rotary_of({}, **names) == Rotary(10000.0, 16)
    told = {"rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 1.0}}
    assert rotary_of(told, **names) == Rotary(77.0)


NEOX = {"theta": ("rotary_emb_base", "rope_theta"), "share": ("rotary_pct", "partial_rotary_factor")}


def test_a_field_may_have_several_names_that_agree():
    one = {"rotary_emb_base": 77, "rotary_pct": 0.5}
    other = {"rope_theta": 77.0, "partial_rotary_factor": 0.5}
    for values in (one, other, one | other):
        assert rotary_of(values, **NEOX) == Rotary(77.0, 32)
    assert read_rotary({**one, **other, "rope_theta": 78}, **NEOX).problems == [
        "rope_theta: rotary_emb_base says 77, this says 78"
    ]


BAD = {
    "rope_type": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "type": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
    "factor": {"rope_type": "linear"},
    "low_freq_factor": {**LLAMA3, "low_freq_factor": "1"},
    "high_freq_factor": {**LLAMA3, "high_freq_factor": 1.0},
    "original_max_position_embeddings": {**LLAMA3, "original_max_position_embeddings": 0},
    "beta_fast": {"rope_type": "linear", "factor": 2.0, "beta_fast": 32},
    "full_attention": {"full_attention": {"rope_type": "default"}},
    "rope_theta": {"rope_theta": 200.0},
    "partial_rotary_factor": {"partial_rotary_factor": 1.5},
    "type: rope_scaling.rope_type says": {"rope_type": "linear", "type": "dynamic", "factor": 2.0},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("group", ["rope_scaling", "rope_parameters"])
def test_what_cannot_be_computed_is_named(name, group):
    found = read_rotary({"rope_theta": 100.0, group: BAD[name]})
    name = name.replace("rope_scaling", group)
    assert [problem for problem in found.problems if problem.startswith(group) and name in problem]


def test_two_groups_that_disagree_and_what_is_no_group_are_named():
    groups = {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert "rope_parameters.rope_type says 'default'" in read_rotary(groups).problems[0]
    assert "rope_scaling: expected an object" in read_rotary({"rope_scaling": [2.0]}).problems[0]


def test_positions_are_written_as_new_and_older_transformers_read_them():
    scaling = {"rope_type": "linear", "factor": 7.0}
    assert rotary_values(Rotary(5e5, None, RotaryScaling("linear", 7.0))) == {
        "rope_parameters": {"rope_theta": 5e5, **scaling}, "rope_theta": 5e5, "rope_scaling": scaling,
    }  # fmt: skip
    assert rotary_values(Rotary(100.0)) == {
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "rope_theta": 100.0,
        "rope_scaling": None,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [None, "linear", "dynamic", "llama3"])
def test_what_is_written_is_read_again(kind):
    scaling = None if kind is None else RotaryScaling(kind, 3.0)
    if kind == "llama3":
        scaling = RotaryScaling(kind, 3.0, 1.5, 2.5, 99)
    rotary = Rotary(321.0, None, scaling)
    assert rotary_of(rotary_values(rotary)) == rotary
