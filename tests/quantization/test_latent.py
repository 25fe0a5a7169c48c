"""Training of rounded weights: what a step sees is what rounding to the nearest makes of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ragjax.config import Distill, Mesh, Sparsity
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import batch_shards, make_mesh
from ragjax.parallel.rules import place
from ragjax.quantization.grid import grid, rounded, to_codes
from ragjax.quantization.latent import held_to_grid
from ragjax.quantization.scheme import Scheme
from ragjax.sparsity import sparsify
from ragjax.training.state import init_state
from ragjax.training.step import make_step

INT4 = Scheme(bits=4, group=16, symmetric=True, activations=None)
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(2, 6, 5)).astype(np.float32)
INPUTS, TARGETS = RNG.normal(size=(2, 9, 6)), RNG.normal(size=(2, 9, 5))


def nearest(kernel):
    """Each output's weights rounded to the nearest of -8 ... 7 steps, of which the largest weight has -8."""
    high, low = kernel.max(1, keepdims=True), kernel.min(1, keepdims=True)
    step = (np.where(high >= -low, high, low) / -8).astype(np.float16).astype(np.float64)
    return np.clip(np.rint(kernel / step), -8, 7) * step


def test_the_gradient_at_rounded_weights_moves_the_free_ones():
    scheme = Scheme(bits=4, group=0, symmetric=True, activations=None)
    params = {"layers": {"up": {"kernel": jnp.asarray(KERNEL), "bias": jnp.zeros((2, 5))}}}

    def loss(params):
        up = params["layers"]["up"]
        return jnp.sum((INPUTS @ up["kernel"] + up["bias"][:, None] - TARGETS) ** 2) / 9

    rule = held_to_grid(optax.sgd(0.05, momentum=0.9), scheme)
    state = rule.init(params)
    free, bias, trace = KERNEL.astype(np.float64), np.zeros((2, 5)), [0.0, 0.0]
    seen = free
    for _ in range(6):
        error = 2 * (INPUTS @ seen + bias[:, None] - TARGETS) / 9
        gradients = INPUTS.transpose(0, 2, 1) @ error, error.sum(1)
        trace = [0.9 * t + g for t, g in zip(trace, gradients, strict=True)]
        free, bias = free - 0.05 * trace[0], bias - 0.05 * trace[1]
        seen = nearest(free)
        updates, state = rule.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["layers"]["up"]["kernel"], seen, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["layers"]["up"]["bias"], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.free["layers"]["up"]["kernel"], free, rtol=1e-4, atol=1e-5)
    assert state.free["layers"]["up"]["bias"] is None


def trained(config, sparsity, *, mesh=None, steps=4, weights=None):
    """A few steps of the train step: parameters and state after the last, and the losses."""
    mesh = mesh or make_mesh(Mesh(), jax.devices()[:1])
    weights = weights or Distill(forward_kl=0.7, cross_entropy=0.3, hidden_mse=0.1, chunk_tokens=16)
    optimizer = held_to_grid(sparsify(optax.adamw(1e-2), sparsity, total_steps=steps, seed=0), INT4)
    objective = Objective(config, (config,), weights, shards=batch_shards(mesh))
    losses = []
    with jax.set_mesh(mesh):
        step = make_step(objective, optimizer, clip=1.0)
        state = init_state(init_params(config, 0), optimizer, mesh)
        teachers = (place(init_params(config, 7), mesh),)
        for number in range(steps):
            text = np.random.default_rng(number).integers(0, config.vocab_size, (1, 8, 17))
            batch = Batch(text[..., :-1], text[..., 1:], np.ones((1, 8, 16), np.float32), None, None)
            spec = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
            batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))
            state, metrics = step(state, teachers, batch)
            losses.append(float(metrics.loss))
    return jax.device_get(state), losses


def kernels(params):
    leaves = jax.tree_util.tree_leaves_with_path(params["layers"])
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if path[-1].key == "kernel"}


@pytest.mark.parametrize("method", ["gradual", "ste"])
def test_a_distilled_sparse_model_is_rounded_to_what_the_step_saw(tiny_config, method):
    state, _ = trained(tiny_config, Sparsity(target=0.5, method=method, schedule="one_shot", every=1))
    free = kernels(state.opt_state.free)
    masks = kernels(optax.tree.get(state.opt_state, "masks"))
    for name, kernel in kernels(state.params).items():
        assert (masks[name].mean((1, 2)) == 0.5).all()
        assert not kernel[~masks[name]].any()
        for layer in range(tiny_config.layers):
            seen, own = kernel[layer], free[name][layer]
            assert np.abs(seen - own).max() > 1e-4
            # To one unit in the last place: an update is added to what was there.
            np.testing.assert_allclose(seen, rounded(own, INT4), rtol=3e-7, atol=1e-9)
            codes, again = (to_codes(w, grid(w, INT4), INT4) for w in (own, seen))
            np.testing.assert_array_equal(codes, again)
            np.testing.assert_array_equal(rounded(seen, INT4), rounded(own, INT4))


def test_eight_devices_give_the_losses_of_one(tiny_config):
    sparsity = Sparsity(target=0.5, schedule="one_shot", every=1)
    _, losses = trained(tiny_config, sparsity)
    _, shared = trained(tiny_config, sparsity, mesh=make_mesh(Mesh(data=2, fsdp=2, tensor=2)))
    # A weight halfway between two points may fall to either.
    np.testing.assert_allclose(shared, losses, rtol=1e-3)


def test_without_a_scheme_it_is_the_optimizer():
    params = {"layers": {"up": {"kernel": jnp.asarray(KERNEL)}}}
    rule = held_to_grid(optax.adam(1e-2), None)
    assert jax.tree.structure(rule.init(params)) == jax.tree.structure(optax.adam(1e-2).init(params))
