from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.generation import generate_tokens, network
from ragjax.generation.network import laid_out
from ragjax.kernels import rounded
from ragjax.kernels.machine import vectors
from ragjax.kernels.norm import RowNorm
from ragjax.kernels.panels import groups_serve
from ragjax.kernels.panels_text import panel_width
from ragjax.kernels.rounded import quads_serve
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.norm import norm_in_step
from ragjax.models.panels import Activating, PanelTable, panel_kernel
from ragjax.models.stand_ins import Kernel, Table
from ragjax.quantization import panels
from ragjax.quantization.panels import ActiveQuantized, GroupPanels, PanelQuantized, panel_quantized
from ragjax.quantization.quantized import Quantized, quantized
from ragjax.quantization.scheme import SCHEMES, Scheme
from ragjax.quantization.table import quantized_table

INTEGERS = pytest.param(
    "int8_activations", marks=pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
)
GROUPS = pytest.param("int4", marks=pytest.mark.skipif(not groups_serve(), reason="needs F16C or NEON"))
KINDS = {"int8": PanelQuantized, "int8_activations": PanelQuantized, "int4": GroupPanels}


def layer(scheme, inputs=64, outputs=70, scaled=False):
    """One layer's kernel, as a scan or a loop over layers has it."""
    rng = np.random.default_rng(0)
    made = quantized(rng.standard_normal((1, inputs, outputs)).astype(np.float32), scheme)
    if scaled:
        made = replace(made, input_scale=rng.uniform(0.5, 2, (1, inputs)).astype(np.float32))
    return jax.tree.map(lambda x: x[0], made)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["int8", INTEGERS, GROUPS])
def test_in_panels_a_kernel_is_what_it_was(name, scaled):
    held = layer(SCHEMES[name], scaled=scaled)
    laid = held.in_panels()
    assert isinstance(laid, KINDS[name])
    assert isinstance(laid, Kernel)
    assert not isinstance(laid, Table)
    assert laid.in_panels() is laid
    assert (laid.shape, laid.size) == (held.shape, held.size)
    np.testing.assert_array_equal(laid.whole(), held.whole())
    np.testing.assert_array_equal(laid.nonzero(), held.nonzero())


@pytest.mark.parametrize("lead", [(), (5,), (2, 9)])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["int8", INTEGERS, GROUPS])
def test_products_are_those_of_xla(name, scaled, lead):
    held = layer(SCHEMES[name], scaled=scaled)
    x = np.random.default_rng(1).standard_normal((*lead, 64)).astype(np.float32)
    found, expected = held.in_panels().multiply(x), held.multiply(x)
    assert found.shape == expected.shape
    # Integers add up exactly; of a token that is 0 throughout as well.
    bound = rounding(held, x) if name == "int8" else 0
    np.testing.assert_array_less(
        np.abs(found - expected), bound + 2e-5 + (name == "int8_activations") * 1e-6 * np.abs(expected)
    )
    np.testing.assert_array_equal(held.in_panels().multiply(0 * x), 0 * expected)


def rounding(held, x):
    """What a product may be off where each input is, by half of the 32,767th part of a token's largest."""
    if not quads_serve():
        return 0
    scale = 1 if held.input_scale is None else held.input_scale
    half = np.abs(x / scale).max(-1, keepdims=True) / 32767 / 2
    return half * (np.abs(held.whole()) * np.broadcast_to(scale, 64)[:, None]).sum(0)


@pytest.mark.parametrize("name", ["int8", INTEGERS, GROUPS])
def test_kernels_stand_beside_each_other_where_they_fill_up_their_panels(name):
    width, scheme = panel_width(vectors()), SCHEMES[name]
    first, second = (layer(scheme, outputs=size * width).in_panels() for size in (1, 3))
    together = first.beside([second])
    assert together.shape == (64, 4 * width)
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    for found, parts in (
        (together.whole(), [first.whole(), second.whole()]),
        (together.multiply(x), [first.multiply(x), second.multiply(x)]),
    ):
        np.testing.assert_array_equal(found, np.concatenate(parts, axis=1))
    assert first.beside([layer(scheme, outputs=width + 1).in_panels()]) is None
    assert first.beside([layer(scheme, outputs=width, scaled=True).in_panels()]) is None


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_kernels_whose_inputs_become_other_integers_stand_apart():
    first, second = (
        layer(SCHEMES[name], outputs=panel_width(vectors())).in_panels()
        for name in ("int8", "int8_activations")
    )
    assert first.beside([second]) is None


