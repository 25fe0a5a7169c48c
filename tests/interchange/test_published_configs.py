"""The models that docs/models.md names, by the config.json each is published with."""

import json
import math

import pytest

from ragjax.interchange.families import family_for, family_of
from ragjax.interchange.layout import parameter_shapes
from ragjax.models.decoder_config import Rotary, RotaryScaling

GPT2 = """{
"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
"bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
"n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
"summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
"task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}}, "vocab_size": 50257
}"""

GPT_NEO = """{
"activation_function": "gelu_new", "architectures": ["GPTNeoForCausalLM"], "attention_dropout": 0,
"attention_layers": ["global", "local", "global", "local", "global", "local", "global", "local", "global",
"local", "global", "local"], "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256,
"embed_dropout": 0, "eos_token_id": 50256, "gradient_checkpointing": false, "hidden_size": 768,
"initializer_range": 0.02, "intermediate_size": null, "layer_norm_epsilon": 1e-05,
"max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12, "num_layers": 12,
"resid_dropout": 0, "summary_activation": null, "summary_first_dropout": 0.1, "summary_proj_to_labels": true,
"summary_type": "cls_index", "summary_use_proj": true, "torch_dtype": "float32",
"transformers_version": "4.9.0.dev0", "use_cache": true, "vocab_size": 50257, "window_size": 256
}"""

OPT_125M = """{
"_name_or_path": "facebook/opt-125m", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
"activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0,
"bos_token_id": 2, "do_layer_norm_before": true, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 3072,
"hidden_size": 768, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
"model_type": "opt", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
"prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.21.0.dev0", "use_cache": true,
"vocab_size": 50272, "word_embed_proj_dim": 768
}"""

OPT_350M = """{
"_name_or_path": "facebook/opt-350m", "_remove_final_layer_norm": false, "activation_dropout": 0.0,
"activation_function": "relu", "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0,
"bos_token_id": 2, "do_layer_norm_before": false, "dropout": 0.1, "eos_token_id": 2, "ffn_dim": 4096,
"hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048,
"model_type": "opt", "num_attention_heads": 16, "num_hidden_layers": 24, "pad_token_id": 1,
"prefix": "</s>", "torch_dtype": "float16", "transformers_version": "4.20.0.dev0", "use_cache": true,
"vocab_size": 50272, "word_embed_proj_dim": 512
}"""

PYTHIA = """{
"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
"hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
"max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
"transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304
}"""

SMOLLM2 = """{
"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0,
"eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
"intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "model_type": "llama",
"num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
"rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
"tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
"vocab_size": 49152
}"""

TINYLLAMA = """{
"architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 1, "eos_token_id": 2,
"hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
"max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
"num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
"rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
"transformers_version": "4.35.0", "use_cache": true, "vocab_size": 32000
}"""

LLAMA_32 = """{
"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
"bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
"initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
"low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
"rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
"transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256
}"""

LLAMA_2 = """{
"_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
"eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
"intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
"rms_norm_eps": 1e-05, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
"transformers_version": "4.31.0.dev0", "use_cache": true, "vocab_size": 32000
}"""

QWEN25 = """{
"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
"eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
"intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
"rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
"transformers_version": "4.40.1", "use_cache": true, "use_mrope": false, "use_sliding_window": false,
"vocab_size": 151936
}"""

QWEN2 = """{
"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
"eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
"intermediate_size": 4864, "max_position_embeddings": 131072, "max_window_layers": 24,
"model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
"torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
"use_sliding_window": false, "vocab_size": 151936
}"""

PUBLISHED = {
    "openai-community/gpt2": (GPT2, 124_439_808, None),
    "EleutherAI/gpt-neo-125m": (GPT_NEO, 125_198_592, None),
    "facebook/opt-125m": (OPT_125M, 125_239_296, None),
    "facebook/opt-350m": (OPT_350M, 331_196_416, None),
    "EleutherAI/pythia-70m": (PYTHIA, 70_426_624, Rotary(10000.0, 16)),
    "HuggingFaceTB/SmolLM2-135M": (SMOLLM2, 134_515_008, Rotary(100000.0)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (TINYLLAMA, 1_100_048_384, Rotary(10000.0)),
    "meta-llama/Llama-3.2-1B": (
        LLAMA_32, 1_235_814_400, Rotary(500000.0, None, RotaryScaling("llama3", 32.0, 1.0, 4.0, 8192))
    ),
    "meta-llama/Llama-2-7b-hf": (LLAMA_2, 6_738_415_616, Rotary(10000.0)),
    "Qwen/Qwen2.5-0.5B": (QWEN25, 494_032_768, Rotary(1000000.0)),
    "Qwen/Qwen2-0.5B": (QWEN2, 494_032_768, Rotary(1000000.0)),
}  # fmt: skip
"""By hub id: config.json, the number of parameters, a tied head once, and the rotary positions."""


def parameters(config):
    """All of a model but the rows that pad its tables."""
    tables = 1 if config.tied else 2
    padding = tables * (config.padded_vocab_size - config.vocab_size) * config.token_width
    return sum(map(math.prod, parameter_shapes(config).values())) - padding


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_and_has_the_published_number_of_parameters(name):
    text, count, rotary = PUBLISHED[name]
    values = json.loads(text)
    family = family_of(values)
    config = family.config_from(values)
    assert parameters(config) == count
    assert sum(math.prod(tensor.shape) for tensor in family.layout(config).stored) == count
    assert config.rotary == rotary
    assert not config.windows or config.windows == (0, 256) * 6
    assert family_for(config) is family
    assert family.config_from(family.config_to(config)) == config
