"""Shared fixtures: tiny models, and eight simulated devices to shard them over."""

import os
import tempfile
from pathlib import Path

# Before JAX starts its backends.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ragjax-test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig


@pytest.fixture(scope="session")
def tiny_config() -> DecoderConfig:
    """Three layers of width 32 over 300 tokens (padded to 384)."""
    return DecoderConfig(
        vocab_size=300, positions=64, width=32, layers=3, heads=4, mlp_width=128, initializer_range=0.1
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Model:
    """A random model of `tiny_config` without a tokenizer."""
    return Model(tiny_config, init_params(tiny_config, seed=0))


@pytest.fixture(scope="session")
def as_torch():
    """Turns a `Model` into transformers' torch GPT-2, tensor by tensor, without ragjax's interchange."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def convert(model: Model):
        config, params = model.config, model.params
        gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.positions,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                n_inner=config.mlp_width,
                activation_function=config.activation,
                layer_norm_epsilon=config.norm_epsilon,
                tie_word_embeddings=config.tied,
                scale_attn_weights=config.scale_attention,
                scale_attn_by_inverse_layer_idx=config.scale_attention_by_layer,
                bos_token_id=config.bos_token,
                eos_token_id=config.eos_token,
            )
        ).eval()
        layers, attention = params["layers"], params["layers"]["attention"]
        tensors = {
            "wte.weight": params["embedding"]["tokens"][: config.vocab_size],
            "wpe.weight": params["embedding"]["positions"],
            "ln_f.weight": params["final_norm"]["scale"],
            "ln_f.bias": params["final_norm"]["bias"],
        }
        for i in range(config.layers):
            for part, last in (("weight", "kernel"), ("bias", "bias")):
                fused = [attention[name][last][i] for name in ("query", "key", "value")]
                tensors[f"h.{i}.attn.c_attn.{part}"] = np.concatenate(fused, -1)
                tensors[f"h.{i}.attn.c_proj.{part}"] = attention["out"][last][i]
                tensors[f"h.{i}.mlp.c_fc.{part}"] = layers["mlp"]["up"][last][i]
                tensors[f"h.{i}.mlp.c_proj.{part}"] = layers["mlp"]["down"][last][i]
            for norm, name in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
                tensors[f"h.{i}.{norm}.weight"] = layers[name]["scale"][i]
                tensors[f"h.{i}.{norm}.bias"] = layers[name]["bias"][i]
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in tensors.items()}
        gpt2.transformer.load_state_dict(tensors, strict=True)
        if not config.tied:
            gpt2.lm_head.weight.data = torch.tensor(np.asarray(params["head"][: config.vocab_size]))
        return gpt2

    return convert


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level tokenizer without merges: 256 bytes and <|endoftext|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


@pytest.fixture(scope="session")
def tiny_byte_model(byte_tokenizer) -> Model:
    """A random model over `byte_tokenizer`'s 257 tokens, padded to 384."""
    config = DecoderConfig(
        vocab_size=257,
        positions=64,
        width=32,
        layers=2,
        heads=4,
        mlp_width=64,
        initializer_range=0.1,
        bos_token=256,
        eos_token=256,
    )
    return Model(config, init_params(config, seed=5), byte_tokenizer)


@pytest.fixture(scope="session")
def torch_gpt2():
    """Makes random GPT-2s of transformers, every parameter of which matters; fields override GPT2Config's."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(seed: int = 0, attention: str = "eager", **fields) -> GPT2LMHeadModel:
        torch.manual_seed(seed)
        shape = {"vocab_size": 101, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
        ids = {"bos_token_id": 100, "eos_token_id": 100}
        config = GPT2Config(attn_implementation=attention, **{**shape, **ids, **fields})
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make
