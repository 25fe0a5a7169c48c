from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.errors import InputError
from ragjax.interchange import load
from ragjax.interchange.families import FAMILIES, family_for
from ragjax.interchange.gpt_neo import gpt_neo_from, gpt_neo_to
from ragjax.interchange.tensors import SINGLE
from ragjax.models.decoder_config import DecoderConfig

ORIGINAL = {
    "activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
    "attention_layers": ["global", "local"] * 6, "attention_types": [[["global", "local"], 6]],
    "bos_token_id": 50256, "embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": False,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12,
    "resid_dropout": 0, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
    "torch_dtype": "float32", "transformers_version": "4.9.0.dev0", "use_cache": True,
    "vocab_size": 50257, "window_size": 256,
}  # fmt: skip
"""As EleutherAI/gpt-neo-125m has it."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=33, width=30, layers=5, heads=3, mlp_width=17, activation="quick_gelu",
    norm_epsilon=3e-6, tied=False, scale_attention=False, attention_bias=False, windows=(0, 7, 7, 0, 7),
    embedding_dropout=0.01, attention_dropout=0.02, residual_dropout=0.03, initializer_range=0.5,
    bos_token=7, eos_token=(8, 9),
)  # fmt: skip
"""No field of the family at its default."""


def tiny(**fields):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    shape = {
        "vocab_size": 101, "hidden_size": 24, "num_layers": 2, "num_heads": 3, "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]], "window_size": 5, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return GPTNeoForCausalLM(GPTNeoConfig(**{**shape, **fields}))


ODD_CONFIGS = {
    "plain": {},
    "one_head_that_sees_itself_alone": {
        "num_heads": 1, "attention_types": [[["local"], 2]], "window_size": 1, "vocab_size": 128,
    },
    "uneven_pattern_untied": {
        "num_layers": 5, "attention_types": [[["global"], 1], [["local", "global"], 2]], "window_size": 13,
        "tie_word_embeddings": False, "intermediate_size": 50, "activation_function": "relu",
    },
    "window_longer_than_the_text": {"window_size": 300, "layer_norm_epsilon": 0.05, "vocab_size": 257},
    "without_windows": {
        "attention_types": [[["global"], 1]], "num_layers": 1, "hidden_size": 10, "num_heads": 5,
    },
}  # fmt: skip
QUICK = {"uneven_pattern_untied"}
"""Which of them are trained and continued by default."""


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_a_gpt_neo_is_the_same_here_and_in_transformers(check_family, tmp_path, fields):
    model = check_family(tiny(**fields), tmp_path)
    assert family_for(model.config) is FAMILIES["gpt_neo"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, fields in ODD_CONFIGS.items()
    ],
)
def test_a_gpt_neo_learns_and_writes_on_as_in_transformers(check_use, tmp_path, fields):
    check_use(tiny(**fields), tmp_path)


def test_every_bit_survives_in_halves_and_shards(check_storage, tmp_path):
    check_storage(tiny(tie_word_embeddings=False), tmp_path, "float16")


def test_a_local_layer_sees_as_many_tokens_as_its_window_and_itself_is_one(tmp_path):
    tiny(attention_types=[[["local"], 1]], num_layers=1).save_pretrained(tmp_path)
    model = load(tmp_path)
    tokens = np.arange(20)[None]
    for before in range(7):
        changed = tokens.copy()
        changed[0, 15 - before] = 77
        moved = np.abs(np.asarray(model(tokens) - model(changed)))[0, 15].max()
        assert (moved > 0) == (before < 5), before


def test_the_original_config_is_read():
    assert gpt_neo_from(ORIGINAL) == DecoderConfig(
        vocab_size=50257, positions=2048, width=768, layers=12, heads=12, mlp_width=3072,
        attention_bias=False, scale_attention=False, windows=(0, 256) * 6, bos_token=50256, eos_token=50256,
    )  # fmt: skip


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import GPTNeoConfig

    assert gpt_neo_from({"model_type": "gpt_neo"}) == gpt_neo_from(GPTNeoConfig().to_dict())


def test_either_list_of_kinds_is_enough():
    for name in ("attention_layers", "attention_types"):
        assert gpt_neo_from({n: v for n, v in ORIGINAL.items() if n != name}) == gpt_neo_from(ORIGINAL)


def test_other_spellings_of_the_sizes_are_read():
    values = {**ORIGINAL, "num_attention_heads": 12, "num_hidden_layers": 12}
    del values["num_heads"], values["num_layers"]
    assert gpt_neo_from(values) == gpt_neo_from(ORIGINAL)


@pytest.mark.parametrize("windows", [(0, 7, 7, 0, 7), (), (3,) * 5])
def test_transformers_reads_every_field_as_it_was(windows):
    from transformers import GPTNeoConfig

    config = replace(EVERYTHING, windows=windows)
    values = gpt_neo_to(config)
    assert gpt_neo_from(values) == config
    assert gpt_neo_from(GPTNeoConfig(**values).to_dict()) == config


def test_kinds_of_layers_are_written_as_their_shortest_pattern():
    values = gpt_neo_to(replace(EVERYTHING, layers=6, windows=(0, 0, 9)))
    assert values["attention_types"] == [[["global", "global", "local"], 2]]
    assert (values["attention_layers"], values["window_size"]) == (["global", "global", "local"] * 2, 9)


def test_windows_of_two_sizes_are_not_written_as_a_gpt_neo():
    assert FAMILIES["gpt_neo"].expresses(EVERYTHING)
    with pytest.raises(InputError, match="No family of models"):
        family_for(replace(EVERYTHING, windows=(3, 7)))


BAD_FIELDS = {
    "attention_types": [[["global", "band"], 6]],
    "attention_layers": ["global"] * 12,
    "window_size": 0,
    "num_layers": 11,
    "num_heads": 5,
    "hidden_size": "768",
    "intermediate_size": 0,
    "activation_function": "prelu",
    "layer_norm_epsilon": -1.0,
    "resid_dropout": 1.0,
    "quantization_config": {"quant_method": "gptq"},
    "n_embd": 768,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        gpt_neo_from({**ORIGINAL, name: BAD_FIELDS[name]})


@pytest.mark.parametrize(
    "types", [[["global", "local"], 12], [[["global"]]], {}, [[["global"], "12"]], "global"]
)
def test_types_that_are_no_pairs_are_refused(types):
    with pytest.raises(InputError, match="attention_types: expected a list of pairs"):
        gpt_neo_from({**ORIGINAL, "attention_types": types})


def test_masks_of_old_checkpoints_are_no_weights(tmp_path):
    tiny().save_pretrained(tmp_path)
    expected = load(tmp_path).params
    tensors = {n.removeprefix("transformer."): v for n, v in load_file(tmp_path / SINGLE).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.attention.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
        tensors[f"h.{layer}.attn.attention.masked_bias"] = np.array(-1e9, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected)
