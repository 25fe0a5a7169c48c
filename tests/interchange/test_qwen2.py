import json
from dataclasses import replace

import pytest

from ragjax.errors import InputError
from ragjax.interchange.families import FAMILIES, family_for
from ragjax.interchange.qwen2 import qwen2_from, qwen2_to
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling

QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
"""As Qwen/Qwen2.5-0.5B-Instruct has it."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=90, width=30, layers=5, heads=6, mlp_width=17, head_size=8, kv_heads=3,
    learned_positions=False, norm="rms", gated=True, attention_bias=True, attention_out_bias=False,
    mlp_bias=False, rotary=Rotary(5e5, None, RotaryScaling("linear", 7.0)), activation="gelu",
    norm_epsilon=3e-6, tied=False, attention_dropout=0.02, initializer_range=0.5, bos_token=7,
    eos_token=(8, 9), windows=(0, 16, 16, 0, 16),
)  # fmt: skip
"""No field of the family at its default."""


def tiny(**fields):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {
        "vocab_size": 101, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }  # fmt: skip
    return Qwen2ForCausalLM(Qwen2Config(**{**shape, **fields}))


ODD_CONFIGS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1, "vocab_size": 256, "rms_norm_eps": 0.05},
    "wide_heads": {"head_dim": 10, "num_hidden_layers": 1, "hidden_act": "relu"},
    "windows_at_the_end": {
        "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3,
    },
    "windows_by_list": {
        "use_sliding_window": True, "sliding_window": 3, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e6}},
}  # fmt: skip
QUICK = {"windows_at_the_end"}
"""Which of them are trained and continued by default."""


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_a_qwen2_is_the_same_here_and_in_transformers(check_family, tmp_path, fields):
    model = check_family(tiny(**fields), tmp_path)
    assert family_for(model.config) is FAMILIES["qwen2"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, fields in ODD_CONFIGS.items()
    ],
)
def test_a_qwen2_learns_and_writes_on_as_in_transformers(check_use, tmp_path, fields):
    check_use(tiny(**fields), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_bit_survives_in_halves_and_shards(check_storage, tmp_path, dtype):
    check_storage(tiny(), tmp_path, dtype)


def test_qwen25_is_read_as_its_card_says():
    assert qwen2_from(QWEN25) == DecoderConfig(
        vocab_size=151936, positions=32768, width=896, layers=24, heads=14, mlp_width=4864, kv_heads=2,
        learned_positions=False, rotary=Rotary(1000000.0), norm="rms", gated=True,
        attention_out_bias=False, mlp_bias=False, activation="silu", norm_epsilon=1e-6,
        bos_token=151643, eos_token=151645,
    )  # fmt: skip


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import Qwen2Config

    assert qwen2_from({"model_type": "qwen2"}) == qwen2_from(Qwen2Config().to_dict())
    assert qwen2_from({"model_type": "qwen2"}).key_value_heads == 32


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"use_sliding_window": True}, (0,) * 21 + (32768,) * 3),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 7}, (7,) * 24),
        ({"use_sliding_window": True, "max_window_layers": 28}, (0,) * 24),
        ({"use_sliding_window": True, "sliding_window": None}, (0,) * 24),
        ({"layer_types": ["full_attention"] * 24, "use_sliding_window": True}, (0,) * 24),
        (
            {"layer_types": ["sliding_attention", "full_attention"] * 12, "use_sliding_window": True},
            (32768, 0) * 12,
        ),
    ],
)
def test_windows_stand_where_transformers_has_them(fields, windows):
    from transformers import Qwen2Config

    values = {**QWEN25, **fields}
    assert qwen2_from(values).layer_windows == windows
    told = Qwen2Config(**values)
    assert tuple(told.sliding_window if kind[0] == "s" else 0 for kind in told.layer_types) == windows


@pytest.mark.parametrize("windows", [(0, 16, 16, 0, 16), (0, 0, 0, 0, 16), ()])
def test_every_field_survives_the_way_there_and_back(windows):
    config = replace(EVERYTHING, windows=windows)
    assert family_for(config) is FAMILIES["qwen2"]
    assert qwen2_from(json.loads(json.dumps(qwen2_to(config)))) == config


def test_transformers_reads_the_same_fields():
    from transformers import Qwen2Config

    read = Qwen2Config(**qwen2_to(EVERYTHING))
    told = (read.vocab_size, read.max_position_embeddings, read.hidden_size, read.num_hidden_layers)
    assert told == (211, 90, 30, 5)
    told = (read.num_attention_heads, read.num_key_value_heads, read.head_dim, read.intermediate_size)
    assert told == (6, 3, 8, 17)
    assert (read.hidden_act, read.rms_norm_eps, read.tie_word_embeddings) == ("gelu", 3e-6, False)
    assert (read.attention_dropout, read.initializer_range) == (0.02, 0.5)
    assert (read.bos_token_id, read.eos_token_id) == (7, [8, 9])
    assert read.rope_parameters == {"rope_type": "linear", "rope_theta": 5e5, "factor": 7.0}
    assert (read.use_sliding_window, read.sliding_window, read.max_window_layers) == (True, 16, 1)
    assert [kind[0] for kind in read.layer_types] == ["f", "s", "s", "f", "s"]
    assert qwen2_from(read.to_dict()) == EVERYTHING


@pytest.mark.parametrize(
    "changes",
    [{"windows": (0, 16, 8)}, {"attention_bias": False}, {"attention_out_bias": True}, {"mlp_bias": True}],
    ids=str,
)
def test_what_qwen2_has_no_field_for_is_not_written_as_one(changes):
    assert not FAMILIES["qwen2"].expresses(replace(EVERYTHING, **changes))


def test_fields_that_ask_for_nothing_are_fine():
    # As Qwen/Qwen2.5-0.5B has it.
    assert qwen2_from({**QWEN25, "use_mrope": False}) == qwen2_from(QWEN25)


BAD_FIELDS = {
    "use_sliding_window": "no",
    "sliding_window": 0,
    "max_window_layers": None,
    "layer_types": ["full_attention"] * 23,
    "hidden_size": 897,
    "num_key_value_heads": 3,
    "attention_bias": False,
    "mrope_section": [16, 24, 24],
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "use_mrope": True,
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        qwen2_from({**QWEN25, name: BAD_FIELDS[name]})


@pytest.mark.parametrize(
    "kinds", [["sliding_attention"] * 24, ["chunked_attention"] * 24, "sliding_attention"], ids=str
)
def test_layers_of_unknown_windows_are_refused(kinds):
    with pytest.raises(InputError, match="layer_types"):
        qwen2_from({**QWEN25, "layer_types": kinds})
