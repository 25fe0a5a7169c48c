import gguf
import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.gguf import gguf_tokenizer, read_gguf, write_gguf
from ragjax.interchange.size import stored_bytes
from ragjax.interchange.tokenizer import load_tokenizer
from ragjax.parallel.mesh import make_mesh


def copy_with(source, path, *, drop=(), change=None, tensors=None):
    """A file like another, without some keys, with others changed or added, and with more tensors."""
    reader = gguf.GGUFReader(source)
    values = {
        n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.") and n not in drop
    }
    values |= change or {}
    writer = gguf.GGUFWriter(path, values.pop("general.architecture"))
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        add.get(type(value), writer.add_array)(key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@pytest.fixture
def llama(tmp_path, gguf_named):
    return write_gguf(gguf_named("llama"), tmp_path / "llama.gguf").path


def test_a_gguf_file_is_a_model_wherever_one_is_asked_for(tmp_path, word_model):
    path = write_gguf(word_model, tmp_path / "m.gguf", dtype="q8_0").path
    model = load(str(path))
    assert load_tokenizer(path).encode("the café") == word_model.tokenizer.encode("the café")
    assert gguf_tokenizer(path).get_vocab() == word_model.tokenizer.get_vocab()
    assert stored_bytes(path) == path.stat().st_size
    save(model, tmp_path / "hf")
    again = load(tmp_path / "hf")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert again.config == model.config
    assert again.tokenizer.encode("naïve 漢字 12") == word_model.tokenizer.encode("naïve 漢字 12")


def test_a_file_by_another_name_is_known_by_its_first_bytes(tmp_path, llama):
    other = llama.rename(tmp_path / "blob")
    assert load(other).config.layers == 2
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputError, match=r"is a file, and no GGUF"):
        load(tmp_path / "text.txt")


def test_a_folder_of_gguf_files_says_to_give_the_file(tmp_path, llama):
    with pytest.raises(InputError, match=r"found llama.gguf. Of a GGUF file give the path"):
        load(tmp_path)


def test_a_model_is_read_onto_a_mesh(tmp_path, gguf_named):
    model = gguf_named("llama")
    path = write_gguf(model, tmp_path / "m.gguf").path
    split = read_gguf(path, mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    kernel = split.params["layers"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size
    jax.tree.map(np.testing.assert_array_equal, split.params, model.params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma3"}, "architectures gpt2, qwen2, llama are read, found 'gemma3'"),
        ({"llama.expert_count": 8}, "expert_count 8: mixtures of experts"),
        ({"llama.attention.sliding_window": 128}, "sliding_window 128: windows"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type: expected none or linear, found 'yarn'"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count 4: only the width of a head, 8"),
        ({"llama.attention.value_length": 16}, "attention.value_length 16: only the width of a head, 8"),
        ({"llama.logit_scale": 0.5}, "logit_scale: not known"),
        ({"llama.attention.head_count": 3}, "32 must be divisible by attention.head_count 3"),
        ({"llama.block_count": 2**31}, "no tensor is of block 2147483647"),
        (
            {"llama.vocab_size": 256},
            r"fit the GGUF file's metadata(.|\n)*token_embd.weight: expected \[256, 32\]",
        ),
        ({"llama.block_count": 1}, r"blk.1.attn_q.weight: not expected"),
        ({"ragjax.history": "[1]"}, "ragjax.history must be a JSON list of objects"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, llama, change, message):
    with pytest.raises(InputError, match=message):
        read_gguf(copy_with(llama, tmp_path / "m.gguf", change=change))


def test_several_complaints_come_at_once(tmp_path, llama):
    bad = copy_with(
        llama, tmp_path / "m.gguf", drop=["llama.context_length"], change={"llama.rope.freq_base": 0.0}
    )
    message = r"context_length: expected a whole number(.|\n)*rope.freq_base: expected a number above 0"
    with pytest.raises(InputError, match=message):
        read_gguf(bad)


def test_a_missing_tensor_is_named(tmp_path, llama):
    bad = copy_with(llama, tmp_path / "m.gguf", drop=["blk.1.ffn_down.weight"])
    with pytest.raises(InputError, match=r"blk.1.ffn_down.weight: missing, expected \[32, 64\]"):
        read_gguf(bad)


def test_factors_of_no_known_scaling_are_refused(tmp_path, llama):
    odd = {"rope_freqs.weight": np.array([1, 1, 2, 3], np.float32)}
    with pytest.raises(InputError, match=r"rope_freqs.weight divides the rotary frequencies otherwise"):
        read_gguf(copy_with(llama, tmp_path / "m.gguf", tensors=odd))
    ones = {"rope_freqs.weight": np.ones(4, np.float32)}
    assert read_gguf(copy_with(llama, tmp_path / "n.gguf", tensors=ones)).config.rotary.scaling is None


def test_tokens_that_end_a_text_come_from_all_keys(tmp_path, llama):
    change = {
        "tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 7,
    }  # fmt: skip
    assert read_gguf(copy_with(llama, tmp_path / "m.gguf", change=change)).config.eos_token == (7, 9)


def test_without_the_package_the_message_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'ragjax\[gguf\]'"):
        load(llama)
