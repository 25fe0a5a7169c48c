"""Every loss over the vocabulary, and its gradient, against its formula in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config.distill import DIVERGENCES
from ragjax.distillation.losses import LOSSES, Mixing, Pair, centred, over_tokens

TOKENS, VOCAB = 6, 11


def logits(seed=0, spread=2.0):
    """Of a student and a teacher."""
    return (spread * np.random.default_rng(seed).normal(size=(2, TOKENS, VOCAB))).astype(np.float32)


def close(actual, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


def test_the_config_names_every_loss_and_each_has_its_formula(formulas):
    assert tuple(LOSSES) == DIVERGENCES
    assert set(LOSSES) == formulas


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("mixing", [Mixing(), Mixing(skew=0.3, teacher_share=0.8)], ids=["default", "other"])
def test_value_and_gradient_equal_float64(name, formula, slopes_of, temperature, mixing):
    student, teacher = logits()
    mask = np.array([1, 1, 0, 1, 0, 1], bool)
    loss = partial(over_tokens, LOSSES[name], temperature=temperature, mixing=mixing)
    value, gradient = jax.value_and_grad(loss)(student, teacher, mask)
    said = {"temperature": temperature, "skew": mixing.skew, "share": mixing.teacher_share}

    def exact(student):
        return formula(name, student, teacher, **said)

    close(value, exact(student)[mask].mean())
    close(gradient, slopes_of(exact, student) * mask[:, None] / mask.sum())


def test_what_the_mask_leaves_out_never_changes_a_loss(name):
    student, teacher = logits()
    mask = np.array([1, 1, 0, 1, 0, 1], bool)
    loss = jax.value_and_grad(partial(over_tokens, LOSSES[name]))
    expected, slope = loss(student, teacher, mask)
    for filling in (1e4, -1e4, np.nan):
        disturbed = [np.where(mask[:, None], x, filling * np.arange(VOCAB)) for x in (student, teacher)]
        assert loss(*disturbed, mask)[0] == expected
    np.testing.assert_array_equal(slope[~mask], 0)
    assert over_tokens(LOSSES[name], student, teacher, np.zeros(TOKENS, bool)) == 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    teacher = logits()[1]
    loss = jax.value_and_grad(partial(over_tokens, LOSSES[name]))
    value, gradient = loss(teacher, teacher, np.ones(TOKENS, bool))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_no_gradient_goes_to_the_teacher(name):
    loss = partial(over_tokens, LOSSES[name])
    gradient = jax.grad(loss, argnums=1)(*logits(), np.ones(TOKENS, bool))
    np.testing.assert_array_equal(gradient, 0)


def test_logits_that_are_far_apart_stay_finite(name, formula):
    """A student that is sure of what its teacher excludes."""
    student, teacher = logits(spread=60.0)
    mask = np.ones(TOKENS, bool)
    value, gradient = jax.value_and_grad(partial(over_tokens, LOSSES[name]))(student, teacher, mask)
    assert np.isfinite(gradient).all()
    close(value, formula(name, student, teacher).mean())


def test_logits_in_half_precision_are_compared_in_float32(name, formula):
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in logits())
    found = over_tokens(LOSSES[name], student, teacher, np.ones(TOKENS, bool))
    assert found.dtype == jnp.float32
    close(found, formula(name, student, teacher).mean())


def test_rounding_logits_to_bfloat16_moves_a_loss_by_less_than_two_percent(name, formula):
    student, teacher = logits()
    found = over_tokens(
        LOSSES[name], jnp.asarray(student, jnp.bfloat16), jnp.asarray(teacher, jnp.bfloat16),
        np.ones(TOKENS, bool),
    )  # fmt: skip
    close(found, formula(name, student, teacher).mean(), 0.02)


def of_pair(name, student, teacher, **mixing):
    return LOSSES[name](Pair(centred(student), centred(teacher), Mixing(**mixing)))


@pytest.mark.parametrize(("share", "limit"), [(1e-3, "forward_kl"), (1 - 1e-3, "reverse_kl")])
def test_jensen_shannon_goes_to_a_kl_at_both_ends(share, limit):
    """At a teacher's share b to 0 it is b KL(p || q), at b to 1 it is (1 - b) KL(q || p)."""
    student, teacher = logits(spread=1.0)
    found = of_pair("jensen_shannon", student, teacher, teacher_share=share) / min(share, 1 - share)
    np.testing.assert_allclose(found, of_pair(limit, student, teacher), rtol=5e-3)


def test_jensen_shannon_is_symmetric_at_a_half_and_never_above_log_2():
    student, teacher = logits(spread=30.0)
    found = of_pair("jensen_shannon", student, teacher)
    np.testing.assert_allclose(found, of_pair("jensen_shannon", teacher, student), rtol=1e-5)
    assert (found <= np.log(2) + 1e-6).all()
    assert found.max() > 0.6


def test_a_skewed_kl_without_skew_is_the_kl_and_is_bounded_with_it():
    student, teacher = logits(spread=30.0)
    for name in ("forward_kl", "reverse_kl"):
        near = of_pair(f"skewed_{name}", *logits(spread=1.0), skew=1e-5)
        np.testing.assert_allclose(near, of_pair(name, *logits(spread=1.0)), rtol=1e-3)
        assert of_pair(name, student, teacher).max() > -np.log(0.1)
        assert (of_pair(f"skewed_{name}", student, teacher, skew=0.1) <= -np.log(0.1) + 1e-5).all()


def generalized_jsd(student, teacher, beta, temperature):
    """TRL's `GKDTrainer.generalized_jsd_loss`, written down from its documentation, in float64.

    beta is the teacher's share of the mixture; 0 is by convention KL(teacher || student), and 1 is
    KL(student || teacher). No T^2; summed over the vocabulary, and here over no tokens.
    """
    q, p = (np.exp(x / temperature) for x in np.asarray((student, teacher), np.float64))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    if beta == 0:
        return (p * np.log(p / q)).sum(-1)
    if beta == 1:
        return (q * np.log(q / p)).sum(-1)
    m = beta * p + (1 - beta) * q
    return beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)


BETAS = [(0.0, "forward_kl"), (0.25, "jensen_shannon"), (0.5, "jensen_shannon"), (1.0, "reverse_kl")]


@pytest.mark.parametrize(("beta", "ours"), BETAS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_direction_has_the_beta_of_trl_and_its_loss_times_the_squared_temperature(beta, ours, temperature):
    student, teacher = logits()
    share = beta if 0 < beta < 1 else 0.5
    found = over_tokens(
        LOSSES[ours], student, teacher, np.ones(TOKENS, bool),
        temperature=temperature, mixing=Mixing(teacher_share=share),
    )  # fmt: skip
    theirs = generalized_jsd(student, teacher, beta, temperature).mean()
    close(found, temperature**2 * theirs)


@pytest.mark.parametrize(("beta", "ours"), BETAS)
def test_trl_itself_gives_the_same(beta, ours):
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    torch = pytest.importorskip("torch")
    student, teacher = logits()
    theirs = trainer.generalized_jsd_loss(
        torch.tensor(student)[None], torch.tensor(teacher)[None], beta=beta, temperature=2.0,
        labels=torch.zeros(1, TOKENS, dtype=torch.long), reduction="batchmean",
    )  # fmt: skip
    close(float(theirs), generalized_jsd(student, teacher, beta, 2.0).mean())
