import gc
import mmap
import re
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Mesh, Quantize
from ragjax.generation import decoding, generate_tokens, network
from ragjax.generation.decoding import Settings, decode, extend, fed, prefill
from ragjax.generation.network import laid_out
from ragjax.kernels.rounded import activation_serves, quads_serve
from ragjax.model import Model
from ragjax.models.decoder import JOINT, Final, init_params
from ragjax.models.key_values import KeyValues, empty_buffer
from ragjax.models.linear import ACTIVE
from ragjax.models.norm import IN_PRODUCT
from ragjax.models.panels import PanelKernel, PanelTable
from ragjax.models.run import apply, run_decoder
from ragjax.models.stand_ins import has_stand_ins, made_whole
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place
from ragjax.quantizing import quantize

pytestmark = pytest.mark.usefixtures("quick_collections")
PROMPTS = [[5], [7, 8, 9, 10, 11], [20, 3, 29]]


@pytest.fixture
def no_panels(monkeypatch):
    monkeypatch.setattr(network, "kernels_serve", lambda: False)


def made(config, seed=0):
    return init_params(config, seed)


@pytest.fixture
def apart(monkeypatch):
    """Queries, keys and values of products of their own."""
    monkeypatch.setattr(network, "_joined", lambda attention: attention)
    network._layer_in_panels.clear_cache()
    yield
    network._layer_in_panels.clear_cache()


