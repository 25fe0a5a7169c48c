import json

import jax
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.interchange.record import read_history, write_record, zeros


@pytest.fixture
def pruned(tiny_model):
    """Half of layer 1's up-projection, and one weight of layer 0's values, are zero."""
    params = jax.tree.map(np.array, tiny_model.params)
    params["layers"]["mlp"]["up"]["kernel"][1, :16] = 0
    params["layers"]["attention"]["value"]["kernel"][0, 3, 4] = 0
    return params


def test_zeros_are_counted_by_matrix_and_layer_and_in_all(pruned):
    found = zeros(pruned)
    assert set(found["matrices"]) == {
        *(f"layers/attention/{name}/kernel" for name in ("query", "key", "value", "out")),
        "layers/mlp/up/kernel",
        "layers/mlp/down/kernel",
    }
    assert found["matrices"]["layers/mlp/up/kernel"] == {"size": 32 * 128, "zeros": [0, 16 * 128, 0]}
    assert found["matrices"]["layers/attention/value/kernel"] == {"size": 32 * 32, "zeros": [1, 0, 0]}
    assert found["zeros"] == 16 * 128 + 1
    assert found["size"] == 3 * (4 * 32 * 32 + 2 * 32 * 128)
    assert found["sparsity"] == found["zeros"] / found["size"]


def test_negative_zero_is_a_zero_and_a_small_weight_is_not(tiny_model):
    params = jax.tree.map(np.array, tiny_model.params)
    params["layers"]["mlp"]["up"]["kernel"][0, 0, :2] = (-0.0, 1e-45)
    assert zeros(params)["zeros"] == 1


def test_history_is_read_as_it_was_written(tmp_path, tiny_model):
    history = ({"did": "import", "source": "gpt2"}, {"did": "prune", "target": 0.5})
    write_record(tmp_path, tiny_model.params, history)
    assert read_history(tmp_path) == history
    record = json.loads((tmp_path / "ragjax.json").read_text())
    assert record["source"] == "gpt2"
    assert record["format"] == 1
    assert record["masks"]["zeros"] == 0


def test_a_folder_without_a_record_has_no_history(tmp_path):
    assert read_history(tmp_path) is None


def test_history_that_is_no_json_is_refused(tmp_path, tiny_model):
    with pytest.raises(InputError, match="history"):
        write_record(tmp_path, tiny_model.params, ({"when": object()},))


@pytest.mark.parametrize(
    "damage", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "history": [1]}']
)
def test_a_damaged_or_later_record_is_refused(tmp_path, damage):
    (tmp_path / "ragjax.json").write_text(damage)
    with pytest.raises(InputError, match=r"ragjax.json"):
        read_history(tmp_path)
