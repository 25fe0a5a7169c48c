import json
import logging
from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.interchange import load, save


def same_state(first, second):
    import torch

    one, two = first.state_dict(), second.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def open_in_torch(folder):
    """The model as transformers opens it, without a tensor missing, left over or misshapen."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model


FIELDS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False, "n_inner": 50},
    "one_layer": {"n_layer": 1, "vocab_size": 128},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_transformers_to_ragjax_and_back_keeps_every_bit(torch_gpt2, tmp_path, fields, dtype, shard):
    import torch

    theirs = torch_gpt2(**fields).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / "theirs" / "model.safetensors").exists() == (shard is None)

    model = load(tmp_path / "theirs")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype("float32")}
    save(model, tmp_path / "ours", dtype=dtype, **({"shard_bytes": 20_000} if shard else {}))
    back = open_in_torch(tmp_path / "ours")
    assert same_state(back, theirs)
    assert back.config.dtype == theirs.dtype
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == dtype

    again = load(tmp_path / "ours")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_ragjax_to_transformers_and_back_keeps_every_bit_and_the_logits(tiny_config, random_model, tmp_path):
    import torch

    config = replace(
        tiny_config,
        tied=False,
        mlp_width=60,
        activation="relu",
        scale_attention_by_layer=True,
        eos_token=(3, 4),
    )
    model = random_model(config)
    opened = open_in_torch(save(model, tmp_path / "ours"))
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    logits = opened(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(logits - np.asarray(model(tokens))).max() < 1e-4
    assert opened.generation_config.eos_token_id == [3, 4]

    opened.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    assert back.config == config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)


def test_transformers_opens_a_saved_model_without_a_warning(tiny_byte_model, tmp_path, caplog):
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    folder = save(tiny_byte_model, tmp_path / "m")
    transformers_logging.get_logger("transformers").addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            model = open_in_torch(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    finally:
        transformers_logging.get_logger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []
    assert len(tokenizer) == model.config.vocab_size == 257
    assert model.generation_config.eos_token_id == 256


def test_a_model_on_disk_has_all_its_files(tiny_byte_model, tmp_path):
    folder = save(tiny_byte_model, tmp_path / "m")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "generation_config.json", "merges.txt", "model.safetensors", "ragjax.json",
        "tokenizer.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_banded_attention_is_kept_by_ragjax_and_refused_by_transformers(tiny_byte_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = replace(tiny_byte_model, config=replace(tiny_byte_model.config, windows=(0, 5)))
    folder = save(model, tmp_path / "m")
    back = load(folder)
    assert back.config == model.config
    assert back.tokenizer.encode("abc") == model.tokenizer.encode("abc")
    tokens = np.arange(20)[None]
    np.testing.assert_array_equal(back(tokens), model(tokens))
    with pytest.raises(ValueError, match="gpt3"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_history_begins_at_the_import_and_is_carried_on(torch_gpt2, tmp_path):
    torch_gpt2().save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    assert model.history == ({"did": "import", "source": str(tmp_path / "theirs")},)
    done = {"did": "prune", "sparsity": 0.5}
    save(replace(model, history=(*model.history, done)), tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two")
    assert load(tmp_path / "two").history == (*model.history, done)
    assert json.loads((tmp_path / "two" / "ragjax.json").read_text())["source"] == str(tmp_path / "theirs")


def test_a_hub_model_remembers_its_revision(torch_gpt2, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / ("0123456789" * 4)
    torch_gpt2().save_pretrained(snapshot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    assert load("owner/name").history == (
        {"did": "import", "source": "owner/name", "revision": snapshot.name},
    )


def test_a_run_folder_loads_as_its_student(tiny_byte_model, tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "Compress"}')
    save(tiny_byte_model, tmp_path / "student")
    jax.tree.map(np.testing.assert_array_equal, load(str(tmp_path)).params, tiny_byte_model.params)


def test_a_model_is_overwritten_only_when_told_so(tiny_model, tiny_byte_model, tmp_path):
    folder = save(tiny_byte_model, tmp_path / "m")
    with pytest.raises(InputError, match="exists already"):
        save(tiny_model, folder)
    assert load(folder).config == tiny_byte_model.config
    save(tiny_model, folder, overwrite=True)
    assert load(folder).tokenizer is None


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_save_that_fails_leaves_nothing(tiny_model, tmp_path, dtype):
    params = jax.tree.map(lambda x: x * 1e9, tiny_model.params)
    with pytest.raises(InputError):
        save(replace(tiny_model, params=params), tmp_path / "m", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_model_is_neither_saved_nor_loaded(
    tiny_model, tiny_byte_model, random_model, tmp_path
):
    small = random_model(replace(tiny_model.config, vocab_size=200))
    with pytest.raises(InputError, match="257"):
        save(replace(small, tokenizer=tiny_byte_model.tokenizer), tmp_path / "m")
    save(small, tmp_path / "m")
    tiny_byte_model.tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match=r"257 tokens.*200"):
        load(tmp_path / "m")


@pytest.mark.parametrize("config", ["", "null", "[]", "{", "{}", '{"model_type": "bert"}', "[" * 100_000])
def test_a_bad_config_file_is_refused(tiny_model, tmp_path, config):
    folder = save(tiny_model, tmp_path / "m")
    (folder / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"config.json"):
        load(folder)


def test_a_config_that_says_other_shapes_is_refused_with_both(tiny_model, tmp_path):
    folder = save(tiny_model, tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "n_layer": 2, "vocab_size": 301}))
    with pytest.raises(
        InputError, match=r"(?s)h.2.*not expected.*wte.weight: expected \[301, 32\], found \[300, 32\]"
    ):
        load(folder)


def test_every_token_that_ends_a_chat_is_known(tiny_byte_model, tmp_path):
    folder = save(tiny_byte_model, tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 3, 9999], "top_p": 0.9}))
    chat = load(folder)
    assert chat.config.eos_token == (256, 3)
    again = load(save(chat, tmp_path / "again"))
    assert again.config == chat.config
    (folder / "generation_config.json").write_text("{}")
    assert load(folder).config == tiny_byte_model.config
    (folder / "generation_config.json").write_text('{"eos_token_id": "oops"}')
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id must be a token id"):
        load(folder)
