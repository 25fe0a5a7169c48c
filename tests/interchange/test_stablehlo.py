"""The exported program, run as a stranger would: in a process that cannot import ragjax."""

import re
import subprocess
import sys
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export
from safetensors.flax import load_file

from ragjax.cli import main
from ragjax.config import Quantize
from ragjax.errors import InputError
from ragjax.interchange import save, stablehlo
from ragjax.interchange.stablehlo import export_stablehlo, load_stablehlo
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling
from ragjax.quantizing import quantize

TINY = DecoderConfig(
    vocab_size=130, positions=40, width=32, layers=3, heads=4, mlp_width=24, initializer_range=0.3
)
CONFIGS = {
    "gpt2": TINY,
    "banded": replace(TINY, windows=(0, 3), scale_attention_by_layer=True, tied=False),
    "grouped_rotary": replace(
        TINY, kv_heads=2, learned_positions=False, norm="rms", gated=True, activation="silu",
        attention_bias=False, attention_out_bias=False, mlp_bias=False,
        rotary=Rotary(base=500.0, scaling=RotaryScaling("llama3", factor=8.0, original_positions=16)),
    ),
}  # fmt: skip
SIZES = [(1, 1), (3, 7), (2, 40)]


def some_tokens(config, shape):
    return np.random.default_rng(shape[1]).integers(0, config.vocab_size, shape, np.int32)


def run_alone(folder, program):
    """Runs Python in the folder; ragjax and flax cannot be imported there."""
    alone = "import sys; sys.modules.update(dict.fromkeys(['ragjax', 'flax']))\n"
    return subprocess.run(
        [sys.executable, "-c", alone + program], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, random_model):
    return export_stablehlo(random_model(TINY), tmp_path_factory.mktemp("stablehlo") / "out")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_batch_and_length_has_the_logits_of_the_model(config, tmp_path, random_model):
    model = random_model(config)
    program = load_stablehlo(export_stablehlo(model, tmp_path / "out"))
    for shape in SIZES:
        tokens = some_tokens(config, shape)
        expected = np.asarray(model(tokens))
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(program(tokens), expected, atol=1e-5)


def test_the_lines_of_the_readme_run_where_ragjax_is_not(folder, random_model):
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    tokens = some_tokens(TINY, (3, 7))
    np.save(folder.parent / "tokens.npy", tokens)
    more = "import numpy as np\nnp.save('../found.npy', logits(params, np.load('../tokens.npy')))"
    done = run_alone(folder, lines + more)
    assert done.stdout == "(1, 3, 130)\n", done.stderr
    expected = random_model(TINY)(tokens)
    np.testing.assert_allclose(np.load(folder.parent / "found.npy"), expected, atol=1e-5)


