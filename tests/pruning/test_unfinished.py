"""Pruning that is stopped goes on where it was, and ends as if it had not been."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from ragjax.cli import main
from ragjax.config import Mesh, OneShot
from ragjax.errors import InputError
from ragjax.interchange import tensors
from ragjax.interchange.folder import load, save
from ragjax.interchange.tensors import open_weight_file, write_weight_file
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh
from ragjax.pruning.one_shot import prune
from ragjax.pruning.unfinished import Unfinished, beside, remove
from ragjax.sparsity.calibrated.methods import METHODS
from ragjax.sparsity.calibrated.stream import prune_blocks


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAGJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    """The words of a command that say by which text."""
    (tmp_path / "a.txt").write_text("Some words to be read with care, and some more of them. " * 40)
    return f"text:{tmp_path}/*.txt"


def config(text, **fields):
    return OneShot(
        **{
            "calibration": text,
            "samples": 4,
            "batch_size": 2,
            "sequence_length": 32,
            "sparsity": 0.5,
            **fields,
        }
    )


def stopped_after_a_block(model, asked, folder, mesh=None):
    def stop(figures):
        raise Stop

    with pytest.raises(Stop):
        prune(model, asked, mesh=mesh, unfinished=folder, progress=stop)


def same(found, expected):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), found, expected)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_ends_as_if_it_had_not_been_stopped(tiny_byte_model, text, tmp_path, method, dtype):
    params = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), tiny_byte_model.params)
    model = dataclasses.replace(tiny_byte_model, params=params)
    asked = config(text, method=method, budget="owl" if method in ("wanda", "alps") else "uniform")
    expected, whole = prune(model, asked)
    stopped_after_a_block(model, asked, tmp_path / "kept")

    told = []
    found, report = prune(model, asked, unfinished=tmp_path / "kept", progress=told.append)
    assert [figures.layer for figures in told] == [1]
    assert same(found.params, expected.params)
    assert report.sparsity == whole.sparsity
    for here, there in zip(report.layers, whole.layers, strict=True):
        assert (here.layer, here.error) == (there.layer, there.error)
        assert same(here.matrices, there.matrices)
    # And when all blocks are there nothing is pruned again.
    again, _ = prune(model, asked, unfinished=tmp_path / "kept", progress=lambda _: pytest.fail("pruned"))
    assert same(again.params, expected.params)


@pytest.mark.parametrize("kept", [2, 3])
@pytest.mark.parametrize("donate", [False, True])
def test_several_blocks_are_gone_on_from(text, byte_tokenizer, tmp_path, kept, donate):
    shape = DecoderConfig(vocab_size=257, positions=64, width=32, layers=3, heads=4, mlp_width=64)

    def model():
        # Donated, it is used up.
        return Model(shape, init_params(shape, seed=5), byte_tokenizer)

    asked, told = config(text, method="wanda"), []
    expected, _ = prune(model(), asked)

    def stop(figures):
        if figures.layer + 1 == kept:
            raise Stop

    with pytest.raises(Stop):
        prune(model(), asked, donate=donate, unfinished=tmp_path / "kept", progress=stop)
    found, report = prune(model(), asked, donate=donate, unfinished=tmp_path / "kept", progress=told.append)
    assert [figures.layer for figures in told] == list(range(kept, 3))
    assert [figures.layer for figures in report.layers] == [0, 1, 2]
    assert same(found.params, expected.params)
    # Nothing of the report holds a file of the folder.
    figures = [x for layer in report.layers[:kept] for x in jax.tree.leaves(layer.matrices)]
    assert all(not isinstance(x, np.ndarray) or x.base is None for x in figures)


def test_the_time_of_an_earlier_call_counts(tiny_byte_model, text, tmp_path):
    stopped_after_a_block(tiny_byte_model, config(text), tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob("block_*")
    kept = open_weight_file(file)
    arrays = {name: np.array(kept.read(name)) for name in kept.header}
    write_weight_file({**arrays, "seconds": np.asarray(1000.0)}, file, {})
    _, report = prune(tiny_byte_model, config(text), unfinished=tmp_path / "kept")
    assert 1000 < report.seconds < 2000
    assert report.layers[0].seconds == 1000 > report.layers[1].seconds


def test_a_mesh_goes_on_with_what_one_device_began(tiny_byte_model, text, tmp_path):
    asked = config(text, method="sparsegpt")
    expected, _ = prune(tiny_byte_model, asked)
    stopped_after_a_block(tiny_byte_model, asked, tmp_path / "kept")
    # Where more devices share the text, a microbatch is larger.
    mesh = make_mesh(Mesh(data=4, tensor=2), devices=jax.devices()[:8])
    found, _ = prune(tiny_byte_model, asked, mesh=mesh, unfinished=tmp_path / "kept")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found.params, expected.params)


def test_the_blocks_before_are_handed_on_as_they_were_pruned(tiny_byte_model, text, tmp_path, monkeypatch):
    """What the second block is given comes of the pruned first one, of every microbatch."""
    asked, given = config(text, method="wanda"), []
    change = prune_blocks.__globals__["change_block"]

    def watched(config, layer, params, hidden, *rest):
        given.append([np.array(x) for x in hidden])
        return change(config, layer, params, hidden, *rest)

    monkeypatch.setitem(prune_blocks.__globals__, "change_block", watched)
    prune(tiny_byte_model, asked)
    stopped_after_a_block(tiny_byte_model, asked, tmp_path / "kept")
    prune(tiny_byte_model, asked, unfinished=tmp_path / "kept")
    first, second, _, resumed = given
    assert len(resumed) == 2
    assert all((x != y).any() for x, y in zip(first, second, strict=True))
    assert all((x == y).all() for x, y in zip(second, resumed, strict=True))


def test_nothing_else_goes_on_from_it(tiny_byte_model, text, tmp_path):
    folder = tmp_path / "kept"
    stopped_after_a_block(tiny_byte_model, config(text), folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(
        InputError, match=r"(?s)begun otherwise.*method was 'wanda', is 'ria'.*seed was 0, is 1"
    ):
        prune(tiny_byte_model, config(text, method="ria", seed=1), unfinished=folder)
    changed = jax.tree.map(lambda x: x + 1e-6, tiny_byte_model.params)
    with pytest.raises(InputError, match="model was '"):
        prune(dataclasses.replace(tiny_byte_model, params=changed), config(text), unfinished=folder)
    (tmp_path / "a.txt").write_text("Other words that nobody has read before, of the same number. " * 40)
    with pytest.raises(InputError, match="text was '"):
        prune(tiny_byte_model, config(text), unfinished=folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_table_is_known_by_what_it_says(tiny_byte_model, text, tmp_path):
    table = tmp_path / "budget.json"
    table.write_text('{"layers/*/kernel": 0.5}')
    asked = config(text, budget="table", table=str(table))
    stopped_after_a_block(tiny_byte_model, asked, tmp_path / "kept")
    table.write_text('{"layers/*/kernel": 0.25}')
    with pytest.raises(InputError, match="table was"):
        prune(tiny_byte_model, asked, unfinished=tmp_path / "kept")


def test_a_folder_of_something_else_is_left_as_it_is(tiny_byte_model, text, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "precious").write_text("")
    with pytest.raises(InputError, match="holds something else than blocks"):
        prune(tiny_byte_model, config(text), unfinished=folder)
    assert [file.name for file in folder.iterdir()] == ["precious"]


def test_a_folder_that_holds_nothing_yet_is_taken(tiny_byte_model, text, tmp_path):
    (tmp_path / "new").mkdir()
    stopped_after_a_block(tiny_byte_model, config(text), tmp_path / "new")
    assert (tmp_path / "new" / "block_00000.safetensors").is_file()
    # As a call that was killed while it began leaves it.
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").write_text("")
    (tmp_path / "begun" / ".asked.json.0123abcd.partial").write_text("{")
    stopped_after_a_block(tiny_byte_model, config(text), tmp_path / "begun")
    assert (tmp_path / "begun" / "block_00000.safetensors").is_file()


def test_two_at_a_time_are_refused(tmp_path):
    with Unfinished(tmp_path / "kept", {"a": 1}) as first:
        first.keep(0, {"x": np.arange(3.0)})
        with pytest.raises(InputError, match="is in use by another run"):
            Unfinished(tmp_path / "kept", {"a": 1})
    with Unfinished(tmp_path / "kept", {"a": 1}) as second:
        assert second.done == 1


def test_what_stands_beside_the_blocks_stays(tmp_path):
    with Unfinished(tmp_path / "kept", {"a": 1}) as kept:
        kept.keep(0, {"x": np.arange(3.0)})
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    remove(tmp_path / "kept")
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["notes.txt"]


def test_what_was_not_written_to_its_end_does_not_count(tmp_path):
    with Unfinished(tmp_path / "kept", {"a": 1}) as kept:
        kept.keep(0, {"x": np.arange(3.0)})
    left = tmp_path / "kept" / ".block_00001.safetensors.0123abcd.partial"
    left.write_bytes(b"torn")
    (tmp_path / "kept" / "block_00002.safetensors").write_bytes(b"behind a gap")
    with Unfinished(tmp_path / "kept", {"a": 1}) as found:
        assert found.done == 1
        assert [block["x"].tolist() for block in found.blocks(dict)] == [[0, 1, 2]]
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on(tiny_byte_model, text, tmp_path, capsys, asking_to_stop, number):
    save(tiny_byte_model, tmp_path / "model")
    words = ["--calibration", text, "--samples", "4", "--sequence-length", "32", "--method", "sparsegpt"]
    main(["prune", str(tmp_path / "model"), str(tmp_path / "straight"), *words])
    capsys.readouterr()
    out = tmp_path / "out"
    with asking_to_stop(prune_blocks, "prune_block", number), pytest.raises(SystemExit) as stopped:
        main(["prune", str(tmp_path / "model"), str(out), *words])
    assert stopped.value.code == 75
    said = capsys.readouterr()
    assert f"1 of 2 blocks are kept in {beside(out)}. Go on with: the same command" in said.err
    assert "layer 1/2" in said.out
    assert not out.exists()

    main(["prune", str(tmp_path / "model"), str(out), *words])
    said = capsys.readouterr().out
    assert f"going on from {beside(out)}" in said
    assert "layer 1/2" not in said
    assert "layer 2/2" in said
    assert same(load(out).params, load(tmp_path / "straight").params)
    assert not beside(out).exists()


@pytest.fixture
def line(tiny_byte_model, text, tmp_path):
    """`prune MODEL OUT` with a short text, and OUT."""
    save(tiny_byte_model, tmp_path / "model")
    words = ["--calibration", text, "--samples", "4", "--sequence-length", "32"]
    return ["prune", str(tmp_path / "model"), str(tmp_path / "out"), *words], tmp_path / "out"


def test_asked_in_the_last_block_it_stops_before_it_is_measured(line, monkeypatch, capsys):
    given, out = line
    pruned, calls = prune_blocks.__globals__["prune_block"], []

    def late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return pruned(*args, **kwargs)

    monkeypatch.setitem(prune_blocks.__globals__, "prune_block", late)
    with pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 75
    assert f"2 of 2 blocks are kept in {beside(out)}" in capsys.readouterr().err
    assert not out.exists()
    main(given)
    assert load(out).config.layers == 2
    assert len(calls) == 2
    assert not beside(out).exists()


@pytest.mark.parametrize("before", ["drawn_text", "dense_norms", "pass_block"])
def test_where_no_block_is_at_hand_it_ends_at_once(line, monkeypatch, asking_to_stop, capsys, before):
    given, out = [*line[0], "--budget", "owl"], line[1]
    if before == "pass_block":
        with asking_to_stop(prune_blocks, "prune_block"), pytest.raises(SystemExit):
            main(given)
        capsys.readouterr()
    caller = prune_blocks if before == "pass_block" else prune
    monkeypatch.setitem(prune_blocks.__globals__, "prune_block", lambda *_, **__: pytest.fail("went on"))
    with asking_to_stop(caller, before, signal.SIGINT), pytest.raises(SystemExit) as stopped:
        main(given)
    assert stopped.value.code == 130
    assert "stopped at once" in capsys.readouterr().err
    assert beside(out).exists() == (before == "pass_block")


def test_a_full_disk_is_one_message_and_what_is_done_is_kept(line, monkeypatch, refused):
    given, out = line
    saved, calls = tensors.save_file, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        return saved(*args, **kwargs)

    monkeypatch.setattr(tensors, "save_file", full)
    told = refused(*given)
    assert "free some space and run it again; what is done is kept" in told
    assert [file.name for file in beside(out).glob("block_*")] == ["block_00000.safetensors"]
    main(given)
    assert load(out).config.layers == 2
