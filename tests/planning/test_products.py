import jax
import jax.numpy as jnp

from ragjax.config import Distill
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.planning.products import product_flops
from ragjax.sparsity.shrink import flops_per_token

BATCH, LENGTH = 2, 64
CONFIG = DecoderConfig(vocab_size=128, positions=64, width=32, layers=3, heads=4, mlp_width=128)


def of_loss(remat="none", teachers=(), **weights):
    """Operations of the loss and its gradient for a token."""
    weights = {"forward_kl": 0.0, "cross_entropy": 1.0} | weights
    objective = Objective(CONFIG, teachers, Distill(**weights), remat=remat)
    params = jax.eval_shape(lambda: init_params(CONFIG, 0))
    frozen = [jax.eval_shape(lambda config=config: init_params(config, 0)) for config in teachers]
    ids = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    counts = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.float32)
    traced = jax.make_jaxpr(jax.value_and_grad(lambda p, t, b: objective(p, t, b, b.weights)[0]))(
        params, frozen, Batch(ids, ids, counts)
    )
    return product_flops(traced.jaxpr) / (BATCH * LENGTH)


FORWARD = flops_per_token(CONFIG, LENGTH)
SCORES = 2 * CONFIG.layers * LENGTH * CONFIG.width
"""The product of queries and keys, which the backward pass makes again."""


def test_a_batched_product_counts_every_multiplication_twice():
    a, b = jnp.ones((5, 3, 4)), jnp.ones((5, 4, 7))
    assert product_flops(jax.make_jaxpr(jnp.matmul)(a, b).jaxpr) == 2 * 5 * 3 * 4 * 7


def test_of_branches_the_largest_counts_and_a_loop_without_end_once():
    def program(a, yes):
        a = jax.lax.cond(yes, lambda a: a @ a @ a, lambda a: a @ a, a)
        return jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a @ a, a)

    assert product_flops(jax.make_jaxpr(program)(jnp.ones((4, 4)), True).jaxpr) == 3 * 2 * 4**3


def test_a_gradient_is_three_forward_passes_and_attention_made_again():
    assert of_loss() == 3 * FORWARD + SCORES


def test_a_teacher_is_one_forward_pass_more():
    assert of_loss(teachers=(CONFIG,), forward_kl=1.0) == 4 * FORWARD + SCORES


def test_what_is_computed_again_counts():
    assert 3 * FORWARD + SCORES < of_loss("full") < 4 * FORWARD + SCORES
