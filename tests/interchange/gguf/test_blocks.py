"""A quantized model's integers in the blocks of a GGUF file."""

import gguf
import jax
import numpy as np
import pytest

from ragjax.config import Quantize
from ragjax.interchange.formats import export
from ragjax.interchange.gguf import read_gguf, write_gguf
from ragjax.quantizing import quantize


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("scheme", "group", "dtype"), [("int4", None, "q4_0"), ("int8", None, "q8_0"), ("int8", 32, "q8_0")]
)
def test_integers_of_whole_blocks_are_taken_over_to_the_bit(tmp_path, gguf_named, name, scheme, group, dtype):
    model = gguf_named(name, width=64, mlp_width=96)
    small = quantize(model, Quantize(scheme=scheme, group=group, tables="int8")).model
    file = write_gguf(small, tmp_path / "m.gguf", dtype=dtype)
    kinds = [t.tensor_type.name for t in gguf.GGUFReader(file.path).tensors]
    assert file.kept == sum(kind.startswith("Q") for kind in kinds) > 0
    back, whole = read_gguf(file.path), small.in_floats()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0), back.params, whole.params)


def test_what_a_block_cannot_say_is_quantized_from_floats_and_counted(tmp_path, gguf_named):
    model = gguf_named("llama", width=64, mlp_width=96)
    skewed = quantize(model, Quantize(scheme="int4", group=16, symmetric=False)).model
    file = write_gguf(skewed, tmp_path / "m.gguf", dtype="q4_0")
    assert file.kept == 0
    floats = write_gguf(skewed.in_floats(), tmp_path / "f.gguf", dtype="q4_0")
    ours, theirs = (read_gguf(each.path).params for each in (file, floats))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_eight_bits_do_not_fit_into_four(tmp_path, gguf_named):
    small = quantize(gguf_named("gpt2", width=64, mlp_width=96), Quantize(scheme="int8")).model
    told = export(small, tmp_path / "m.gguf", format="gguf", dtype="q4_0").contents
    assert told.endswith("with the model's own integers and scales")
    assert "of Q types 0 " in told
