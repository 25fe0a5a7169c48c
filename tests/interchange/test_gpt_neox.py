from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.families import FAMILIES, family_for
from ragjax.interchange.gpt_neox import gpt_neox_from, gpt_neox_to
from ragjax.interchange.tensors import SINGLE
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling
from ragjax.parallel.mesh import make_mesh

ORIGINAL = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8,
    "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
    "torch_dtype": "float16", "transformers_version": "4.24.0", "use_cache": True,
    "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
"""As EleutherAI/pythia-70m has it."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=33, width=36, layers=5, heads=3, mlp_width=17, learned_positions=False,
    rotary=Rotary(500.0, 10, RotaryScaling("linear", 3.0)), residual="pre_norm", attention_bias=False,
    attention_out_bias=False, activation="quick_gelu", norm_epsilon=3e-6, embedding_dropout=0.03,
    attention_dropout=0.02, residual_dropout=0.03, initializer_range=0.5, bos_token=7, eos_token=(8, 9),
)  # fmt: skip
"""No field of the family at its default."""


def tiny(**fields):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {
        "vocab_size": 101, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 64,
    }  # fmt: skip
    return GPTNeoXForCausalLM(GPTNeoXConfig(**{**shape, **fields}))


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1000.0, "partial_rotary_factor": 0.5, "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip

ODD_CONFIGS = {
    "plain": {},
    "sequential": {
        "use_parallel_residual": False, "rotary_pct": 0.5, "rotary_emb_base": 500, "vocab_size": 257,
    },
    "whole_heads_tied": {"rotary_pct": 1.0, "tie_word_embeddings": True, "hidden_act": "relu"},
    "one_head_without_biases": {
        "num_attention_heads": 1, "attention_bias": False, "vocab_size": 128, "layer_norm_eps": 0.05,
    },
    "share_rounded_down": {"num_attention_heads": 2, "rotary_pct": 0.4, "num_hidden_layers": 3},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}, "rotary_pct": 0.5},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rotary_pct": 0.5},
    "llama3": {"rope_parameters": LLAMA3},
}  # fmt: skip
QUICK = {"sequential"}
"""Which of them are trained and continued by default."""


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_a_gpt_neox_is_the_same_here_and_in_transformers(check_family, tmp_path, fields):
    model = check_family(tiny(**fields), tmp_path)
    assert family_for(model.config) is FAMILIES["gpt_neox"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, fields in ODD_CONFIGS.items()
    ],
)
def test_a_gpt_neox_learns_and_writes_on_as_in_transformers(check_use, tmp_path, fields):
    check_use(tiny(**fields), tmp_path, renamed={"lm_head.weight": "embed_out.weight"})


def test_every_bit_survives_in_halves_and_shards(check_storage, tmp_path):
    check_storage(tiny(), tmp_path, "float16")


def test_a_gpt_neox_split_over_a_mesh_computes_the_same(tmp_path, randomize):
    randomize(tiny(num_attention_heads=4, hidden_size=32)).save_pretrained(tmp_path)
    whole, split = load(tmp_path), load(tmp_path, mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    kernel = split.params["layers"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 16)
    tokens = np.random.default_rng(0).integers(0, 101, (4, 20))
    np.testing.assert_allclose(split(tokens), whole(tokens), atol=1e-5)
    save(split, tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "ours").params, whole.params)


def test_the_original_config_is_read():
    assert gpt_neox_from(ORIGINAL) == DecoderConfig(
        vocab_size=50304, positions=2048, width=512, layers=6, heads=8, mlp_width=2048,
        learned_positions=False, rotary=Rotary(10000.0, 16), residual="parallel", activation="gelu",
        tied=False, bos_token=0, eos_token=0,
    )  # fmt: skip


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import GPTNeoXConfig

    assert gpt_neox_from({"model_type": "gpt_neox"}) == gpt_neox_from(GPTNeoXConfig().to_dict())


def test_dropouts_that_transformers_does_not_read_are_not_read():
    old = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "classifier_dropout": 0.1}
    assert gpt_neox_from({**ORIGINAL, **old}) == gpt_neox_from(ORIGINAL)


def test_positions_under_both_names_are_read():
    # As late releases of transformers 4 wrote them.
    both = {"rope_theta": 10000, "partial_rotary_factor": 0.25, "rope_scaling": None}
    assert gpt_neox_from({**ORIGINAL, **both}) == gpt_neox_from(ORIGINAL)


POSITIONS = {
    "linear": EVERYTHING.rotary,
    "whole": Rotary(),
    "dynamic": Rotary(10000.0, 4, RotaryScaling("dynamic", 2.0)),
    "llama3": Rotary(5e5, 2, RotaryScaling("llama3", 7.0, 1.5, 3.5, 40)),
}


@pytest.mark.parametrize("rotary", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("residual", ["parallel", "pre_norm"])
def test_transformers_reads_every_field_as_it_was(rotary, residual):
    from transformers import GPTNeoXConfig

    config = replace(EVERYTHING, rotary=rotary, residual=residual)
    values = gpt_neox_to(config)
    assert gpt_neox_from(values) == config
    assert gpt_neox_from(GPTNeoXConfig(**values).to_dict()) == config
    older = {name: value for name, value in values.items() if name != "rope_parameters"}
    assert gpt_neox_from(older) == config


def test_every_number_of_turned_values_survives_its_share():
    for head in range(4, 260, 2):
        for width in range(2, head, 2):
            config = replace(EVERYTHING, heads=1, width=head, rotary=Rotary(width=width))
            assert FAMILIES["gpt_neox"].expresses(config), (head, width)


BAD_FIELDS = {
    "rotary_pct": 0.0,
    "rotary_emb_base": -1,
    "rope_scaling": {"type": "yarn", "factor": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "use_parallel_residual": None,
    "attention_bias": 1,
    "num_attention_heads": 7,
    "hidden_act": "prelu",
    "layer_norm_eps": "1e-5",
    "hidden_dropout": 1.0,
    "quantization_config": {"quant_method": "gptq"},
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.5,
    "sliding_window": 256,
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        gpt_neox_from({**ORIGINAL, name: BAD_FIELDS[name]})


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_a_share_that_turns_no_pairs_is_refused(share):
    with pytest.raises(InputError, match=f"rotary_pct {share} turns . of a head's 64 values"):
        gpt_neox_from({**ORIGINAL, "rotary_pct": share})


@pytest.mark.parametrize("prefix", ["gpt_neox.", ""])
def test_masks_and_frequencies_of_old_checkpoints_are_no_weights(tmp_path, prefix):
    tiny().save_pretrained(tmp_path)
    expected = load(tmp_path).params
    tensors = load_file(tmp_path / SINGLE)
    tensors = {n.replace("gpt_neox.", prefix): v for n, v in tensors.items()}
    for layer in range(2):
        begin = f"{prefix}layers.{layer}.attention"
        tensors[f"{begin}.bias"] = np.tril(np.ones((1, 1, 64, 64), np.bool_))
        tensors[f"{begin}.masked_bias"] = np.array(-1e4, np.float16)
        tensors[f"{begin}.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected)


def test_a_tied_head_may_be_there_when_it_is_equal(tmp_path):
    tiny(tie_word_embeddings=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"] + 1
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"embed_out.weight must equal gpt_neox.embed_in.weight"):
        load(tmp_path)
    tensors["embed_out.weight"] = tensors["gpt_neox.embed_in.weight"]
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    assert "head" not in load(tmp_path).params