def test_matrices_and_the_table_stand_in_panels(of_kind, kind, apart):
    config = of_kind(kind)
    params = made(config)
    laid = laid_out(params, config=config)
    assert isinstance(laid.params["head"], PanelTable)
    for i, layer in enumerate(laid.layers):
        assert isinstance(layer["attention"]["query"]["kernel"], PanelKernel)
        whole = made_whole(layer)
        jax.tree.map(
            np.testing.assert_array_equal, whole, jax.tree.map(lambda x, i=i: x[i], params["layers"])
        )
    # Without the rows that fill up the vocabulary.
    table = params["embedding"]["tokens"] if config.tied else params["head"]
    expected = params | {"head": table[: config.vocab_size]}
    rest, expected = ({n: v for n, v in each.items() if n != "layers"} for each in (laid.params, expected))
    jax.tree.map(np.testing.assert_array_equal, made_whole(rest), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_queries_keys_and_values_come_of_one_product(tiny_config, bias):
    config = replace(tiny_config, head_size=32, kv_heads=2, attention_bias=bias)
    params = made(config)
    if bias:
        for number, name in enumerate(JOINT):
            params["layers"]["attention"][name]["bias"] += number + 1
    for i, layer in enumerate(laid_out(params, config=config).layers):
        joint = made_whole(layer["attention"]["joint"])
        assert layer["attention"].keys() == {"joint", "out"}
        for part in joint:
            each = [params["layers"]["attention"][name][part][i] for name in JOINT]
            np.testing.assert_array_equal(joint[part], np.concatenate(each, axis=-1))
        assert ("bias" in joint) == bias


def test_tokens_of_one_product_are_those_of_plain_products(tiny_config, monkeypatch):
    config = replace(tiny_config, head_size=32, kv_heads=2)
    options = {"max_new_tokens": 9, "stop_at_eos": False}
    together = generate_tokens(Model(config, made(config)), PROMPTS, **options)
    monkeypatch.setattr(network, "kernels_serve", lambda: False)
    plain = generate_tokens(Model(config, made(config)), PROMPTS, **options)
    jax.tree.map(np.testing.assert_array_equal, together, plain)


def test_tokens_are_those_of_the_plain_products(of_kind, kind, monkeypatch):
    model = Model(of_kind(kind), made(of_kind(kind)))
    options = {"max_new_tokens": 9, "stop_at_eos": False}
    found = [generate_tokens(model, PROMPTS, **options), generate_tokens(model, PROMPTS, beams=3, **options)]
    monkeypatch.setattr(network, "kernels_serve", lambda: False)
    plain = [generate_tokens(model, PROMPTS, **options), generate_tokens(model, PROMPTS, beams=3, **options)]
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_panels_are_made_once_and_go_with_the_model(tiny_config):
    gc.collect()
    before = len(network._KEPT)
    params = made(tiny_config, 5)
    first, again = laid_out(params, config=tiny_config), laid_out(params, config=tiny_config)
    kernels = [each.layers[0]["mlp"]["up"]["kernel"].panels for each in (first, again)]
    assert kernels[0] is kernels[1]
    assert len(network._KEPT) == before + 1

    changed = params | {"final_norm": jax.tree.map(lambda x: x + 1, params["final_norm"])}
    other = laid_out(changed, config=tiny_config)
    np.testing.assert_array_equal(other.params["final_norm"]["scale"], changed["final_norm"]["scale"])
    assert len(network._KEPT) == before + 2

    del first, again, kernels, other, params, changed
    gc.collect()
    assert len(network._KEPT) == before


def test_in_a_program_panels_are_made_anew_and_not_kept(tiny_config):
    gc.collect()
    before = len(network._KEPT)
    params = made(tiny_config, 6)

    def inside(params):
        return laid_out(params, config=tiny_config).layers[1]["mlp"]["up"]["kernel"].whole()

    for made_inside in (jax.jit(inside)(params), jax.jit(lambda: inside(params))()):
        np.testing.assert_array_equal(made_inside, params["layers"]["mlp"]["up"]["kernel"][1])
    jax.eval_shape(lambda: inside(params))
    assert len(network._KEPT) == before


def test_arrays_that_may_change_in_place_are_laid_out_each_time(tiny_config):
    params = jax.tree.map(np.array, made(tiny_config, 7))
    gc.collect()
    before = len(network._KEPT)
    first = laid_out(params, config=tiny_config).layers[0]["mlp"]["up"]["kernel"].whole()
    params["layers"]["mlp"]["up"]["kernel"] *= 2
    np.testing.assert_array_equal(
        laid_out(params, config=tiny_config).layers[0]["mlp"]["up"]["kernel"].whole(), 2 * first
    )
    assert len(network._KEPT) == before


def test_the_same_arrays_in_another_config_have_panels_of_their_own(tiny_config):
    params = made(tiny_config, 8)
    assert len(laid_out(params, config=tiny_config).layers) == 3
    assert len(laid_out(params, config=replace(tiny_config, layers=2)).layers) == 2


def test_threads_that_come_at_once_share_panels(tiny_config, monkeypatch):
    params, made_by, panels = made(tiny_config, 10), [], network._panels
    both = threading.Barrier(2)

    def slow(params, config):
        made_by.append(threading.get_ident())
        time.sleep(0.2)
        return panels(params, config)

    def lay():
        both.wait()
        return laid_out(params, config=tiny_config)

    monkeypatch.setattr(network, "_panels", slow)
    with ThreadPoolExecutor(2) as threads:
        first, second = (each.result() for each in [threads.submit(lay) for _ in range(2)])
    assert len(made_by) == 1
    assert first.layers[0]["mlp"]["up"]["kernel"].panels is second.layers[0]["mlp"]["up"]["kernel"].panels


def test_what_forgets_panels_goes_with_them(tiny_config):
    params = made(tiny_config, 9)
    registered = len(weakref.finalize._registry)
    for _ in range(3):
        params["final_norm"] = jax.tree.map(lambda x: x + 1, params["final_norm"])
        laid_out(params, config=tiny_config)
        gc.collect()
    assert len(weakref.finalize._registry) <= registered + len(jax.tree.leaves(params))


@pytest.mark.usefixtures("no_panels")
def test_where_panels_do_not_serve_layers_are_arrays(tiny_config):
    assert not has_stand_ins(laid_out(made(tiny_config), config=tiny_config).layers)


def calls_of_a_step(params, config):
    """How many calls of each kind the program has that writes tokens."""
    laid = laid_out(params, config=config)
    settings = Settings(jnp.float32(0), jax.random.key(0), jnp.array([-1]))
    given = jnp.array([[5, 6], [7, 8]]), jnp.zeros(2, jnp.int32), settings
    state = prefill(laid.params, *given, config=config, room=8)
    assert len(jax.tree.leaves(laid.for_steps)) < len(jax.tree.leaves(laid))
    decode.clear_cache()
    program = decode.lower(*laid.for_steps, state, jnp.int32(8), settings, config=config).as_text()
    decode.clear_cache()
    return Counter(re.findall(r"custom_call @ragjax_([a-z]+)_", program))


@pytest.fixture
def one_by_one(monkeypatch):
    """Each kernel is a call."""
    monkeypatch.setattr(decoding, "chained", lambda function, *given: function(*given))


@pytest.mark.usefixtures("one_by_one")
def test_a_step_multiplies_and_attends_by_the_kernels(tiny_config):
    calls = calls_of_a_step(made(tiny_config), tiny_config)
    layers = tiny_config.layers
    assert (calls["attend"], calls["panels"]) == (layers, 4 * layers + 1)
    assert "chain" not in calls


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_a_step_of_small_integers_is_one_call_but_for_the_choice(tiny_config):
    params = quantize(
        Model(tiny_config, made(tiny_config)), Quantize(scheme="int8", tables="int8")
    ).model.params
    calls = calls_of_a_step(params, tiny_config)
    assert calls["chain"] == 1
    assert set(calls) == {"chain", "first"}


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_kernels_say_the_same_in_one_call_and_one_by_one(of_kind, kind, scheme, new, monkeypatch):
    config = of_kind(kind, initializer_range=0.15, width=32, head_size=32, mlp_width=64)
    params = made(config)
    if scheme:
        params = quantize(
            Model(config, params),
            Quantize(scheme=scheme, group=32 if scheme == "int4" else None, tables="int8"),
        ).model.params
    laid = laid_out(params, config=config)
    shape, padding = (2, config.key_value_heads, 8, config.head_width), jnp.array([0, 1], jnp.int32)
    draw = np.random.default_rng(0)
    cache = tuple(
        KeyValues(*(jnp.asarray(draw.standard_normal(shape), jnp.float32) for _ in range(2)))
        for _ in range(config.layers)
    )
    tokens = draw.integers(0, 50, (2, new)).astype(np.int32)

    def said():
        step = jax.jit(lambda laid, cache: fed(*laid, cache, tokens, padding, jnp.int32(4), config=config))
        return step(laid, cache)

    together = said()
    monkeypatch.setattr(decoding, "chained", lambda function, *given: function(*given))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), together, said())


