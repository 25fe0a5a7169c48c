import json
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import gguf
import jax
import numpy as np
import pytest

import ragjax
from ragjax.errors import InputError
from ragjax.interchange.gguf import read_gguf, write_gguf
from ragjax.model import Model
from ragjax.models.decoder_config import Rotary, RotaryScaling

TOKENS = np.array([[5, 299, 0, 17, 17, 250, 3, 42, 128, 64, 2, 1]], np.int32)


def stored(path):
    """The tensors of a file as the package reads and dequantizes them, and their types."""
    reader = gguf.GGUFReader(path)
    values = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return values, {t.name: t.tensor_type.name for t in reader.tensors}


def test_what_is_written_in_float32_reads_back_bit_for_bit(tmp_path, gguf_model):
    file = write_gguf(gguf_model, tmp_path / "m.gguf")
    back = read_gguf(file.path)
    assert back.config == gguf_model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, gguf_model.params)
    assert back.tokenizer is None
    _, kinds = stored(file.path)
    assert file.tensors == dict(Counter(kinds.values())) == {"F32": len(kinds)}


@pytest.mark.parametrize(
    ("name", "fields"),
    # transformers takes a GPT-2 to have 1,024 positions, and its MLP to be four times as wide.
    [("gpt2", {"positions": 1024}), ("llama", {}), ("llama_untied_wide", {}), ("qwen2", {})],
)
def test_transformers_computes_the_same_from_the_file(tmp_path, gguf_named, word_tokenizer, name, fields):
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    size = len(word_tokenizer)
    model = gguf_named(name, vocab_size=size, bos_token=size - 1, eos_token=size - 1, **fields)
    model = Model(model.config, model.params, word_tokenizer)
    write_gguf(model, tmp_path / "m.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    tokens = np.minimum(TOKENS, size - 1)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(np.asarray(model(tokens)), expected, atol=2e-5)


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["gpt2_untied_odd", "llama_untied_wide"])
def test_smaller_types_hold_what_the_package_makes_of_the_weights(tmp_path, gguf_named, name, dtype):
    model = gguf_named(name)
    exact, _ = stored(write_gguf(model, tmp_path / "exact.gguf").path)
    found, kinds = stored(write_gguf(model, tmp_path / "m.gguf", dtype=dtype).path)
    for tensor, values in exact.items():
        if values.ndim == 1 or tensor == "position_embd.weight":
            expected = "F32"
        elif dtype != "f16" and values.shape[-1] % 32:
            expected = "F16"
        else:
            whole = dtype == "q4_0" and tensor in ("token_embd.weight", "output.weight")
            expected = "Q8_0" if whole else dtype.upper()
        assert kinds[tensor] == expected, tensor
        code = gguf.GGMLQuantizationType[expected]
        remade = gguf.dequantize(gguf.quantize(values, code), code)
        np.testing.assert_array_equal(found[tensor], remade, err_msg=tensor)
    assert ("F16" in kinds.values()) == (dtype == "f16" or name == "gpt2_untied_odd")
    back = read_gguf(tmp_path / "m.gguf")
    again, _ = stored(write_gguf(back, tmp_path / "again.gguf").path)
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_queries_and_keys_of_a_llama_stand_in_neighbouring_pairs(tmp_path, gguf_named):
    model = gguf_named("llama")
    values, _ = stored(write_gguf(model, tmp_path / "m.gguf").path)
    for tensor, ours in (("attn_q", "query"), ("attn_k", "key")):
        kernel = np.asarray(model.params["layers"]["attention"][ours]["kernel"][1])
        # Heads of 8: the halves 0 1 2 3 | 4 5 6 7 become 0 4 1 5 2 6 3 7.
        order = [
            8 * head + place for head in range(kernel.shape[1] // 8) for place in (0, 4, 1, 5, 2, 6, 3, 7)
        ]
        np.testing.assert_array_equal(values[f"blk.1.{tensor}.weight"], kernel.T[order])


def test_the_architecture_is_told_in_the_keys_llama_cpp_reads(tmp_path, gguf_named):
    fields = gguf.GGUFReader(write_gguf(gguf_named("llama3"), tmp_path / "m.gguf").path).fields
    found = {name.removeprefix("llama."): f.contents() for name, f in fields.items() if "llama." in name}
    assert found == {
        "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": 300, "rope.dimension_count": 8,
        "rope.freq_base": 5e5, "attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
    }  # fmt: skip
    assert fields["general.architecture"].contents() == "llama"
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32


@pytest.mark.parametrize(
    ("name", "fields", "lost"),
    [
        ("gpt2", {"windows": (0, 4)}, r"gpt2, would lose:\n  - windows \(0, 4\)\n"),
        ("gpt2", {"activation": "relu"}, "activation 'relu'"),
        ("gpt2", {"scale_attention": False}, "scale_attention False"),
        ("gpt2", {"scale_attention_by_layer": True}, "scale_attention_by_layer True"),
        ("llama", {"activation": "gelu_new"}, "llama, would lose:\n  - activation 'gelu_new'"),
        ("llama", {"rotary": Rotary(1e4, None, RotaryScaling("dynamic", 2.0))}, "rotary"),
        ("llama", {"rotary": Rotary(1e4, 4)}, "rope.dimension_count 4"),
        ("llama", {"residual": "parallel"}, "residual 'parallel'"),
        ("llama", {"eos_token": (1, 2, 3, 4)}, "room for 3 tokens"),
    ],
)
def test_what_gguf_cannot_say_is_refused_by_name(tmp_path, gguf_named, name, fields, lost):
    with pytest.raises(InputError, match=lost):
        write_gguf(gguf_named(name, **fields), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_the_tokens_around_a_text_are_the_tokenizer_s_then_the_config_s(tmp_path, word_model):
    tokenizer = deepcopy(word_model.tokenizer)
    end = tokenizer.eos_token_id
    config = replace(word_model.config, bos_token=5, eos_token=None)

    def back(name):
        model = Model(config, word_model.params, tokenizer)
        return read_gguf(write_gguf(model, tmp_path / name).path).config

    assert (back("a").bos_token, back("b").eos_token) == (end, end)
    tokenizer.bos_token = None
    assert back("c").bos_token == 5
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"no end-of-text token.*set tokenizer.eos_token"):
        back("d")


def test_names_of_one_activation_are_as_good_as_each_other(tmp_path, gguf_named):
    model = gguf_named("gpt2", activation="gelu_fast", embedding_dropout=0.1)
    assert read_gguf(write_gguf(model, tmp_path / "m.gguf").path).config.activation == "gelu_new"


def test_weights_that_are_not_finite_in_a_type_leave_no_file(tmp_path, gguf_named):
    model = gguf_named("gpt2")
    kernel = model.params["layers"]["mlp"]["up"]["kernel"]
    big = {**model.params, "layers": {**model.params["layers"]}}
    big["layers"]["mlp"] = {**model.params["layers"]["mlp"]}
    big["layers"]["mlp"]["up"] = {
        **model.params["layers"]["mlp"]["up"],
        "kernel": kernel.at[1, 0, 0].set(1e6),
    }
    model = Model(model.config, big)
    assert write_gguf(model, tmp_path / "m.gguf").path.exists()
    with pytest.raises(InputError, match=r"not finite(.|\n)*blk.1.ffn_up.weight: F16"):
        write_gguf(model, tmp_path / "half.gguf", dtype="f16")
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]


