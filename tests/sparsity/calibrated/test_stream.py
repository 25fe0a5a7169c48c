"""A model pruned as its blocks go by, against the same written out plainly, without a stream."""

import gc
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ragjax.config import Mesh
from ragjax.models.activations import ACTIVATIONS
from ragjax.models.attention import attend, causal_mask
from ragjax.models.blockwise import layer_of, next_hidden
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.norm import Norm
from ragjax.models.rotary import angles, rotate
from ragjax.models.run import apply, run_decoder
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.sparsity.calibrated import changed_block, methods
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.calibrated.methods import How, prune_matrices
from ragjax.sparsity.calibrated.stream import dense_norms, prune_blocks

pytestmark = pytest.mark.usefixtures("quick_collections")
SIZES = {"positions": 12, "width": 16, "heads": 4, "mlp_width": 24}
GPT2 = DecoderConfig(vocab_size=50, layers=3, initializer_range=0.3, **SIZES)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 4, 12))
ALL = TOKENS.reshape(12, 12)


def kernels_of(params):
    return {n: np.asarray(x) for n, x in flatten_dict(params, sep="/").items() if n.endswith("kernel")
            and n.startswith("layers/")}  # fmt: skip


def everywhere(params, sparsity):
    return {name: np.full(len(kernel), sparsity) for name, kernel in kernels_of(params).items()}


@partial(jax.jit, static_argnums=(0, 2))
def plain_block(config, block, layer, x):
    """The block written out: what each matrix is given, and the residual stream after it."""
    inputs = {}

    def linear(module, name, given):
        inputs[f"{module}/{name}/kernel"] = given
        made = given @ block[module][name]["kernel"]
        return made + block[module][name].get("bias", 0)

    def norm(name, given):
        return apply(Norm(config), block[name], given)

    def attention(given):
        order = jnp.arange(x.shape[1])[None]
        heads = {
            name: linear("attention", name, given).reshape(*x.shape[:2], -1, config.head_width)
            for name in ("query", "key", "value")
        }
        if config.rotary:
            turn = angles(order, config.rotary, config.head_width)
            heads |= {name: rotate(heads[name], turn) for name in ("query", "key")}
        out = attend(**heads, mask=causal_mask(order, order), scale=config.attention_scales[layer])
        return linear("attention", "out", out.reshape(*x.shape[:2], -1))

    def mlp(given):
        active = ACTIVATIONS[config.activation]
        up = linear("mlp", "up", given)
        middle = active(linear("mlp", "gate", given)) * up if config.gated else active(up)
        return linear("mlp", "down", middle)

    if config.residual == "parallel":
        return inputs, x + attention(norm("attention_norm", x)) + mlp(norm("mlp_norm", x))
    if config.residual == "post_norm":
        x = norm("attention_norm", x + attention(x))
        return inputs, norm("mlp_norm", x + mlp(x))
    x = x + attention(norm("attention_norm", x))
    return inputs, x + mlp(norm("mlp_norm", x))


