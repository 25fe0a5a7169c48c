import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.families import FAMILIES, family_for
from ragjax.interchange.llama import llama_from, llama_to
from ragjax.models.decoder import logits
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling
from ragjax.models.run import run_decoder
from ragjax.parallel.mesh import make_mesh

SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True,
    "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9,
    "num_hidden_layers": 30, "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers.js_config": {"dtype": "q4"},
    "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
"""As HuggingFaceTB/SmolLM2-135M-Instruct has it, in transformers 4's spelling."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=90, width=30, layers=5, heads=6, mlp_width=17, head_size=8, kv_heads=3,
    learned_positions=False, norm="rms", gated=True, attention_bias=True, mlp_bias=False,
    rotary=Rotary(5e5, None, RotaryScaling("llama3", 7.0, 1.5, 3.5, 40)), activation="gelu",
    norm_epsilon=3e-6, tied=False, attention_dropout=0.02, initializer_range=0.5, bos_token=7,
    eos_token=(8, 9),
)  # fmt: skip
"""No field of the family at its default."""


def tiny(**fields):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 101, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**shape, **fields}))


ODD_CONFIGS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "rope_theta": 500.0, "vocab_size": 128, "rms_norm_eps": 0.05},
    "one_key_head_wide": {"num_key_value_heads": 1, "head_dim": 10, "hidden_act": "gelu"},
    "narrow_heads_tied": {"head_dim": 4, "tie_word_embeddings": True, "num_hidden_layers": 1},
    "all_biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3": {
        "head_dim": 16, "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip
QUICK = {"dynamic", "llama3"}
"""Which of them are trained and continued by default."""


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_a_llama_is_the_same_here_and_in_transformers(check_family, tmp_path, fields):
    model = check_family(tiny(**fields), tmp_path)
    assert family_for(model.config) is FAMILIES["llama"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, fields in ODD_CONFIGS.items()
    ],
)
def test_a_llama_learns_and_writes_on_as_in_transformers(check_use, tmp_path, fields):
    check_use(tiny(**fields), tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_bit_survives_in_halves_and_shards(check_storage, tmp_path, dtype):
    check_storage(tiny(num_key_value_heads=2, attention_bias=True), tmp_path, dtype)


def test_a_llama_split_over_eight_devices_computes_the_same(randomize, tmp_path):
    """Its heads of keys and values, too, are split over the tensor axis."""
    randomize(tiny(num_key_value_heads=2, attention_bias=True)).save_pretrained(tmp_path)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    tokens = np.random.default_rng(0).integers(0, 101, (4, 16))

    @partial(jax.jit, static_argnames="config")
    def logits_and_gradients(params, config):
        def loss(params):
            scores = logits(params, run_decoder(config, params, tokens).hidden, config)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(scores[:, :-1]), tokens[:, 1:, None], -1)
            return -chosen.mean(), scores

        return jax.grad(loss, has_aux=True)(params)

    whole, split = load(tmp_path), load(tmp_path, mesh=mesh)
    key = split.params["layers"]["attention"]["key"]["kernel"]
    assert key.sharding.shard_shape(key.shape) == (2, 12, 6)
    gradients, scores = logits_and_gradients(whole.params, whole.config)
    with jax.set_mesh(mesh):
        split_gradients, split_scores = logits_and_gradients(split.params, split.config)
    np.testing.assert_allclose(split_scores, scores, atol=1e-4)
    for ours, expected in zip(
        *map(jax.tree.leaves, jax.device_get((split_gradients, gradients))), strict=True
    ):
        assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_smollm2_is_read_as_its_card_says():
    assert llama_from(SMOLLM2) == DecoderConfig(
        vocab_size=49152, positions=8192, width=576, layers=30, heads=9, mlp_width=1536, kv_heads=3,
        learned_positions=False, rotary=Rotary(100000.0), norm="rms", gated=True, attention_bias=False,
        attention_out_bias=False, mlp_bias=False, activation="silu", bos_token=1, eos_token=2,
        initializer_range=0.041666666666666664,
    )  # fmt: skip


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import LlamaConfig

    assert llama_from({"model_type": "llama"}) == llama_from(LlamaConfig().to_dict())
    assert llama_from({"model_type": "llama"}).rotary == Rotary(10000.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": False, "attention_out_bias": False, "mlp_bias": True, "head_size": None},
        {"kv_heads": None, "rotary": Rotary(), "tied": True, "bos_token": None, "eos_token": None},
        {"rotary": Rotary(100.0, None, RotaryScaling("dynamic", 2.0))},
    ],
)
def test_every_field_survives_the_way_there_and_back(changes):
    config = replace(EVERYTHING, **changes)
    if config.head_size is None:
        config = replace(config, heads=5, kv_heads=1)
    assert family_for(config) is FAMILIES["llama"]
    assert llama_from(json.loads(json.dumps(llama_to(config)))) == config


def test_transformers_reads_the_same_fields():
    from transformers import LlamaConfig

    read = LlamaConfig(**llama_to(EVERYTHING))
    told = (read.vocab_size, read.max_position_embeddings, read.hidden_size, read.num_hidden_layers)
    assert told == (211, 90, 30, 5)
    told = (read.num_attention_heads, read.num_key_value_heads, read.head_dim, read.intermediate_size)
    assert told == (6, 3, 8, 17)
    assert (read.hidden_act, read.rms_norm_eps, read.tie_word_embeddings) == ("gelu", 3e-6, False)
    assert (read.attention_bias, read.mlp_bias, read.attention_dropout) == (True, False, 0.02)
    assert (read.initializer_range, read.bos_token_id, read.eos_token_id) == (0.5, 7, [8, 9])
    assert read.rope_parameters == {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 7.0, "low_freq_factor": 1.5,
        "high_freq_factor": 3.5, "original_max_position_embeddings": 40,
    }  # fmt: skip
    assert llama_from(read.to_dict()) == EVERYTHING


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (0, 16)},
        {"attention_out_bias": True, "attention_bias": False},
        {"rotary": None},
        {"rotary": Rotary(width=4)},
        {"residual": "parallel"},
        {"norm": "layer"},
        {"residual_dropout": 0.1},
        {"final_norm": False},
        {"scale_attention": False},
        {"gated": False},
    ],
    ids=str,
)
def test_what_llama_has_no_field_for_is_not_written_as_one(changes):
    assert FAMILIES["llama"].expresses(EVERYTHING)
    assert not FAMILIES["llama"].expresses(replace(EVERYTHING, **changes))


BAD_FIELDS = {
    "is_encoder_decoder": True,
    "quantization_config": {"quant_method": "gptq"},
    "rope_interleaved": True,
    "pretraining_tp": 2,
    "hidden_act": "prelu",
    "hidden_size": 577,
    "num_attention_heads": 0,
    "num_key_value_heads": 4,
    "head_dim": 63,
    "num_hidden_layers": "30",
    "vocab_size": True,
    "max_position_embeddings": -1,
    "intermediate_size": None,
    "rms_norm_eps": float("nan"),
    "tie_word_embeddings": "yes",
    "attention_bias": 1,
    "mlp_bias": None,
    "attention_dropout": 1.0,
    "bos_token_id": -1,
    "eos_token_id": ["end"],
    "sliding_window": 4096,
    "attention_multiplier": 0.5,
    "partial_rotary_factor": 0.5,
    "rope_theta": 0,
    "rope_parameters": {"rope_theta": 1e4},
    "rope_scaling": [2.0],
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        llama_from({**SMOLLM2, name: BAD_FIELDS[name]})


def test_all_bad_fields_are_named_at_once():
    bad = {"hidden_size": 0, "rope_theta": "big", "num_key_value_heads": 2, "xyz": 1, "pretraining_tp": 4}
    with pytest.raises(InputError) as caught:
        llama_from({**SMOLLM2, **bad})
    for name in bad:
        assert name in str(caught.value)


def test_weights_of_older_checkpoints_and_of_the_bare_model_are_read(tmp_path):
    import torch
    from safetensors.torch import save_file

    theirs = tiny(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    expected = load(tmp_path).params
    state = {name.removeprefix("model."): value for name, value in theirs.model.state_dict().items()}
    state |= {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.arange(3.0) for i in range(2)}
    save_file(state, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected)


def test_a_copy_of_a_tied_table_must_be_one(tmp_path):
    import torch
    from safetensors.torch import save_file

    theirs = tiny(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    table = theirs.model.embed_tokens.weight.detach()
    rest = dict(theirs.model.state_dict(prefix="model."))
    save_file({**rest, "lm_head.weight": table.clone()}, tmp_path / "model.safetensors")
    assert load(tmp_path).config.tied
    save_file({**rest, "lm_head.weight": torch.zeros_like(table)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="tie_word_embeddings"):
        load(tmp_path)


def test_a_vocabulary_padded_beyond_its_tokenizer_loads(byte_tokenizer, tmp_path):
    tiny(vocab_size=384).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert (model.config.vocab_size, len(model.tokenizer)) == (384, 257)
    assert load(save(model, tmp_path / "again")).tokenizer.get_vocab() == byte_tokenizer.get_vocab()
