"""Shrinking from Python and from the command line: what is handed back, written, and refused."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import ragjax
from ragjax.cli import main
from ragjax.config import Mesh, Shrink
from ragjax.errors import InputError
from ragjax.evaluation.speed import Speed
from ragjax.interchange.folder import load, save
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import check_divisible, shardings
from ragjax.shrinking import as_written, shrink
from ragjax.shrinking.written import as_saved
from ragjax.sparsity.shrink import parameter_count, resized, sizes_of

SIZES = {"positions": 16, "width": 24, "layers": 2, "heads": 6, "mlp_width": 32}
TINY = DecoderConfig(vocab_size=50, initializer_range=0.3, **SIZES)
TOKENS = np.random.default_rng(0).integers(0, 50, (4, 16))
PLAIN = {"importance": "magnitude", "compensate": False}


def model_of(config):
    return Model(config, jax.jit(init_params, static_argnums=(0, 1))(config, 0))


@pytest.fixture(scope="module")
def llama(of_kind):
    return model_of(of_kind("llama", **SIZES))


@pytest.fixture(scope="module", params=["gpt2", "gpt_neo", "opt-350m", "gpt_neox", "llama", "qwen2"])
def kin(request, of_kind):
    return model_of(of_kind(request.param, **SIZES))


def opened_in_torch(folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def test_what_its_config_can_say_is_written_as_it_is(kin, tmp_path):
    small = shrink(kin, Shrink(width=16, mlp_width=9, layers=1, **PLAIN)).model
    # Four values to a head, which still fill the width, or need not.
    assert small.config.head_width == 4
    assert as_written(small) is small
    folder = save(small, tmp_path / "small")
    again = load(folder)
    assert sizes_of(again.config) == sizes_of(small.config)
    expected = small(TOKENS)
    np.testing.assert_allclose(again(TOKENS), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(opened_in_torch(folder), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_what_its_config_cannot_say_is_written_with_heads_of_zeros(name, of_kind, tmp_path):
    groups = 5
    # Five heads share no keys.
    kin = model_of(of_kind(name, **SIZES, kv_heads=None))
    small = shrink(kin, Shrink(heads=groups, mlp_width=9, **PLAIN)).model
    with pytest.raises(InputError, match="cannot be saved"):
        save(small, tmp_path / "small")
    written = as_written(small)
    assert (small.config.heads, written.config.heads) == (5, 6)
    told = written.history[-1]
    assert told["heads"] == [5, 6]
    assert told["parameters"] == [parameter_count(small.config), parameter_count(written.config)]
    folder = save(written, tmp_path / "small")
    expected = small(TOKENS)
    np.testing.assert_allclose(load(folder)(TOKENS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(opened_in_torch(folder), expected, rtol=1e-3, atol=1e-3)


def test_heads_that_do_not_divide_the_width_are_made_wider():
    # 5 heads of 4 in a width of 22: two of 11 are too few, so nothing fits; in 25 they are 5 of 5.
    assert as_saved(resized(TINY, sizes_of(TINY)._replace(width=25, heads=5, kv_heads=5)))[::2] == (5, 5)
    with pytest.raises(InputError, match="heads x 4 is the width"):
        as_saved(resized(TINY, sizes_of(TINY)._replace(width=22, heads=5, kv_heads=5)))


def test_heads_leave_with_the_width_where_they_have_to_fill_it():
    assert shrink(model_of(TINY), Shrink(width=16, **PLAIN)).model.config.heads == 4
    budget = shrink(model_of(TINY), Shrink(params=0.5, multiple=4, **PLAIN))
    shape = budget.model.config
    assert shape.heads * 4 == shape.width < 24
    assert shape.layers == 2
    assert budget.report.reached == parameter_count(shape) / parameter_count(TINY) <= 0.5


def test_a_budget_of_a_llama_takes_groups_and_neurons_alone(llama):
    # Heads of 4 in a width of 24 as before, of which 4 and 2 divide it.
    shape = shrink(llama, Shrink(flops=0.6, multiple=4, length=16, **PLAIN)).model.config
    assert (shape.width, shape.layers) == (24, 2)
    assert shape.heads in (2, 4)
    assert shape.heads == 2 * shape.key_value_heads


def test_a_size_that_is_given_is_not_searched_for():
    made = shrink(model_of(TINY), Shrink(params=0.6, width=16, multiple=4, **PLAIN))
    assert (made.model.config.width, made.model.config.heads) == (16, 4)
    assert made.report.reached <= 0.6


def test_latency_is_timed_once_for_each_candidate(monkeypatch):
    timed = []

    def forward_speed(models, **_):
        assert models["model"].config == TINY
        timed.append(sizes_of(models["candidate"].config))
        return {name: Speed(0, 0, (1 / parameter_count(m.config),) * 5) for name, m in models.items()}

    monkeypatch.setattr("ragjax.shrinking.latency.forward_speed", forward_speed)
    made = shrink(model_of(TINY), Shrink(latency=0.7, multiple=2, what=("neurons", "layers"), **PLAIN))
    assert len(set(timed)) == len(timed) == len(made.report.timed)
    assert made.report.reached <= 0.7
    assert made.report.timed[sizes_of(made.model.config)] == made.report.reached


def test_a_shrunk_model_can_be_split_over_the_devices_it_was_meant_for(llama):
    small = shrink(
        llama, Shrink(params=0.7, tensor=2, multiple=4, what=("neurons", "width"), heads=4, **PLAIN)
    )
    check_divisible(small.model.config, AbstractMesh((1, 1, 2), ("data", "fsdp", "tensor")), batch_size=1)
    with pytest.raises(InputError, match=r"kv_heads 3 must be divisible by tensor 2"):
        shrink(llama, Shrink(mlp_width=8, tensor=2, **PLAIN))


def test_a_mesh_gives_the_same_model_and_one_that_it_can_split(llama):
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    asked = Shrink(params=0.7, tensor=2, multiple=4, what=("neurons", "heads", "layers"))
    alone = shrink(llama, asked, tokens=TOKENS)
    together = shrink(llama, replace(asked, tensor=1), tokens=TOKENS, mesh=mesh)
    assert together.model.config == alone.model.config
    check_divisible(together.model.config, mesh, batch_size=4)
    np.testing.assert_allclose(together.model(TOKENS), alone.model(TOKENS), rtol=1e-3, atol=1e-3)
    lies = jax.tree.map(lambda leaf: leaf.sharding, together.model.params)
    assert lies == shardings(together.model.params, mesh)
    # Six devices for the next one, of which three split each layer: both have to be able to.
    with pytest.raises(InputError, match=r"heads 4 must be divisible by tensor 6"):
        shrink(llama, replace(asked, params=None, what=(), heads=4, tensor=3), tokens=TOKENS, mesh=mesh)
    with pytest.raises(InputError, match=r"samples 3 must be divisible by mesh.data x mesh.fsdp = 4"):
        shrink(llama, asked, tokens=TOKENS[:3], mesh=mesh)


def test_history_tells_what_was_asked_for_and_reached():
    made = shrink(model_of(TINY), Shrink(mlp_width=8, layers=1), tokens=TOKENS)
    told = made.model.history[-1]
    assert json.loads(json.dumps(told)) == told | {"what": []}
    assert (told["did"], told["importance"], told["calibration_tokens"]) == ("shrink", "activation", 64)
    assert (told["before"]["mlp_width"], told["after"]["mlp_width"]) == (32, 8)
    assert told["after"]["parameters"] == parameter_count(made.model.config)
    (cut,), (refit,) = (told["output_errors"]["mlp/down"][name] for name in ("cut", "refit"))
    assert 0 < refit < cut


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "a budget .* or a size .* must be given"),
        ({"params": 0.5, "flops": 0.5}, "one budget, found params, flops"),
        ({"params": 1.5}, "params must lie between 0 and 1"),
        ({"layers": 2, "what": ("neurons",)}, "what says what a budget may shrink"),
        ({"params": 0.5, "width": 8, "what": ("width",)}, "width is given"),
        (
            {"layers": 0, "samples": 0, "calibration": ""},
            "samples must be at least 1(.|\n)*layers(.|\n)*calibration",
        ),
    ],
)
def test_configs_that_say_nothing_or_too_much_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Shrink(**fields)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(InputError, match=r"sequence_length 99 .* 16 positions(.|\n)*no tokenizer"):
        shrink(model_of(TINY), Shrink(layers=1, sequence_length=99))
    with pytest.raises(InputError, match="length 99 must not exceed the model's 16 positions"):
        shrink(model_of(TINY), Shrink(flops=0.5, length=99, **PLAIN))
    with pytest.raises(InputError, match="not even filled up"):
        shrink(model_of(TINY), Shrink(width=22, heads=6, **PLAIN))


def test_the_verb_writes_a_folder_and_says_what_came_of_it(tiny_byte_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))
    save(tiny_byte_model, tmp_path / "model")
    (tmp_path / "a.txt").write_text("Some words to be read and measured. " * 40)
    text, out = f"text:{tmp_path}/*.txt", tmp_path / "out"
    line = ["shrink", str(tmp_path / "model"), str(out), "--heads", "3", "--mlp-width", "20"]
    line += ["--calibration", text, "--samples", "4", "--sequence-length", "32", "--data", text]
    main(line)
    told = capsys.readouterr().out
    for said in (
        "neurons of a layer",
        "perplexity",
        "cut and refit, 2 of 2",
        "3 heads of 8",
        f"ragjax eval {out}",
    ):
        assert said in told
    before = ragjax.evaluate(tiny_byte_model, text).perplexity
    written = ragjax.load(out)
    assert (written.config.heads, written.config.mlp_width) == (4, 20)
    assert [entry["did"] for entry in written.history][-2:] == ["shrink", "pad heads"]
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*line[:2], str(tmp_path / "none"), "--layers", "1", *line[-8:-1], "text:/no/such"])
    assert "no file matches" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    main(
        [
            *line[:2],
            str(tmp_path / "other"),
            "--params",
            "0.7",
            "--no-compensate",
            "--importance",
            "random",
            "--mesh.data",
            "2",
            "--mesh.tensor",
            "2",
            "--data",
            text,
            "--json",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["reached"] == found["after"]["parameters"] / found["before"]["parameters"] <= 0.7
    assert found["written"] == found["after"]
    assert [found["after"][name] % 2 for name in ("heads", "mlp_width")] == [0, 0]
    assert found["perplexity"][0] == pytest.approx(before, rel=1e-4)
    assert found["stored_bytes"][1] < found["stored_bytes"][0]


def test_help_and_bad_configs_need_no_jax():
    script = (
        "import sys\nfrom ragjax.cli import main\n"
        "for given in (['shrink', '--help'], ['shrink', 'a', 'b'], ['shrink', 'a', 'b', '--params', '2']):\n"
        "    try: main(given)\n"
        "    except SystemExit as stopped: print(stopped.code)\n"
        "assert not {'jax', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-3:] == ["0", "2", "2"]
    assert "must be given" in done.stderr


def test_the_function_stays_a_function_after_its_module_is_imported():
    assert callable(ragjax.shrink)
    assert "shrink" in dir(ragjax)