def test_no_panels_on_a_mesh(tiny_config):
    mesh = make_mesh(Mesh(tensor=2), jax.devices()[:2])
    with jax.set_mesh(mesh):
        params = place(made(tiny_config), mesh)
        assert not has_stand_ins(tuple(laid_out(params, config=tiny_config, mesh=mesh)))


def test_no_panels_of_other_types(tiny_config):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), made(tiny_config))
    assert not has_stand_ins(tuple(laid_out(params, config=tiny_config)))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")
def test_all_panels_lie_together_in_memory(of_kind):
    laid = laid_out(made(of_kind("gpt2")), config=of_kind("gpt2"))
    places = sorted(
        (leaf.unsafe_buffer_pointer(), leaf.nbytes)
        for leaf in jax.tree.leaves((laid.layers, laid.params["head"]))
    )
    gaps = [after - (place + size) for (place, size), (after, _) in pairwise(places)]
    assert all(0 <= gap < 64 for gap in gaps)


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_norms_are_the_beginning_of_the_one_product_that_reads_them(of_kind, kind):
    config = of_kind(kind, width=32, head_size=32)
    model = quantize(Model(config, made(config)), Quantize(scheme="int8", tables="int8")).model
    in_products = {}
    for layer in laid_out(model.params, config=config).layers:
        for name, (module, *part) in {"attention_norm": ("attention", "joint"), "mlp_norm": ("mlp",)}.items():
            reader = layer[module]
            for key in part:
                reader = reader.get(key, {})
            begins = ACTIVE in reader and reader[ACTIVE].norm is not None
            assert begins == (layer[name] == {IN_PRODUCT: ()})
            in_products.setdefault(name, set()).add(begins)
    before = config.residual != "post_norm"
    assert in_products["mlp_norm"] == {before and not config.gated and activation_serves(config.activation)}
    assert in_products["attention_norm"] == {before}


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_a_text_fed_token_by_token_says_what_it_says_as_a_whole(of_kind, kind, scheme):
    # Rows that may be read by products that begin in a norm.
    config = of_kind(kind, initializer_range=0.15, width=32, head_size=32)
    params = made(config)
    if scheme:
        params = quantize(Model(config, params), Quantize(scheme=scheme)).model.params
    tokens = np.random.default_rng(0).integers(0, 50, (2, 7)).astype(np.int32)
    expected = run_decoder(config, made_whole(params), tokens).hidden
    laid = laid_out(params, config=config)
    shape, padding = (2, config.key_value_heads, 8, config.head_width), jnp.zeros(2, jnp.int32)
    cache = tuple(
        KeyValues(*(empty_buffer(shape, jnp.float32) for _ in range(2))) for _ in range(config.layers)
    )
    for i, given in enumerate(tokens.T):
        hidden, cache = extend(
            laid.params, laid.layers, cache, given[:, None], padding, jnp.int32(i), config=config
        )
        said = apply(Final(config), laid.params, hidden[:, 0])
        np.testing.assert_allclose(said, expected[:, i], rtol=1e-3, atol=2e-4 if scheme else 2e-5)
