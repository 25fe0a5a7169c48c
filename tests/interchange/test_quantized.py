"""Quantized models in files of their own."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ragjax.config import Mesh, Quantize
from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.formats import export
from ragjax.interchange.quantized import FILE
from ragjax.interchange.size import stored_bytes
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.stand_ins import has_stand_ins, is_stand_in, named_leaves
from ragjax.parallel.mesh import make_mesh
from ragjax.quantizing import quantize


@pytest.fixture(scope="module")
def small(tiny_model):
    """In 4 bits with zero points, the table in 8; inputs of a kernel are divided."""
    made = quantize(tiny_model, Quantize(scheme="int4", group=16, symmetric=False, tables="int8")).model
    kernel = made.params["layers"]["mlp"]["down"]
    divisor = jnp.linspace(0.5, 2, kernel["kernel"].shape[-2]) * jnp.ones((3, 1))
    kernel["kernel"] = replace(kernel["kernel"], input_scale=divisor)
    return made


@pytest.fixture
def folder(small, tmp_path):
    return save(small, tmp_path / "small")


def test_every_bit_comes_back_with_the_history(small, folder):
    back = load(folder)
    assert jax.tree.structure(back.params) == jax.tree.structure(small.params)
    jax.tree.map(np.testing.assert_array_equal, back.params, small.params)
    assert back.config == small.config
    assert json.dumps(back.history) == json.dumps(small.history)
    assert back.history[-1]["did"] == "quantize"
    assert back.history[-1]["bits"] == 4


def test_the_file_is_what_the_documentation_says(small, folder):
    tensors = load_file(folder / FILE)
    with (folder / FILE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = json.loads(header["__metadata__"]["quantized"])
    assert about["layers/mlp/up/kernel"] == {"bits": 4, "group": 16, "symmetric": False, "activations": None}
    assert about["embedding/tokens"] == {"table": True}
    packed, scale, zero = (tensors[f"layers/mlp/up/kernel/{part}"] for part in ("codes", "scale", "zero"))
    assert (packed.dtype, packed.shape) == (np.uint8, (3, 16, 128))
    # By the words of docs/quantization.md alone.
    halves = packed.reshape(3, 2, 8, 128)
    codes = np.concatenate([halves & 15, halves >> 4], axis=2).astype(np.int16)
    codes = np.where(codes > 7, codes - 16, codes)
    floats = (codes - zero[:, :, None]) * scale[:, :, None].astype(np.float32)
    expected = small.params["layers"]["mlp"]["up"]["kernel"].whole()
    np.testing.assert_allclose(floats.reshape(3, 32, 128), expected, rtol=1e-6)
    rows = tensors["embedding/tokens/codes"] * tensors["embedding/tokens/scale"].astype(np.float32)[:, None]
    np.testing.assert_allclose(rows, small.params["embedding"]["tokens"].whole()[:300], rtol=1e-6)


def test_a_mesh_reads_it_in_parts(small, folder):
    mesh = make_mesh(Mesh(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    back = load(folder, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, back.params, small.params)
    codes = back.params["layers"]["mlp"]["up"]["kernel"].codes
    assert codes.sharding.shard_shape(codes.shape) == (3, 8, 64)


def test_who_asks_for_floats_gets_those_the_integers_stand_for(small, folder):
    back = load(folder, floats=True, dtype=jnp.bfloat16)
    assert not has_stand_ins(back.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(back.params)} == {jnp.dtype(jnp.bfloat16)}
    whole = small.in_floats()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), back.params, whole.params
    )
    assert back.history[-1] == {"did": "dequantize"}


def test_other_formats_are_given_those_floats(small, tmp_path):
    made = export(small, tmp_path / "out", format="hf")
    back = load(made.path)
    jax.tree.map(np.testing.assert_array_equal, back.params, small.in_floats().params)


def test_bytes_and_zeros_are_those_of_what_is_stored(tiny_model, tmp_path):
    from ragjax.evaluation.figures import _weight_bytes
    from ragjax.sparsity.figures import sparsity_figures

    params = jax.tree.map(lambda x: x, tiny_model.params)
    up = params["layers"]["mlp"]["up"]
    up["kernel"] = up["kernel"].at[:, ::2].set(0)
    sparse = Model(tiny_model.config, params)
    small = quantize(sparse, Quantize(scheme="int8", symmetric=False, tables="int8")).model
    counts = sparsity_figures(small.params, small.config)
    assert counts == sparsity_figures(small.in_floats().params, small.config)
    # The smallest of the other weights are rounded to 0.
    assert counts.by_layer["layers/mlp/up/kernel"][0] == pytest.approx(0.5, abs=0.02)
    folder = save(small, tmp_path / "small")
    taken = sum(tensor.nbytes for tensor in load_file(folder / FILE).values())
    assert _weight_bytes(small, counts.parameters) == taken
    assert 0 < stored_bytes(folder) - taken < 8000
    zeros = json.loads((folder / "ragjax.json").read_text())["masks"]
    assert zeros["sparsity"] == pytest.approx(counts.sparsity_prunable)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, about: tensors.pop("layers/mlp/up/kernel/scale"), "up/kernel/scale: missing"),
        (lambda tensors, about: tensors.update(other=np.zeros(3, np.float32)), "other: not expected"),
        (
            lambda tensors, about: tensors.update(
                {"layers/mlp/up/kernel/codes": np.zeros((3, 4, 128), np.uint8)}
            ),
            r"expected U8 \[3, 16, 128\], found U8 \[3, 4, 128\]",
        ),
        (lambda tensors, about: about["layers/mlp/up/kernel"].update(bits=5), "bits must be 4 or 8, found 5"),
        (lambda tensors, about: about["layers/mlp/up/kernel"].update(group=24), "groups of 24 do not divide"),
        (lambda tensors, about: about["layers/mlp/up/kernel"].update(odd=5), "must name a scheme's fields"),
        (
            lambda tensors, about: about.update({"layers/x/kernel": {"bits": 8}}),
            "no parameter layers/x/kernel",
        ),
        (
            lambda tensors, about: tensors["final_norm/scale"].fill(np.inf),
            "(?s)must be finite.*final_norm/scale",
        ),
        (
            lambda tensors, about: tensors["layers/mlp/down/kernel/input_scale"].fill(0),
            "down/kernel/input_scale, which must be above 0",
        ),
        (
            lambda tensors, about: about["layers/mlp/up/kernel"].update(group=16.0),
            "must name a scheme's fields, found .*16.0",
        ),
        (lambda tensors, about: about.update({"layers/mlp/up/bias": {}}), "mlp/up/bias.*only kernels"),
        (lambda tensors, about: about.update({"final_norm/scale": {}}), "final_norm/scale.*only kernels"),
        (
            lambda tensors, about: about.update({"embedding/positions": {}}),
            "embedding/positions.*only kernels",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(folder, change, said):
    tensors = {name: values.copy() for name, values in load_file(folder / FILE).items()}
    with (folder / FILE).open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    about = json.loads(metadata["quantized"])
    change(tensors, about)
    save_file(tensors, folder / FILE, metadata={**metadata, "quantized": json.dumps(about)})
    with pytest.raises(InputError, match=said):
        load(folder)


@pytest.mark.parametrize("said", [{}, {"quantized": "{"}, {"quantized": "[1]"}])
def test_a_header_that_does_not_tell_what_is_quantized_is_refused(folder, said):
    metadata = {"format": "ragjax-quantized", "version": "1", **said}
    save_file(load_file(folder / FILE), folder / FILE, metadata=metadata)
    with pytest.raises(InputError, match="its header must say what is quantized"):
        load(folder)


def test_an_odd_number_of_inputs_is_not_packed(random_model, tmp_path):
    config = DecoderConfig(vocab_size=300, positions=8, width=15, layers=1, heads=3, mlp_width=16)
    folder = save(quantize(random_model(config), Quantize()).model, tmp_path / "odd")
    tensors = load_file(folder / FILE)
    about = {"layers/mlp/up/kernel": {"bits": 4}}
    metadata = {"format": "ragjax-quantized", "version": "1", "quantized": json.dumps(about)}
    save_file(tensors, folder / FILE, metadata=metadata)
    with pytest.raises(InputError, match="mlp/up/kernel of 4 bits has 15 inputs"):
        load(folder)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_not_quantized_has_the_type_that_is_asked_for(small, tmp_path, stored, dtype):
    back = load(save(small, tmp_path / "small", dtype=stored), dtype=dtype)
    floats = {name: leaf.dtype for name, leaf in named_leaves(back.params) if not is_stand_in(leaf)}
    assert "layers/mlp_norm/scale" in floats
    assert floats == dict.fromkeys(floats, jnp.dtype(dtype))


def test_a_later_version_is_refused(folder):
    tensors = load_file(folder / FILE)
    save_file(
        tensors, folder / FILE, metadata={"format": "ragjax-quantized", "version": "2", "quantized": "{}"}
    )
    with pytest.raises(InputError, match="of version 1 was expected, found ragjax-quantized of 2"):
        load(folder)