def test_a_file_is_replaced_only_where_asked(tmp_path, gguf_named):
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_gguf(gguf_named("gpt2"), tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text() == "mine"
    write_gguf(gguf_named("gpt2"), tmp_path / "m.gguf", overwrite=True)
    assert read_gguf(tmp_path / "m.gguf").config.layers == 2
    with pytest.raises(InputError, match="dtype of a GGUF file must be one of f32, f16, q8_0, q4_0"):
        write_gguf(gguf_named("gpt2"), tmp_path / "n.gguf", dtype="q2_k")


def test_the_history_tells_that_weights_were_quantized(tmp_path, gguf_named):
    model = gguf_named("llama")
    model = Model(model.config, model.params, None, ({"did": "prune", "to": 0.5},))
    write_gguf(model, tmp_path / "m.gguf", dtype="q4_0")
    back = ragjax.load(str(tmp_path / "m.gguf"))
    assert back.history == (
        {"did": "prune", "to": 0.5},
        {"did": "import", "source": str(tmp_path / "m.gguf"), "weights": {"Q8_0": 1, "Q4_0": 14, "F32": 5}},
    )
    ragjax.save(back, tmp_path / "hf")
    record = json.loads((tmp_path / "hf" / "ragjax.json").read_text())
    assert record["history"][-1]["weights"]["Q4_0"] == 14
    assert ragjax.load(tmp_path / "hf").config == model.config
