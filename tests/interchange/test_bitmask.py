"""Sparse weights as bitmasks: every bit comes back, the size is what the format says, damage is told."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ragjax.errors import InputError
from ragjax.interchange import load, save
from ragjax.interchange.bitmask import compressed, open_bitmask, write_bitmask
from ragjax.interchange.formats import export
from ragjax.interchange.size import stored_bytes
from ragjax.model import Model

RANDOM = np.random.default_rng(0)
VALUES = {
    "sparse": np.where(RANDOM.random((5, 13)) < 0.3, RANDOM.normal(size=(5, 13)), 0).astype(np.float32),
    "dense": RANDOM.normal(size=(3, 3)).astype(np.float32),
    "zeros": np.zeros(17, np.float32),
    "signed": np.array([0.0, -0.0, 0.0, 0.0, 1e-42, 0.0, 0.0, 0.0, 0.0], np.float32),
}


def write(folder, **options):
    write_bitmask(folder, {n: v.shape for n, v in VALUES.items()}, VALUES.__getitem__, **options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [1, 60, 10**9])
def test_every_bit_comes_back(tmp_path, dtype, shard_bytes):
    write(tmp_path, dtype=dtype, shard_bytes=shard_bytes)
    assert len(list(tmp_path.iterdir())) == {1: 4, 60: 2, 10**9: 1}[shard_bytes]
    tensors = open_bitmask(tmp_path)
    assert list(tensors.shapes) == list(VALUES)
    for name, values in VALUES.items():
        found = tensors.read(name)
        assert found.dtype == dtype
        assert found.shape == tensors.shapes[name] == values.shape
        kind = f"u{found.itemsize}"
        np.testing.assert_array_equal(found.view(kind), values.astype(found.dtype).view(kind))


def test_the_file_is_what_the_documentation_says(tmp_path):
    write(tmp_path)
    file = tmp_path / "model-00001.bitmask.safetensors"
    with safe_open(file, "np") as opened:
        about = opened.metadata()
    assert (about["format"], about["version"]) == ("ragjax-bitmask", "1")
    assert json.loads(about["shapes"]) == {name: list(values.shape) for name, values in VALUES.items()}
    parts, flat = load_file(file), VALUES["sparse"].reshape(-1)
    ones = [bool(parts["sparse.bits"][i // 8] >> (i % 8) & 1) for i in range(flat.size)]
    np.testing.assert_array_equal(ones, flat != 0)
    np.testing.assert_array_equal(parts["sparse.values"], flat[flat != 0])
    np.testing.assert_array_equal(parts["dense"], VALUES["dense"])


def test_a_tensor_is_compressed_only_where_that_is_smaller():
    for zeros in range(9):
        values = np.array([0.0] * zeros + [1.0] * (8 - zeros), np.float16)
        parts = compressed("w", values)
        size = sum(part.nbytes for part in parts.values())
        assert size == min(16, 1 + 2 * (8 - zeros))
        assert ("w" in parts) == (zeros == 0)


def test_a_sparse_model_is_smaller_and_loads_as_it_was(tmp_path, tiny_model):
    sparse = jax.tree.map(lambda w: jnp.where(jnp.abs(w) < 0.15, 0, w), tiny_model.params)
    model = Model(tiny_model.config, sparse)
    dense = save(model, tmp_path / "dense")
    written = export(model, tmp_path / "small", format="bitmask")
    again = load(tmp_path / "small")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, load(dense).params)
    kept = sum(int((np.asarray(w) != 0).sum()) for w in jax.tree.leaves(load(dense).params))
    size = sum(np.asarray(w).size for w in jax.tree.leaves(load(dense).params))
    assert stored_bytes(tmp_path / "small") < stored_bytes(dense) / 2
    # One bit a weight, four bytes a value, and the header.
    assert stored_bytes(tmp_path / "small") < size / 8 + 4 * kept + 9_000
    assert f"{stored_bytes(tmp_path / 'small') / (4 * size):.1%} of dense" in written.contents


def test_all_damage_is_told_at_once(tmp_path):
    write(tmp_path)
    file = tmp_path / "model-00001.bitmask.safetensors"
    with safe_open(file, "np") as opened:
        about = opened.metadata()
    parts = load_file(file)
    parts["sparse.values"] = parts["sparse.values"][1:].copy()
    parts["zeros.bits"] = parts["zeros.bits"][1:].copy()
    del parts["signed.bits"]
    save_file(parts, file, metadata=about)
    with pytest.raises(InputError) as error:
        open_bitmask(tmp_path)
    ones = int((VALUES["sparse"] != 0).sum())
    assert f"sparse has {ones} bits for {ones - 1} values" in str(error.value)
    assert "zeros needs 3 bytes of bits, found 2" in str(error.value)
    assert "signed is missing" in str(error.value)


def test_another_version_and_a_cut_file_are_refused(tmp_path):
    write(tmp_path)
    file = tmp_path / "model-00001.bitmask.safetensors"
    save_file(load_file(file), file, metadata={"format": "ragjax-bitmask", "version": "2", "shapes": "{}"})
    with pytest.raises(InputError, match="of version 1 was expected, found ragjax-bitmask of 2"):
        open_bitmask(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_bitmask(tmp_path)


def test_values_that_are_not_finite_are_refused_and_no_file_is_left(tmp_path):
    bad = {"a": np.array([0, np.inf], np.float32), "b": np.array([1e30, 0], np.float32)}
    with pytest.raises(InputError, match=r"not finite as float16(.|\n)*a(.|\n)*b"):
        write_bitmask(tmp_path, {n: v.shape for n, v in bad.items()}, bad.__getitem__, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_storage_is_refused(tmp_path, tiny_model):
    with pytest.raises(InputError, match="storage must be one of dense, bitmask, found 'zip'"):
        save(tiny_model, tmp_path / "m", storage="zip")