def plain_wanda(config, params, sparsity, *, from_pruned=True):
    """Wanda as its paper tells it: prune a block, compute its outputs again, go on with those."""
    pruned = {name: np.array(kernel) for name, kernel in kernels_of(params).items()}
    table = params["embedding"]
    hidden = table["tokens"][ALL]
    if config.embedding_width:
        hidden = hidden @ table["projection"]["kernel"]
    if config.learned_positions:
        hidden = hidden + table["positions"][config.position_offset :][: ALL.shape[1]]
    for layer in range(config.layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        inputs, dense = plain_block(config, block, layer, hidden)
        for name, given in inputs.items():
            x = np.asarray(given, np.float64).reshape(-1, given.shape[-1])
            kernel = pruned[f"layers/{name}"][layer]
            metric = np.abs(kernel.T.astype(np.float64)) * np.sqrt((x**2).sum(0))
            for row, scores in enumerate(metric):
                kernel[np.argsort(scores, kind="stable")[: round(len(scores) * sparsity)], row] = 0
            module, part, _ = name.split("/")
            block[module][part] = {**block[module][part], "kernel": jnp.asarray(kernel)}
        hidden = plain_block(config, block, layer, hidden)[1] if from_pruned else dense
    return pruned


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt-350m"])
def test_the_stream_is_wanda_written_out_plainly(kind, of_kind, random_model):
    config = of_kind(kind, **SIZES)
    params = random_model(config, seed=1).params
    pruned, figures = prune_blocks(
        config, params, Calibration(TOKENS), everywhere(params, 0.5), method="wanda", how=How("row")
    )
    expected = plain_wanda(config, params, 0.5)
    found = kernels_of(pruned)
    assert found.keys() == expected.keys()
    for kernel in expected:
        np.testing.assert_array_equal(found[kernel], expected[kernel], err_msg=kernel)
    # Of a stream of the dense blocks' outputs other weights would have gone.
    astray = plain_wanda(config, params, 0.5, from_pruned=False)
    assert any((astray[kernel] != expected[kernel]).any() for kernel in expected)
    assert [each.layer for each in figures] == [0, 1, 2]
    assert figures[0].matrices.keys() == expected.keys()


def test_what_may_not_be_pruned_is_left_bit_for_bit_and_the_dense_model_as_it_was(random_model):
    params = random_model(GPT2, seed=1).params
    before = jax.tree.map(np.array, params)
    some = {"layers/mlp/up/kernel": np.array([0.2, 0.5, 0.8])}
    pruned, figures = prune_blocks(GPT2, params, Calibration(TOKENS), some, method="magnitude", how=How())
    jax.tree.map(np.testing.assert_array_equal, params, before)
    flat, dense = flatten_dict(pruned, sep="/"), flatten_dict(params, sep="/")
    assert flat.keys() == dense.keys()
    assert all(flat[name] is dense[name] for name in flat if name not in some)
    zeros = (np.asarray(flat["layers/mlp/up/kernel"]) == 0).sum((1, 2))
    np.testing.assert_array_equal(zeros, np.rint(16 * 24 * some["layers/mlp/up/kernel"]))
    for layer, each in enumerate(figures):
        assert each.matrices.keys() == some.keys()
        share = zeros[layer] / (16 * 24)
        assert each.matrices["layers/mlp/up/kernel"].sparsity == pytest.approx(share)


def test_parameters_stay_where_they_are(random_model):
    params = random_model(GPT2, seed=1).params
    asked = everywhere(params, 0.5)
    on_host = jax.tree.map(np.array, params)
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    spread = place(params, mesh)
    results = [
        prune_blocks(GPT2, given, Calibration(TOKENS, over), asked, method="magnitude", how=How())[0]
        for given, over in ((params, None), (on_host, None), (spread, mesh))
    ]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(results[0]))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(results[1]))
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x.sharding == y.sharding, results[2], spread)))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])