def test_one_program_is_for_all_three_platforms_and_any_size(folder):
    program = export.deserialize(bytearray((folder / "program.jax").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert str(program.in_avals[-1]) == "int32[batch,length]"
    assert str(program.out_avals[0]) == "float32[batch,length,130]"
    assert len(program.in_avals) == len(load_file(folder / "params.safetensors")) + 1


def test_a_sequence_that_is_too_long_is_refused(folder):
    tokens = np.zeros((1, 41), np.int32)
    with pytest.raises(InputError, match="up to 40 tokens, found 41"):
        load_stablehlo(folder)(tokens)
    program = export.deserialize(bytearray((folder / "program.jax").read_bytes()))
    with pytest.raises(ValueError, match="shapes"):
        program.call(load_file(folder / "params.safetensors"), tokens)


def test_the_bytecode_is_stablehlo_whose_arguments_are_the_weights(folder):
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo as dialect

    with ir.Context() as context:
        module = dialect.deserialize_portable_artifact(context, (folder / "program.mlirbc").read_bytes())
        [main] = re.findall(r"func.func public @main\((.*?)\) ->", str(module), re.DOTALL)
    weights = load_file(folder / "params.safetensors")
    shapes = ["x".join(map(str, weights[name].shape)) for name in sorted(weights)]
    told = re.findall(r"%arg\d+: tensor<(.*?)x?[fi]32>", main)
    assert told == ["", *shapes, "?x?"]


def test_weights_are_data_and_not_in_the_program(folder):
    small = (folder / "program.jax").stat().st_size
    assert small < 100_000
    weights = load_file(folder / "params.safetensors")
    doubled = {name: 2 * leaf if name == "final_norm/scale" else leaf for name, leaf in weights.items()}
    doubled["final_norm/bias"] = 2 * weights["final_norm/bias"]
    program = export.deserialize(bytearray((folder / "program.jax").read_bytes()))
    tokens = some_tokens(TINY, (2, 5))
    expected = 2 * np.asarray(program.call(weights, tokens))
    np.testing.assert_allclose(program.call(doubled, tokens), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_halves_the_weights_and_computes_in_it(folder, tmp_path, random_model):
    model = random_model(TINY)
    half = export_stablehlo(model, tmp_path / "half", dtype="bfloat16")
    weights = load_file(half / "params.safetensors")
    assert {leaf.dtype for leaf in weights.values()} == {jnp.dtype(jnp.bfloat16)}
    tokens = some_tokens(TINY, (2, 9))
    found, expected = np.asarray(load_stablehlo(half)(tokens)), np.asarray(model(tokens))
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_the_folder_has_config_tokenizer_and_history(tiny_byte_model, tmp_path):
    from transformers import AutoTokenizer

    model = replace(tiny_byte_model, history=({"did": "prune"},))
    out = export_stablehlo(model, tmp_path / "out", platforms=("cpu",))
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "ragjax.json", "params.safetensors", "tokenizer.json"} <= names
    # Under that name transformers would take them for its own, find none it knows, and start at random.
    assert "model.safetensors" not in names
    assert AutoTokenizer.from_pretrained(out).encode("abc") == model.tokenizer.encode("abc")
    assert '"did": "prune"' in (out / "ragjax.json").read_text()


def test_nothing_is_overwritten_and_nothing_half_written_is_left(folder, tmp_path, monkeypatch, random_model):
    before = (folder / "params.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        export_stablehlo(random_model(TINY, seed=1), folder)
    assert (folder / "params.safetensors").read_bytes() == before

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stablehlo, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_stablehlo(random_model(TINY), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"platforms": ("cpu", "rocm")}, "cpu, cuda, tpu, found"),
        ({"platforms": ()}, "cpu, cuda, tpu, found"),
        ({"dtype": "float16"}, "float32 or bfloat16, found 'float16'"),
    ],
)
def test_other_platforms_and_types_are_refused(options, told, tmp_path, random_model):
    with pytest.raises(InputError, match=told):
        export_stablehlo(random_model(TINY), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_flatbuffers_the_way_to_install_it_is_told(folder, tmp_path, monkeypatch, random_model):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    monkeypatch.setattr(stablehlo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ragjax\[stablehlo\]'"):
        export_stablehlo(random_model(TINY), tmp_path / "out")
    with pytest.raises(InputError, match="flatbuffers"):
        load_stablehlo(folder)


def test_a_folder_without_a_program_is_named(tmp_path):
    with pytest.raises(InputError, match=r"program.jax, params.safetensors, config.json missing"):
        load_stablehlo(tmp_path)


def test_the_command_writes_it_and_says_how_to_run_it(tiny_byte_model, tmp_path, capsys):
    save(tiny_byte_model, tmp_path / "m")
    main(["export", str(tmp_path / "m"), str(tmp_path / "out"), "--format", "stablehlo"])
    told = capsys.readouterr().out
    assert "StableHLO program for cpu, cuda, tpu, weights float32" in told
    assert str(tmp_path / "out" / "README.md") in told
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert f"{size / 1e6:,.1f} MB" in told
    tokens = some_tokens(tiny_byte_model.config, (1, 9))
    expected = tiny_byte_model(tokens)
    np.testing.assert_allclose(load_stablehlo(tmp_path / "out")(tokens), expected, atol=1e-5)


def test_a_quantized_model_is_written_as_the_floats_its_integers_stand_for(tmp_path, random_model):
    small = quantize(random_model(TINY), Quantize(tables="int8")).model
    folder = export_stablehlo(small, tmp_path / "out", platforms=("cpu",))
    written = load_file(folder / "params.safetensors")
    floats = flatten_dict(small.in_floats().params, sep="/")
    assert written.keys() == floats.keys()
    assert all((written[name] == floats[name]).all() for name in floats)
