import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.errors import InputError
from ragjax.interchange import layout, load, save
from ragjax.interchange.gpt2 import layout as gpt2_layout
from ragjax.interchange.layout import by_head, check_params, parameter_shapes
from ragjax.interchange.tensors import SINGLE
from ragjax.models.decoder_config import DecoderConfig, Rotary


@pytest.fixture
def folder(torch_gpt2, tmp_path):
    torch_gpt2().save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def test_all_offending_tensors_are_named_at_once_with_both_shapes(folder):
    def edit(tensors):
        del tensors["transformer.ln_f.bias"]
        del tensors["transformer.h.1.attn.c_attn.weight"]
        tensors["transformer.wpe.weight"] = np.zeros((15, 24), np.float32)
        tensors["transformer.h.0.mlp.c_fc.weight"] = tensors["transformer.h.0.mlp.c_fc.weight"].T.copy()
        tensors["score.weight"] = np.zeros((2, 24), np.float32)
        tensors["transformer.h.2.ln_1.weight"] = np.zeros(24, np.float32)

    change(folder, edit)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(caught.value).splitlines()[1:-1] == [
        "  - transformer.h.1.attn.c_attn.weight: missing, expected [24, 72]",
        "  - transformer.ln_f.bias: missing, expected [24]",
        "  - score.weight: not expected, found [2, 24]",
        "  - transformer.h.2.ln_1.weight: not expected, found [24]",
        "  - transformer.wpe.weight: expected [16, 24], found [15, 24]",
        "  - transformer.h.0.mlp.c_fc.weight: expected [24, 96], found [96, 24]",
    ]


def test_weights_of_other_types_are_named(folder):
    def edit(tensors):
        tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype(np.float64)
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].astype(np.int8)

    change(folder, edit)
    with pytest.raises(InputError, match=r"(?s)ln_f.bias: expected F32, F16, BF16, found F64.*found I8"):
        load(folder)


def test_weights_that_are_not_finite_are_named(folder):
    def edit(tensors):
        tensors["transformer.h.0.ln_1.bias"][3] = np.nan
        tensors["transformer.wte.weight"][0, 0] = -np.inf

    change(folder, edit)
    with pytest.raises(InputError, match=r"(?s)wte.weight.*h.0.ln_1.bias") as caught:
        load(folder)
    assert "ln_2" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_an_old_checkpoint_without_prefix_and_with_buffers_is_read(folder, dtype):
    expected = load(folder).params

    def edit(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), dtype))
            tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)

    change(folder, edit)
    jax.tree.map(np.testing.assert_array_equal, load(folder).params, expected)


def test_a_tied_head_may_be_there_when_it_is_equal(folder):
    change(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].copy()}))
    assert "head" not in load(folder).params
    change(folder, lambda t: t["lm_head.weight"].__setitem__((5, 5), 1.0))
    with pytest.raises(InputError, match=r"lm_head.weight must equal transformer.wte.weight"):
        load(folder)


def test_a_tied_head_of_another_shape_is_named(folder):
    change(folder, lambda t: t.update({"lm_head.weight": np.zeros((128, 24), np.float32)}))
    with pytest.raises(InputError, match=r"lm_head.weight: expected \[101, 24\], found \[128, 24\]"):
        load(folder)


def test_an_untied_head_must_be_there(torch_gpt2, tmp_path):
    torch_gpt2(tie_word_embeddings=False).save_pretrained(tmp_path)
    change(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(InputError, match=r"lm_head.weight: missing, expected \[101, 24\]"):
        load(tmp_path)


def test_a_tensor_with_and_without_prefix_is_refused(folder):
    change(folder, lambda t: t.update({"ln_f.bias": t["transformer.ln_f.bias"]}))
    with pytest.raises(InputError, match="there twice"):
        load(folder)


def test_fused_attention_is_cut_into_query_key_and_value(folder):
    fused = load_file(folder / SINGLE)["transformer.h.1.attn.c_attn.weight"]
    attention = load(folder).params["layers"]["attention"]
    for i, name in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(attention[name]["kernel"][1], fused[:, 24 * i : 24 * (i + 1)])


@pytest.mark.parametrize("shape", [(12, 5), (12,)])
def test_what_stands_head_by_head_is_cut_into_its_parts_and_put_back(shape):
    fused = np.arange(np.prod(shape)).reshape(shape)
    parts = by_head(2).unpack(fused, 3)
    for part, rows in zip(parts, ([0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]), strict=True):
        np.testing.assert_array_equal(part, fused[rows].T)
    np.testing.assert_array_equal(by_head(2).pack(parts), fused)


def test_the_vocabulary_is_padded_with_zeros_inside_alone(folder):
    model = load(folder)
    table = model.params["embedding"]["tokens"]
    assert table.shape == (128, 24)
    assert not table[101:].any()
    save(model, folder / "saved")
    assert load_file(folder / "saved" / SINGLE)["transformer.wte.weight"].shape == (101, 24)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_are_of_the_type_asked_for(folder, dtype):
    exact, model = load(folder).params, load(folder, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(dtype)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(dtype), b), exact, model.params)
    assert np.isfinite(model(np.zeros((1, 3), int))).all()


def test_parameters_of_another_config_are_named(tiny_model):
    config = tiny_model.config
    assert parameter_shapes(config)["layers/mlp/up/kernel"] == (3, 32, 128)
    check_params(tiny_model.params, config)
    params = {**tiny_model.params, "head": jnp.zeros((384, 32))}
    params["final_norm"] = {"scale": jnp.zeros(31)}
    with pytest.raises(InputError) as caught:
        check_params(params, config)
    for told in (
        "final_norm/bias: missing",
        "head: not expected",
        "final_norm/scale: expected [32], found [31]",
    ):
        assert told in str(caught.value)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loading_holds_no_more_than_the_parameters_and_the_largest_tensor(kind, random_model, tmp_path):
    config = DecoderConfig(vocab_size=8000, positions=32, width=256, layers=6, heads=4, mlp_width=1024)
    if kind == "llama":
        plain = {"attention_bias": False, "attention_out_bias": False, "mlp_bias": False}
        config = replace(
            config, **plain, learned_positions=False, rotary=Rotary(), norm="rms", gated=True,
            activation="silu", tied=False,
        )  # fmt: skip
    save(random_model(config), tmp_path / "m")
    load(tmp_path / "m")
    tracemalloc.start()
    try:
        params = load(tmp_path / "m").params
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
    assert sum(sizes) < peak < sum(sizes) + 4 * 8000 * 256


def test_weights_too_large_for_the_type_asked_for_are_named(folder):
    def edit(tensors):
        tensors["transformer.ln_f.weight"][2] = 1e5

    change(folder, edit)
    load(folder)
    with pytest.raises(InputError, match=r"ln_f.weight"):
        load(folder, dtype=jnp.float16)


def test_weights_on_a_device_are_fetched_a_layer_at_a_time(tiny_model, monkeypatch):
    reader = layout.tensor_reader
    expected = reader(tiny_model.params, gpt2_layout(tiny_model.config))
    monkeypatch.setattr(layout, "_in_host_memory", lambda leaf: False)
    found = reader(tiny_model.params, gpt2_layout(tiny_model.config))
    for name in (
        "transformer.wte.weight",
        "transformer.h.1.attn.c_attn.weight",
        "transformer.h.2.mlp.c_fc.bias",
    ):
        np.testing.assert_array_equal(found(name), expected(name))