@pytest.mark.parametrize("scaled", [False, True])
def test_inputs_stay_floats_where_no_instruction_multiplies_integers(scaled, monkeypatch):
    monkeypatch.setattr(rounded, "quads_serve", lambda: False)
    held = layer(SCHEMES["int8"], scaled=scaled)
    laid = held.in_panels()
    assert laid.input_bits == 0
    np.testing.assert_array_equal(laid.whole(), held.whole())
    np.testing.assert_array_equal(laid.nonzero(), held.nonzero())
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    np.testing.assert_allclose(laid.multiply(x), held.multiply(x), atol=2e-5)
    table = quantized_table(x.T[:, :4])
    np.testing.assert_array_equal(table.in_panels().rows(np.array([63, 2])), table.rows(np.array([63, 2])))


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_sums_there_are_do_not_overflow(bits):
    codes = np.full((65_536, 3), 127, np.int8)
    codes[:, 1], codes[::2, 2] = -127, 0
    laid = panel_quantized(codes, np.ones(3, np.float16), input_bits=bits)
    x = np.stack([np.ones(65_536), -np.ones(65_536), np.linspace(-1, 1, 65_536)]).astype(np.float32)
    exact = x.astype(np.float64) @ codes
    off = 127 * 65_536 / (2**bits - 2)
    np.testing.assert_allclose(laid.multiply(x), exact, rtol=1e-6, atol=off)
    assert panels.exact_input_bits(65_536) == 16
    assert panels.exact_input_bits(70_000) == 0


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_a_token_does_not_depend_on_the_others():
    laid = layer(SCHEMES["int8"]).in_panels()
    x = np.random.default_rng(1).standard_normal((11, 64)).astype(np.float32)
    together = laid.multiply(x)
    for row in range(11):
        np.testing.assert_array_equal(laid.multiply(x[row]), together[row])


def test_a_table_in_panels_is_what_it_was():
    table = quantized_table(np.random.default_rng(0).standard_normal((256, 24)).astype(np.float32))
    laid = table.in_panels()
    assert isinstance(laid, PanelTable)
    assert isinstance(laid.transposed, PanelQuantized)
    assert isinstance(laid, Table)
    assert laid.in_panels() is laid
    assert (laid.shape, laid.size) == (table.shape, table.size)
    np.testing.assert_array_equal(laid.whole(), table.whole())
    np.testing.assert_array_equal(laid.nonzero(), table.nonzero())
    tokens = np.array([[0, 255], [31, 32]])
    np.testing.assert_array_equal(laid.rows(tokens), table.rows(tokens))
    hidden = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    off = np.abs(hidden).max(-1, keepdims=True) / 32767 / 2 * np.abs(table.whole()).sum(-1)
    np.testing.assert_array_less(
        np.abs(laid.scores(hidden) - table.scores(hidden)), off * quads_serve() + 2e-5
    )


@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, group=32, symmetric=False), Scheme(8, group=10), Scheme(8, symmetric=False)],
    ids=["4 bits with zeros", "8 bits by groups", "8 bits with zeros"],
)
def test_other_schemes_stay_as_they_are(scheme):
    held = layer(scheme, inputs=320)
    assert held.in_panels() is held


def test_integers_of_4_bits_stay_xlas_where_their_scales_cannot_be_read(monkeypatch):
    monkeypatch.setitem(Quantized.in_panels.__globals__, "groups_serve", lambda: False)
    held = layer(SCHEMES["int4"])
    assert held.in_panels() is held


