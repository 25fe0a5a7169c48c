import pytest

from ragjax.interchange import save
from ragjax.interchange.size import stored_bytes


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_stored_bytes_are_those_of_the_weights_and_a_header(tiny_model, tmp_path, dtype, width):
    folder = save(tiny_model, tmp_path / "m", dtype=dtype)
    tables = (300 + 64) * 32
    block = 4 * (32 * 32 + 32) + 2 * 32 * 128 + 128 + 32 + 4 * 32
    weights = width * (tables + 3 * block + 2 * 32)
    assert weights < stored_bytes(folder) < weights + 8192
