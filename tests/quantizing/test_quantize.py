import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ragjax.config import Quantize, QuantizeMethod, SchemeName, Shrink
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.pruning import prune
from ragjax.quantization import SCHEMES, Scheme, rounded
from ragjax.quantizing import quantize
from ragjax.quantizing.methods import METHODS
from ragjax.shrinking import shrink


def test_names_of_the_config_are_those_of_the_tables():
    assert list(SchemeName.__args__) == list(SCHEMES)
    assert list(QuantizeMethod.__args__) == list(METHODS)


def test_matrices_are_rounded_and_all_else_is_left(tiny_model):
    made = quantize(tiny_model, Quantize(scheme="int4", group=16))
    scheme, report = Scheme(4, 16), made.report
    assert report.scheme == scheme
    before, after = tiny_model.params, made.model.in_floats().params
    for part in ("attention", "mlp"):
        for name, matrix in before["layers"][part].items():
            expected = np.asarray(rounded(matrix["kernel"], scheme))
            np.testing.assert_array_equal(after["layers"][part][name]["kernel"], expected)
            lost = np.linalg.norm((expected - matrix["kernel"]).reshape(3, -1), axis=1)
            size = np.linalg.norm(np.asarray(matrix["kernel"]).reshape(3, -1), axis=1)
            np.testing.assert_allclose(report.errors[f"layers/{part}/{name}/kernel"], lost / size, rtol=1e-4)
    left = [
        {name: leaf for name, leaf in flatten_dict(tree, sep="/").items() if not name.endswith("/kernel")}
        for tree in (before, after)
    ]
    jax.tree.map(np.testing.assert_array_equal, *left)
    assert report.bits == 4 + 16 / 16
    assert made.model.history[-1]["did"] == "quantize"
    assert made.model.history[-1]["group"] == 16


def test_a_head_of_its_own_is_quantized_with_the_tables(of_kind, random_model):
    model = random_model(of_kind("llama"))
    made = quantize(model, Quantize(tables="int8", quantizable=("layers/mlp/*/kernel",))).model
    assert made.params["head"].codes.dtype == made.params["embedding"]["tokens"].codes.dtype == jnp.int8
    assert isinstance(made.params["layers"]["attention"]["query"]["kernel"], jax.Array)
    tokens = np.arange(10)[None]
    np.testing.assert_allclose(made(tokens), made.in_floats()(tokens), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"group": 24},
            r"(?s)layers/attention/key/kernel: 32 inputs do not divide into groups of 24.*divides 32",
        ),
        ({"quantizable": ("embedding/*",)}, r"embedding/tokens: only the matrices of the blocks[^\n]*$"),
        ({"quantizable": ("layers/other/kernel",)}, "quantizable: no parameter is named by 'layers/o"),
        ({"quantizable": ("*",)}, "quantizable: only matrices can be chosen"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(tiny_model, fields, said):
    with pytest.raises(InputError, match=said):
        quantize(tiny_model, Quantize(**fields))


@pytest.mark.parametrize("change", [quantize, prune, lambda model: shrink(model, Shrink(layers=1))])
def test_what_is_quantized_is_not_changed_again(tiny_model, change):
    with pytest.raises(InputError, match=r"The model is quantized, and floats are wanted here.*in_floats"):
        change(quantize(tiny_model).model)


def test_weights_that_no_scale_spans_are_refused(tiny_model):
    params = jax.tree.map(lambda x: x, tiny_model.params)
    up = params["layers"]["mlp"]["up"]
    up["kernel"] = up["kernel"].at[1, 2, 3].set(1e8)
    with pytest.raises(InputError, match=r"(?s)too large for scales in 16 bits.*layers/mlp/up/kernel"):
        quantize(Model(tiny_model.config, params))
