import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.models.activations import ACTIVATIONS

# Away from the points where relu-like functions bend.
POINTS = np.concatenate([np.linspace(-12, 12, 401) + 0.0123, [-40.0, 40.0]]).astype(np.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values_and_derivatives_are_those_of_transformers(name, as_for_users):
    import torch
    from transformers.activations import ACT2FN

    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    y = ACT2FN[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x) if y.requires_grad else (torch.zeros_like(x),)

    ours, our_slope = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray(POINTS))
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(our_slope, slope.numpy(), rtol=1e-5, atol=5e-6)