@pytest.mark.parametrize("method", ["wanda", "ria"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_masks_on_a_mesh_are_those_of_one_device(method, kind, of_kind, random_model):
    config = of_kind(kind, **SIZES)
    params = random_model(config, seed=1).params
    asked, how = everywhere(params, 0.5), How("row")
    mesh = make_mesh(Mesh(data=2, fsdp=2, tensor=2))
    alone, one = prune_blocks(config, params, Calibration(TOKENS), asked, method=method, how=how)
    together, many = prune_blocks(config, params, Calibration(TOKENS, mesh), asked, method=method, how=how)
    for kernel, values in kernels_of(together).items():
        np.testing.assert_array_equal(values, kernels_of(alone)[kernel])
    np.testing.assert_allclose([f.error for f in many], [f.error for f in one], rtol=1e-4)


def test_all_blocks_are_pruned_by_the_same_programs_whatever_their_budgets(random_model):
    params = random_model(GPT2, seed=1).params
    asked = {name: np.linspace(0.1, 0.9, 3) for name in everywhere(params, 0)}
    programs = (prune_matrices, changed_block.gather, changed_block.next_hidden_in_place)
    before = [program._cache_size() for program in programs]
    how = How("tensor", m=77)
    pruned, _ = prune_blocks(GPT2, params, Calibration(TOKENS[:, :2]), asked, method="wanda", how=how)
    new = [program._cache_size() - old for program, old in zip(programs, before, strict=True)]
    assert new == [4, 1, 1]  # a program for each group of matrices that read the same
    for name, kernel in kernels_of(pruned).items():
        expected = np.rint(np.prod(kernel.shape[1:]) * asked[name])
        np.testing.assert_array_equal((kernel == 0).sum((1, 2)), expected)


def test_what_was_pruned_is_pruned_again_by_the_same_programs(random_model, caplog):
    config = DecoderConfig(vocab_size=50, layers=2, positions=12, width=36, heads=4, mlp_width=43)
    params = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), random_model(config).params)
    half, compiled = {name: np.full(2, 0.5) for name in everywhere(params, 0)}, []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles():
            params, _ = prune_blocks(
                config, params, Calibration(TOKENS), half, method="wanda", how=How("row"), donate=True
            )
        compiled.append([r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()])
    shapes = sum("_replaced" in message for message in compiled[0])
    assert shapes == 3  # square, wide and tall, of the first layer and of the second
    assert compiled[1] == []


def test_random_scores_differ_by_layer_and_by_seed(random_model):
    params = random_model(GPT2, seed=1).params
    asked = everywhere(params, 0.5)
    masks = [
        kernels_of(
            prune_blocks(GPT2, params, Calibration(TOKENS), asked, method="random", how=How(), seed=seed)[0]
        )["layers/mlp/up/kernel"] != 0
        for seed in (0, 0, 1)
    ]  # fmt: skip
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert (masks[0][0] != masks[0][1]).any()


def test_norms_of_the_dense_model_are_those_of_its_inputs(of_kind, random_model):
    config = of_kind("opt-350m", **SIZES)
    params = random_model(config, seed=1).params
    names = ("layers/mlp/down/kernel", "layers/attention/query/kernel")
    norms = dense_norms(config, params, names, Calibration(TOKENS))
    before = run_decoder(config, params, ALL, capture=True).layers
    for layer in (1, 2):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        inputs, _ = plain_block(config, block, layer, before[layer - 1])
        for name in names:
            x = np.asarray(inputs[name.removeprefix("layers/")], np.float64)
            np.testing.assert_allclose(norms[name][layer], np.sqrt((x**2).sum((0, 1))), rtol=1e-4)


def test_the_error_of_a_block_is_what_pruning_changes_of_what_it_adds(random_model):
    params = random_model(GPT2, seed=1).params
    told = []
    _, figures = prune_blocks(
        GPT2, params, Calibration(TOKENS), everywhere(params, 0.5), method="magnitude", how=How(),
        progress=told.append,
    )  # fmt: skip
    assert told == figures
    pruned, _ = prune_blocks(
        GPT2, params, Calibration(TOKENS), everywhere(params, 0.5), method="magnitude", how=How()
    )
    first = TOKENS[0]
    hidden = params["embedding"]["tokens"][first] + params["embedding"]["positions"][:12]
    dense, sparse = (
        plain_block(GPT2, jax.tree.map(lambda leaf: leaf[0], p["layers"]), 0, hidden)[1]
        for p in (params, pruned)
    )
    expected = np.linalg.norm(sparse - dense) / np.linalg.norm(dense - hidden)
    assert figures[0].error == pytest.approx(expected, rel=1e-4)
    assert all(0 < each.error < 2 and each.seconds > 0 for each in figures)


def test_on_cpu_a_stream_is_gone_before_the_next_is_made(random_model, monkeypatch):
    params = random_model(GPT2, seed=1).params
    place, run = changed_block.on_device, changed_block.next_hidden_in_place
    streams: dict[int, weakref.ref] = {}
    living = []

    def placed(x, mesh):
        streams[id(x)] = weakref.ref(x)
        return place(x, mesh)

    def watched(*given, **options):
        gc.collect()
        living.append(sum(stream() is not None for stream in streams.values()))
        return run(*given, **options)

    monkeypatch.setattr(changed_block, "on_device", placed)
    monkeypatch.setattr(changed_block, "next_hidden_in_place", watched)
    half = everywhere(params, 0.5)
    prune_blocks(GPT2, params, Calibration(TOKENS), half, method="wanda", how=How())
    assert living == [3, 2, 1, 3, 2, 1, 3]  # of those that a block is given


