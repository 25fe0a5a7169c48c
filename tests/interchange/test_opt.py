import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.families import FAMILIES, family_for
from ragjax.interchange.opt import opt_from, opt_to
from ragjax.interchange.tensors import SINGLE
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh

ORIGINAL = {
    "_name_or_path": "facebook/opt-350m", "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2,
    "do_layer_norm_before": False, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024,
    "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
    "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>",
    "torch_dtype": "float16", "transformers_version": "4.20.0.dev0", "use_cache": True,
    "vocab_size": 50272, "word_embed_proj_dim": 512,
}  # fmt: skip
"""As facebook/opt-350m has it."""

EVERYTHING = DecoderConfig(
    vocab_size=211, positions=33, width=30, layers=5, heads=3, mlp_width=17, embedding_width=20,
    position_offset=2, residual="post_norm", final_norm=False, attention_bias=False,
    attention_out_bias=False, mlp_bias=False, activation="quick_gelu", tied=False, attention_dropout=0.02,
    residual_dropout=0.03, initializer_range=0.5, bos_token=7, eos_token=(8, 9),
)  # fmt: skip
"""No field of the family at its default."""


def tiny(**fields):
    from transformers import OPTConfig, OPTForCausalLM

    # Where one is given, torch holds the row of the padding token still.
    shape = {
        "vocab_size": 101, "hidden_size": 24, "ffn_dim": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": 64, "pad_token_id": None,
    }  # fmt: skip
    return OPTForCausalLM(OPTConfig(**{**shape, **fields}))


LIKE_350M = {"do_layer_norm_before": False, "word_embed_proj_dim": 10}

ODD_CONFIGS = {
    "plain": {},
    "like_350m": LIKE_350M,
    "like_350m_untied": {**LIKE_350M, "tie_word_embeddings": False, "enable_bias": False, "vocab_size": 257},
    "wider_embedding_than_model": {"word_embed_proj_dim": 40, "activation_function": "gelu"},
    "one_head_without_biases": {"num_attention_heads": 1, "enable_bias": False, "vocab_size": 128},
    "without_final_norm": {"_remove_final_layer_norm": True, "num_hidden_layers": 3, "ffn_dim": 7},
    "norm_after_untied": {"do_layer_norm_before": False, "tie_word_embeddings": False},
}
QUICK = {"like_350m"}
"""Which of them are trained and continued by default."""


@pytest.mark.parametrize("fields", ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_an_opt_is_the_same_here_and_in_transformers(check_family, tmp_path, fields):
    model = check_family(tiny(**fields), tmp_path)
    assert family_for(model.config) is FAMILIES["opt"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, fields in ODD_CONFIGS.items()
    ],
)
def test_an_opt_learns_and_writes_on_as_in_transformers(check_use, tmp_path, fields):
    check_use(tiny(**fields), tmp_path)


def test_every_bit_survives_in_halves_and_shards(check_storage, tmp_path):
    check_storage(tiny(**LIKE_350M), tmp_path, "bfloat16")


def test_the_rows_before_the_first_position_are_kept_and_never_read(tmp_path, randomize):
    randomize(tiny()).save_pretrained(tmp_path)
    model = load(tmp_path)
    places = model.params["embedding"]["positions"]
    assert places.shape == (66, 24)
    assert np.asarray(places[:2]).any()
    tokens = np.arange(64)[None]
    blank = {
        **model.params,
        "embedding": {**model.params["embedding"], "positions": places.at[:2].set(np.nan)},
    }
    np.testing.assert_array_equal(model(tokens), replace(model, params=blank)(tokens))