@pytest.mark.skipif(not groups_serve(), reason="needs F16C or NEON")
@pytest.mark.parametrize("group", [2, 16, 0])
def test_groups_of_any_even_size(group):
    held = layer(Scheme(4, group=group))
    laid = held.in_panels()
    np.testing.assert_array_equal(laid.whole(), held.whole())
    x = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    np.testing.assert_allclose(laid.multiply(x), x @ held.whole(), atol=2e-5)


def test_rounded_inputs_stay_xlas_where_no_instruction_multiplies_them(monkeypatch):
    monkeypatch.setattr(rounded, "quads_serve", lambda: False)
    held = layer(SCHEMES["int8_activations"])
    assert held.in_panels() is held


def kernel_of(projection):
    """What a projection multiplies with, whether or not its products end in more."""
    return projection["active"].kernel if "active" in projection else projection["kernel"]


@pytest.mark.parametrize("name", ["int8", "int4", "int8_activations"])
def test_tokens_are_those_of_xlas_products(tiny_config, name, monkeypatch):
    params = init_params(tiny_config, 3)
    params["layers"] = jax.tree_util.tree_map_with_path(
        lambda path, x: quantized(x, SCHEMES[name]) if path[-1].key == "kernel" else x, params["layers"]
    )
    params["embedding"]["tokens"] = quantized_table(params["embedding"]["tokens"])
    model = Model(tiny_config, params)
    laid = laid_out(params, config=tiny_config)
    assert isinstance(laid.params["head"].transposed, PanelQuantized)
    serves = {"int8": True, "int8_activations": quads_serve(), "int4": groups_serve()}[name]
    assert isinstance(kernel_of(laid.layers[0]["mlp"]["down"]), KINDS[name] if serves else Quantized)

    prompts, options = [[5], [7, 8, 9], [20, 3]], {"max_new_tokens": 12, "stop_at_eos": False}
    found = generate_tokens(model, prompts, **options)
    monkeypatch.setattr(network, "kernels_serve", lambda: False)
    jax.tree.map(np.testing.assert_array_equal, found, generate_tokens(model, prompts, **options))


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_the_same_integers_in_another_scheme_have_panels_of_their_own(tiny_config):
    params = init_params(tiny_config, 4)
    kernel = quantized(params["layers"]["mlp"]["down"]["kernel"], SCHEMES["int8"])
    params["layers"]["mlp"]["down"]["kernel"] = kernel
    plain = laid_out(params, config=tiny_config).layers[0]["mlp"]["down"]
    params["layers"]["mlp"]["down"]["kernel"] = replace(kernel, scheme=SCHEMES["int8_activations"])
    rounded = laid_out(params, config=tiny_config).layers[0]["mlp"]["down"]
    assert [kernel_of(each).input_bits for each in (plain, rounded)] == [16, 8]


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["int8", "int8_activations"])
def test_a_product_that_ends_in_an_activation_is_its_parts(name, scaled):
    laid = layer(SCHEMES[name], scaled=scaled).in_panels()
    rng = np.random.default_rng(2)
    x, bias = rng.standard_normal((2, 3, 64)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    for given in (bias, None):
        active = laid.active(given, "gelu_new")
        assert isinstance(active, ActiveQuantized)
        plain = jax.nn.gelu(laid.multiply(x) + (0 if given is None else given), approximate=True)
        np.testing.assert_allclose(active.multiply(x), plain, atol=2e-6 * np.abs(plain).max())
    assert laid.active(bias, "silu") is None


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", ["int8", "int8_activations"])
def test_a_product_that_begins_in_a_norm_is_its_parts_to_the_bit(name, centred):
    active = layer(SCHEMES[name]).in_panels().active(None, "gelu_new")
    rng = np.random.default_rng(2)
    scale, bias = rng.standard_normal((2, 64)).astype(np.float32)
    how = RowNorm(scale, bias if centred else None, 0.01)
    whole = active.after(how)
    # The last are more than the kernel takes.
    for shape in ((1, 64), (2, 3, 64), (600, 64)):
        x = rng.standard_normal(shape).astype(np.float32)
        normed = norm_in_step(x, how.scale, how.bias, how.epsilon)
        np.testing.assert_array_equal(whole.multiply(x), active.multiply(normed))
        added = rng.standard_normal((*shape[:-1], 70)).astype(np.float32)
        np.testing.assert_array_equal(whole.multiply(x, added), active.multiply(normed, added))


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_what_divides_its_inputs_begins_in_no_norm():
    how = RowNorm(np.ones(64, np.float32), None, 0.01)
    assert layer(SCHEMES["int8"], scaled=True).in_panels().active(None, "relu").after(how) is None
    odd = panel_quantized(np.ones((60, 70), np.int8), np.ones(70, np.float16), input_bits=16)
    assert odd.active(None, "relu").after(how) is None


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_an_activation_without_a_bias_where_floats_have_64_bits():
    laid = layer(SCHEMES["int8"]).in_panels()
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    expected = np.maximum(laid.multiply(x), 0)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(laid.active(None, "relu").multiply(x), expected)


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("activation", ["linear", "relu", "gelu_new"])
@pytest.mark.parametrize("name", ["int8", "int8_activations"])
def test_a_product_that_ends_in_a_sum_is_its_parts_to_the_bit(name, activation):
    laid = layer(SCHEMES[name]).in_panels()
    rng = np.random.default_rng(2)
    x, bias = rng.standard_normal((2, 3, 64)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    added = rng.standard_normal((2, 3, 70)).astype(np.float32)
    active = laid.active(bias, activation)
    np.testing.assert_array_equal(active.multiply(x, added), added + active.multiply(x))
    if activation == "linear":
        np.testing.assert_array_equal(active.multiply(x), laid.multiply(x) + bias)


def test_floats_end_in_no_activation():
    laid = panel_quantized(np.ones((4, 8), np.int8), np.ones(8, np.float16), input_bits=0)
    assert laid.active(None, "gelu_new") is None
    assert not isinstance(panel_kernel(np.ones((4, 8), np.float32)), Activating)


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize(
    ("changes", "joins"),
    [({}, True), ({"activation": "gelu"}, False), ({"gated": True, "activation": "relu"}, False)],
)
def test_an_mlp_of_integers_has_its_activation_in_its_first_product(tiny_config, changes, joins):
    config = replace(tiny_config, **changes)
    params = init_params(config, 3)
    params["layers"] = jax.tree_util.tree_map_with_path(
        lambda path, x: quantized(x, SCHEMES["int8"]) if path[-1].key == "kernel" else x, params["layers"]
    )
    for layer in laid_out(params, config=config).layers:
        assert set(layer["mlp"]) == ({"active", "down"} if joins else set(params["layers"]["mlp"]))
        # What is added to the residual stream, and whatever else has a bias.
        projections = layer["attention"] | {
            name: layer["mlp"][name] for name in layer["mlp"] if name != "active"
        }
        assert all(set(each) == {"active"} for each in projections.values())


@pytest.mark.skipif(not quads_serve(), reason="needs AVX-512 VNNI")
def test_without_a_bias_what_is_added_to_the_stream_ends_in_it_alone(tiny_config):
    config = replace(tiny_config, attention_bias=False, attention_out_bias=False, mlp_bias=False, gated=True)
    params = init_params(config, 3)
    params["layers"] = jax.tree_util.tree_map_with_path(
        lambda path, x: quantized(x, SCHEMES["int8"]) if path[-1].key == "kernel" else x, params["layers"]
    )
    for layer in laid_out(params, config=config).layers:
        parts = layer["attention"] | layer["mlp"]
        assert {name: set(part) for name, part in parts.items()} == {
            "joint": {"active"}, "out": {"active"}, "up": {"kernel"}, "gate": {"kernel"}, "down": {"active"}
        }  # fmt: skip
