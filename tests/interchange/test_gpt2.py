from dataclasses import replace

import pytest

from ragjax.errors import InputError
from ragjax.interchange.families import FAMILIES, family_for, family_of
from ragjax.interchange.gpt2 import gpt2_from, gpt2_to, gpt3_from, gpt3_to
from ragjax.models.decoder_config import DecoderConfig

ORIGINAL = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
    "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None,
    "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True}},
    "vocab_size": 50257,
}  # fmt: skip
"""As openai-community/gpt2 has it."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=33, width=30, layers=5, heads=3, mlp_width=17, activation="quick_gelu",
    norm_epsilon=3e-6, tied=False, scale_attention=False, scale_attention_by_layer=True,
    upcast_attention=True, embedding_dropout=0.01, attention_dropout=0.02, residual_dropout=0.03,
    initializer_range=0.5, bos_token=7, eos_token=(8, 9),
)  # fmt: skip
"""No field at its default, but for the windows."""


def test_the_original_config_is_read():
    assert gpt2_from(ORIGINAL) == DecoderConfig(
        vocab_size=50257, positions=1024, width=768, layers=12, heads=12, mlp_width=3072,
        embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1, bos_token=50256, eos_token=50256,
    )  # fmt: skip


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import GPT2Config

    assert gpt2_from({"model_type": "gpt2"}) == gpt2_from(GPT2Config().to_dict())


@pytest.mark.parametrize("windows", [(), (0, 16), (4,)])
def test_every_field_survives_the_way_there_and_back(windows):
    config = replace(EVERYTHING, windows=windows)
    values = family_for(config).config_to(config)
    assert family_of(values).config_from(values) == config


def test_transformers_reads_the_same_fields():
    from transformers import GPT2Config

    read = GPT2Config(**gpt2_to(EVERYTHING))
    told = (read.vocab_size, read.n_positions, read.n_embd, read.n_layer, read.n_head, read.n_inner)
    assert told == (211, 33, 30, 5, 3, 17)
    assert (read.activation_function, read.layer_norm_epsilon) == ("quick_gelu", 3e-6)
    assert (read.scale_attn_weights, read.scale_attn_by_inverse_layer_idx) == (False, True)
    assert (read.reorder_and_upcast_attn, read.tie_word_embeddings) == (True, False)
    assert (read.embd_pdrop, read.attn_pdrop, read.resid_pdrop) == (0.01, 0.02, 0.03)
    assert (read.initializer_range, read.bos_token_id, read.eos_token_id) == (0.5, 7, [8, 9])
    assert gpt2_from(read.to_dict()) == EVERYTHING


def test_other_spellings_of_the_sizes_are_read():
    values = {**ORIGINAL, "hidden_size": 36, "num_attention_heads": 4, "num_hidden_layers": 3}
    for name in ("n_embd", "n_head", "n_layer"):
        del values[name]
    config = gpt2_from(values)
    assert (config.width, config.heads, config.layers, config.mlp_width) == (36, 4, 3, 144)


def test_ids_outside_the_vocabulary_name_no_token():
    config = gpt2_from({"model_type": "gpt2", "vocab_size": 100, "eos_token_id": [50256, 99]})
    assert (config.bos_token, config.eos_token) == (None, (99,))
    assert gpt2_from({"model_type": "gpt2", "vocab_size": 100}).eos_token is None


def test_banded_attention_is_written_as_a_type_of_its_own():
    banded = replace(EVERYTHING, windows=(0, 16))
    values = family_for(banded).config_to(banded)
    assert values["model_type"] == "gpt3"
    assert values["architectures"] == ["GPT3LMHeadModel"]
    assert values["attention_windows"] == [0, 16]
    assert family_for(EVERYTHING) is FAMILIES["gpt2"]
    # The only band of this pattern lies beyond the last layer.
    assert family_for(replace(EVERYTHING, windows=(0,) * 5 + (16,))) is FAMILIES["gpt2"]


BAD_FIELDS = {
    "add_cross_attention": True,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"quant_method": "gptq"},
    "is_encoder_decoder": True,
    "activation_function": "prelu",
    "n_embd": 770,
    "n_head": 0,
    "n_layer": "12",
    "vocab_size": True,
    "n_positions": -1,
    "n_inner": 0,
    "layer_norm_epsilon": float("nan"),
    "tie_word_embeddings": "yes",
    "scale_attn_weights": 1,
    "attn_pdrop": 1.0,
    "initializer_range": None,
    "bos_token_id": -1,
    "eos_token_id": ["end"],
    "hidden_size": 1024,
    "rope_theta": 10000.0,
    "attention_windows": [0, 256],
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        gpt2_from({**ORIGINAL, name: BAD_FIELDS[name]})


def test_all_bad_fields_are_named_at_once():
    with pytest.raises(InputError) as caught:
        gpt2_from({**ORIGINAL, "n_head": 5, "n_layer": 0, "activation_function": "gelu_old", "xyz": 1})
    for name in ("n_embd 768 must be divisible by n_head 5", "n_layer", "gelu_old", "gelu_new", "xyz"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["add_cross_attention", "is_encoder_decoder"])
def test_fields_that_ask_for_nothing_are_fine(name):
    config = gpt2_from({**ORIGINAL, name: False, "pruned_heads": {}, "quantization_config": None})
    assert config == gpt2_from(ORIGINAL)


@pytest.mark.parametrize("windows", [None, [], [1.5], [-1], 256, [True]])
def test_bad_windows_are_refused(windows):
    values = {**gpt3_to(replace(EVERYTHING, windows=(3,))), "attention_windows": windows}
    with pytest.raises(InputError, match="attention_windows"):
        gpt3_from(values)


@pytest.mark.parametrize("name", ["bert", None, 3, ["gpt2"]])
def test_an_unknown_family_is_refused_with_those_known(name):
    with pytest.raises(InputError, match="gpt2, gpt3"):
        family_of({"model_type": name})