def test_an_opt_split_over_a_mesh_computes_the_same(tmp_path, randomize):
    randomize(tiny(**LIKE_350M, num_attention_heads=4)).save_pretrained(tmp_path)
    whole, split = load(tmp_path), load(tmp_path, mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    kernel = split.params["embedding"]["projection"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (5, 24)
    tokens = np.random.default_rng(0).integers(0, 101, (4, 20))
    np.testing.assert_allclose(split(tokens), whole(tokens), atol=1e-5)
    save(split, tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "ours").params, whole.params)


def test_the_original_config_is_read():
    assert opt_from(ORIGINAL) == DecoderConfig(
        vocab_size=50272, positions=2048, width=1024, layers=24, heads=16, mlp_width=4096,
        embedding_width=512, position_offset=2, residual="post_norm", final_norm=False, activation="relu",
        residual_dropout=0.1, bos_token=2, eos_token=2,
    )  # fmt: skip


def test_the_other_sizes_norm_before_and_project_nothing():
    values = {
        **ORIGINAL,
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 1024,
        "output_projection": True,
    }
    config = opt_from({**values, "_remove_final_layer_norm": False})
    assert (config.residual, config.final_norm, config.embedding_width) == ("pre_norm", True, None)
    assert not opt_from({**values, "_remove_final_layer_norm": True}).final_norm


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    from transformers import OPTConfig

    assert opt_from({"model_type": "opt"}) == opt_from(OPTConfig().to_dict())


NORMS = {
    "after": {},
    "before": {"residual": "pre_norm", "final_norm": True},
    "before_but_not_last": {"residual": "pre_norm", "final_norm": False},
    "unprojected": {"embedding_width": None},
}


@pytest.mark.parametrize("changes", NORMS.values(), ids=NORMS)
def test_transformers_reads_every_field_as_it_was(changes):
    from transformers import OPTConfig

    config = replace(EVERYTHING, **changes)
    values = opt_to(config)
    assert opt_from(values) == config
    assert opt_from(OPTConfig(**values).to_dict()) == config


INEXPRESSIBLE = {
    "another_offset": {"position_offset": 1},
    "last_norm_after_norms": {"final_norm": True},
    "some_biases": {"attention_bias": True},
    "another_epsilon": {"norm_epsilon": 1e-6},
    "projections_of_one_width": {"embedding_width": 30},
    "dropout_of_embeddings": {"embedding_dropout": 0.1},
}


@pytest.mark.parametrize("changes", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_an_opt_cannot_say_is_not_written_as_one(changes):
    assert FAMILIES["opt"].expresses(EVERYTHING)
    with pytest.raises(InputError, match="No family of models"):
        family_for(replace(EVERYTHING, **changes))


BAD_FIELDS = {
    "layer_norm_elementwise_affine": False,
    "layerdrop": 0.1,
    "do_layer_norm_before": None,
    "_remove_final_layer_norm": 1,
    "word_embed_proj_dim": 0,
    "enable_bias": "yes",
    "num_attention_heads": 15,
    "ffn_dim": None,
    "activation_function": "prelu",
    "dropout": 1.0,
    "quantization_config": {"quant_method": "gptq"},
    "n_embd": 768,
    "position_offset": 2,
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(name):
    with pytest.raises(InputError, match=rf"(?m)^  - .*{name}"):
        opt_from({**ORIGINAL, name: BAD_FIELDS[name]})


def test_names_and_copies_of_old_checkpoints_are_read(tmp_path):
    tiny(**LIKE_350M).save_pretrained(tmp_path)
    expected = load(tmp_path).params
    tensors = {n.removeprefix("model."): v for n, v in load_file(tmp_path / SINGLE).items()}
    tensors["decoder.version"] = np.array([3.0], np.float32)
    tensors["lm_head.weight"] = tensors["decoder.embed_tokens.weight"]
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, expected)


def test_the_example_in_the_docs_is_the_code_of_this_family():
    root = Path(__file__).parents[2]
    section = (root / "docs" / "extending.md").read_text().split("## A model family")[1].split("\n## ")[0]
    shown = [
        line for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL) for line in code.splitlines()
    ]
    sources = (root / "ragjax" / "interchange" / name for name in ("opt.py", "families.py"))
    code = {line for source in sources for line in source.read_text().splitlines()}
    assert len(shown) > 40
    assert [line for line in shown if line.strip() != "..." and line not in code] == []