def test_a_stream_is_overwritten_with_the_next(random_model):
    block = jax.tree.map(lambda leaf: leaf[0], random_model(GPT2, seed=1).params["layers"])
    given = jax.random.normal(jax.random.key(0), (4, 12, 16))
    expected = next_hidden(block, layer_of(GPT2, 0), given, config=GPT2)
    found = changed_block.next_hidden_in_place(block, layer_of(GPT2, 0), given, config=GPT2)
    assert given.is_deleted()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mesh", [None, Mesh(data=2)])
def test_where_programs_run_beside_their_caller_the_streams_are_the_same(mesh, random_model, monkeypatch):
    params = random_model(GPT2, seed=1).params
    half = everywhere(params, 0.5)
    devices = mesh and make_mesh(mesh, jax.devices()[:2])
    run = partial(prune_blocks, GPT2, params, Calibration(TOKENS, devices), half, method="wanda", how=How())
    in_turn, of_all = run()
    monkeypatch.setattr(changed_block, "on_cpu", lambda made: False)
    beside, figures = run()
    jax.tree.map(np.testing.assert_array_equal, beside, in_turn)
    assert [each.error for each in figures] == [each.error for each in of_all]


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_of_the_weights_one_block_lives_and_no_dense_one_beside_the_pruned(
    method, donate, random_model, monkeypatch
):
    config = DecoderConfig(vocab_size=50, layers=3, positions=12, width=28, heads=4, mlp_width=41)
    params, living = random_model(config).params, []

    def of_the_block():
        gc.collect()
        shapes = [x.shape for x in jax.live_arrays()]
        return shapes.count((28, 41)), shapes.count((28, 28))

    def watched(name):
        program = getattr(changed_block, name)

        def call(*arguments, **options):
            wide, square = of_the_block()
            living.append((name, wide - before[0], square - before[1]))
            return program(*arguments, **options)

        monkeypatch.setattr(changed_block, name, call)

    before = of_the_block()
    watched("gather")
    watched("next_hidden_in_place")
    half, calibration = everywhere(params, 0.5), Calibration(TOKENS)
    prune_blocks(config, params, calibration, half, method=method, how=How("row"), donate=donate)
    grams = 3 if method == "sparsegpt" else 0
    expected = [("gather", 1, 4 + grams)] * 2 + [("next_hidden_in_place", 1, 4)] * 3
    assert living == expected * 2 + expected[:3]


def test_on_cpu_no_program_is_called_ahead(random_model, monkeypatch):
    running, called = [], []

    def watched(module, name):
        program = getattr(module, name)

        def call(*arguments, **options):
            called.append((name, [*running]))
            running.append(name)
            return program(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    def wait(made):
        if jax.tree.leaves(made):
            running.clear()
        return ready(made)

    def measured(*arguments):  # its result is a number on the host
        running.clear()
        return error(*arguments)

    ready, error = jax.block_until_ready, changed_block._distance
    for name in ("gather_and_run", "gather", "completed", "next_hidden_in_place"):
        watched(changed_block, name)
    watched(methods, "prune_matrices")
    monkeypatch.setattr(jax, "block_until_ready", wait)
    monkeypatch.setattr(changed_block, "_distance", measured)
    params = random_model(GPT2).params
    prune_blocks(
        GPT2, params, Calibration(TOKENS), everywhere(params, 0.5), method="sparsegpt", how=How("row")
    )
    assert sum(name == "prune_matrices" for name, _ in called) == 3 * 4  # of what reads the same one each
    assert len(called) == 8 + 8 + 3 + 3 * 4
    assert all(ahead == [] for _, ahead in called), called
