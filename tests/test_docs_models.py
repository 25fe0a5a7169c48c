"""docs/models.md says what is so: every mark of its tables is tried out."""

import json
import re
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from ragjax.config import Distill, Mesh, Sparsity, Train
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.errors import InputError
from ragjax.generation.onnx.network import Network
from ragjax.interchange import load, save
from ragjax.interchange.families import FAMILIES
from ragjax.interchange.formats import export
from ragjax.interchange.gguf.architectures import architecture_of
from ragjax.interchange.onnx import export_onnx, load_onnx
from ragjax.interchange.stablehlo import export_stablehlo, load_stablehlo
from ragjax.parallel.mesh import make_mesh
from ragjax.sparsity import sparsify
from ragjax.sparsity.masks import prunable
from ragjax.training.optimizer import make_optimizer
from ragjax.training.state import init_state
from ragjax.training.step import make_step

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "models.md").read_text()


def table(first):
    """The rows of the table whose first heading is this, each from heading to cell."""
    lines = iter(DOCUMENT.splitlines())
    heads = next(cells(line) for line in lines if line.startswith(f"| {first} |"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append(dict(zip(heads, cells(line), strict=True)))
    return rows


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


MARKS = {row["`model_type`"].strip("`"): row for row in table("`model_type`")}
REFUSED = [
    (row["field"].strip("`"), json.loads(row["such as"].strip("`")), family)
    for row in table("field")
    for family in (FAMILIES if row["where"] == "all" else re.findall(r"`(\w+)`", row["where"]))
]

_BLOCK = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 24,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
VALUES = {
    "gpt2": _GPT2,
    "gpt3": {**_GPT2, "attention_windows": [0, 5]},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 24, "window_size": 5,
        "attention_types": [[["global", "local"], 1]],
    },
    "opt": {**_BLOCK, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {**_BLOCK, "intermediate_size": 64},
    "llama": {**_BLOCK, "intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {**_BLOCK, "intermediate_size": 64, "num_key_value_heads": 2},
}  # fmt: skip


def values_of(family):
    return {"model_type": family, "vocab_size": 130, **VALUES[family]}


@pytest.fixture(scope="module")
def models(random_model):
    """A random model of each family."""
    return {family: random_model(FAMILIES[family].config_from(values_of(family))) for family in FAMILIES}


def some_tokens(shape=(2, 9)):
    return np.random.default_rng(0).integers(0, 130, shape, np.int32)


def can_load_and_save(model, family, folder):
    folder = save(model, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    back = load(folder)
    assert back.config == model.config
    np.testing.assert_array_equal(back(some_tokens()), model(some_tokens()))


HALF = Sparsity(target=0.5, schedule="one_shot", start=0, stop=0, every=1)


def can_prune(model, family, folder):
    optimizer = sparsify(optax.sgd(0.1), HALF, total_steps=2, seed=0)
    nothing = jax.tree.map(np.zeros_like, model.params)
    change, _ = optimizer.update(nothing, optimizer.init(model.params), model.params)
    for leaf in jax.tree.leaves(prunable(optax.apply_updates(model.params, change))):
        assert float((leaf == 0).mean()) == pytest.approx(0.5, abs=0.01)


def can_distill(model, family, folder):
    """Its distribution comes nearer to that of a teacher of the family."""
    config, mesh = model.config, make_mesh(Mesh(), jax.devices()[:1])
    losses = Distill(forward_kl=1.0, cross_entropy=0.0)
    optimizer = sparsify(make_optimizer(Train(warmup=0)), Sparsity(), total_steps=300, seed=0)
    text = some_tokens((1, 2, 10))
    batch = Batch(text[..., :-1], text[..., 1:], np.ones(text[..., 1:].shape, np.float32))
    state = init_state(model.params, optimizer, mesh)
    teacher = jax.tree.map(lambda leaf: 5 * leaf[..., ::-1], model.params)
    told = []
    with jax.set_mesh(mesh):
        step = make_step(Objective(config, (config,), losses), optimizer, clip=1.0)
        for _ in range(3):
            state, metrics = step(state, (teacher,), batch)
            told.append(float(metrics.loss))
    assert told[0] > told[1] > told[2] > 0


def gguf_out(model, family, folder):
    export(model, folder / "m.gguf", format="gguf")


def gguf_in(model, family, folder):
    architecture_of({"general.architecture": family})
    export(model, folder / "m.gguf", format="gguf")
    np.testing.assert_allclose(load(folder / "m.gguf")(some_tokens()), model(some_tokens()), atol=1e-5)


def quantize(model, family, folder):
    sizes = {}
    for dtype in ("f32", "q8_0", "q4_0"):
        sizes[dtype] = export(model, folder / f"{dtype}.gguf", format="gguf", dtype=dtype).size
    assert sizes["f32"] > sizes["q8_0"] > sizes["q4_0"]
    difference = load(folder / "q8_0.gguf")(some_tokens()) - model(some_tokens())
    assert 0 < np.abs(difference).max() < 0.05 * np.abs(model(some_tokens())).max()


def stablehlo(model, family, folder):
    program = load_stablehlo(export_stablehlo(model, folder / "out", platforms=("cpu",)))
    np.testing.assert_allclose(program(some_tokens()), model(some_tokens()), atol=1e-5)


def onnx(model, family, folder):
    there = load_onnx(export_onnx(model, folder / "out"), threads=1)
    tokens = some_tokens()
    found = Network(there, batch=len(tokens), room=16).read(tokens.tolist())
    np.testing.assert_allclose(found, model(tokens)[:, -1], atol=1e-5)


TRIALS = {
    "load": can_load_and_save,
    "save": can_load_and_save,
    "prune": can_prune,
    "distill": can_distill,
    "quantize": quantize,
    "GGUF in": gguf_in,
    "GGUF out": gguf_out,
    "StableHLO": stablehlo,
    "ONNX": onnx,
}


def test_the_table_has_every_family_and_every_column():
    assert list(MARKS) == list(FAMILIES)
    for row in MARKS.values():
        assert list(row)[1:] == list(TRIALS)
        assert {row[column] for column in TRIALS} <= {"yes", "no"}


@pytest.mark.parametrize("column", TRIALS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_marked_works_and_what_is_not_is_refused(family, column, models, tmp_path):
    if MARKS[family][column] == "yes":
        TRIALS[column](models[family], family, tmp_path / "m")
        return
    with pytest.raises(InputError):
        TRIALS[column](models[family], family, tmp_path / "m")


@pytest.mark.parametrize(("field", "value", "family"), REFUSED)
def test_what_is_said_to_be_refused_is_refused_by_name(field, value, family):
    FAMILIES[family].config_from(values_of(family))
    with pytest.raises(InputError, match=rf"(?m)^  - {field}"):
        FAMILIES[family].config_from({**values_of(family), field: value})


def test_the_sizes_are_those_the_script_prints(capsys):
    runpy.run_path(str(ROOT / "scripts" / "model_shapes.py"), run_name="__main__")
    assert capsys.readouterr().out in DOCUMENT


def test_the_lines_that_run_a_program_are_those_of_its_own_readme(models, tmp_path):
    [lines] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    out = export_stablehlo(models["gpt2"], tmp_path / "out", platforms=("cpu",))
    assert lines in (out / "README.md").read_text()
