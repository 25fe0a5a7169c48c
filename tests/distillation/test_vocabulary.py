"""The chunked vocabulary losses against float64 numpy, on one device and on eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.config import Mesh
from ragjax.distillation import table_gradient, vocabulary
from ragjax.distillation.known import drawn, likeliest
from ragjax.distillation.losses import LOSSES, Mixing, centred
from ragjax.distillation.vocabulary import Head, vocabulary_loss
from ragjax.parallel.mesh import BATCH_AXES, make_mesh

BATCH, SEQ, WIDTH, TEACHER_WIDTH, VOCAB, PADDED = 8, 12, 16, 24, 300, 384


def loss_of(student, targets, weights, *, teacher=None, cross_entropy=0.0, forward_kl=0.0, **options):
    """`vocabulary_loss` of one teacher or none, and of two losses."""
    return vocabulary_loss(
        student, targets, weights, vocab_size=VOCAB, teachers=() if teacher is None else (teacher,),
        coefficients={"cross_entropy": cross_entropy, "forward_kl": forward_kl}, **options,
    )  # fmt: skip


class Problem:
    """Two random heads, targets, and weights of which some are 0."""

    def __init__(self, seed: int = 0, batch: int = BATCH, seq: int = SEQ, dtype=np.float32):
        draw = np.random.default_rng(seed)

        def normal(*shape):
            return draw.normal(size=shape).astype(np.float32)

        self.student = Head(jnp.asarray(normal(batch, seq, WIDTH), dtype), normal(PADDED, WIDTH))
        self.teacher = Head(
            jnp.asarray(normal(batch, seq, TEACHER_WIDTH), dtype), normal(PADDED, TEACHER_WIDTH)
        )
        self.targets = draw.integers(0, VOCAB, (batch, seq)).astype(np.int32)
        self.weights = draw.uniform(0.5, 2, (batch, seq)).astype(np.float32)
        self.weights[0, -3:] = 0
        self.targets[0, -3:] = -100

    def loss(self, student, **options):
        return loss_of(student, self.targets, self.weights, **options)

    def value_and_gradients(self, **options):
        function = jax.jit(jax.value_and_grad(lambda s: self.loss(s, **options), has_aux=True))
        return function(self.student)


def log_softmax(scores):
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def reference(problem, *, cross_entropy, forward_kl=0.0, temperature=1.0):
    """Loss, terms and gradients in float64, all scores at once."""

    def head(head):
        return np.asarray(head.hidden, np.float64), np.asarray(head.table, np.float64)[:VOCAB]

    hidden, table = head(problem.student)
    teacher_hidden, teacher_table = head(problem.teacher)
    scores, teacher = hidden @ table.T, teacher_hidden @ teacher_table.T
    weights = problem.weights.astype(np.float64)
    one_hot = (np.arange(VOCAB) == problem.targets[..., None]).astype(np.float64)
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(scores / temperature)
    ce = (weights * -(one_hot * log_softmax(scores)).sum(-1)).sum()
    kl = temperature**2 * (weights * (np.exp(log_p) * (log_p - log_q)).sum(-1)).sum()
    gradient = cross_entropy * (np.exp(log_softmax(scores)) - one_hot)
    gradient += forward_kl * temperature * (np.exp(log_q) - np.exp(log_p))
    gradient *= weights[..., None]
    table_gradient = np.zeros((PADDED, table.shape[1]))
    table_gradient[:VOCAB] = np.einsum("bsv,bsd->vd", gradient, hidden)
    return cross_entropy * ce + forward_kl * kl, (ce, kl), Head(gradient @ table, table_gradient)


MIXTURES = {
    "cross_entropy": {"cross_entropy": 1.0},
    "kl": {"cross_entropy": 0.0, "forward_kl": 1.0},
    "kl_at_temperature_2": {"cross_entropy": 0.0, "forward_kl": 1.0, "temperature": 2.0},
    "mixed": {"cross_entropy": 0.3, "forward_kl": 0.7, "temperature": 2.0},
    "mixed_at_temperature_1": {"cross_entropy": 0.3, "forward_kl": 0.7},
}


def close(actual, expected, tolerance=1e-5):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, atol=tolerance * scale, rtol=tolerance
    )


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_value_and_gradients_equal_float64(mixture):
    problem = Problem()
    (loss, terms), gradients = problem.value_and_gradients(
        teacher=problem.teacher, chunk_tokens=24, **mixture
    )
    expected, (ce, kl), expected_gradients = reference(problem, **mixture)
    close(loss, expected)
    close(terms["cross_entropy"], ce)
    if mixture.get("forward_kl"):
        close(terms["forward_kl"], kl)
    else:
        assert "forward_kl" not in terms
    close(gradients.hidden, expected_gradients.hidden)
    close(gradients.table, expected_gradients.table)


SOFT = "ragjax_soft_targets"
"""Begins the names of custom calls that make the losses at temperature 1."""


def lowered(problem, platform="cpu", **options):
    function = jax.jit(jax.grad(lambda student: problem.loss(student, **options)[0]))
    return function.trace(problem.student).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("mixture", ["cross_entropy", "kl", "mixed_at_temperature_1"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_one_reading_of_all_scores_gives_what_many_do(mixture, dtype, monkeypatch):
    problem = Problem(dtype=dtype)
    options = MIXTURES[mixture] | {"teacher": problem.teacher, "chunk_tokens": 24}
    assert SOFT in lowered(problem, **options)
    assert SOFT not in lowered(problem, platform="tpu", **options)
    (loss, terms), gradients = problem.value_and_gradients(**options)
    monkeypatch.setattr(vocabulary, "soft_targets_serve", lambda columns: False)
    assert SOFT not in lowered(problem, **options)
    (expected, expected_terms), expected_gradients = problem.value_and_gradients(**options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), terms, expected_terms)
    tolerance = 1e-6 if dtype == np.float32 else 1e-2
    jax.tree.map(lambda a, b: close(a, np.asarray(b, np.float64), tolerance), gradients, expected_gradients)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 2.0}, {"temperature": jnp.float32(1)}, {"top_k": 5}, {"reverse_kl": 1.0}],
    ids=["temperature", "temperature_of_an_array", "top_k", "another_loss"],
)
def test_other_losses_are_xlas(options):
    problem = Problem()
    coefficients = {"forward_kl": 1.0} | {n: c for n, c in options.items() if n in LOSSES}
    options = {name: value for name, value in options.items() if name not in LOSSES}

    def loss(student):
        return vocabulary_loss(
            student, problem.targets, problem.weights, vocab_size=VOCAB, teachers=(problem.teacher,),
            coefficients=coefficients, **options,
        )[0]  # fmt: skip

    assert SOFT not in jax.jit(jax.grad(loss)).lower(problem.student).as_text()


def test_temperature_and_top_k_are_of_no_matter_without_a_divergence():
    problem = Problem()
    plain = problem.value_and_gradients(cross_entropy=1.0)
    options = {"cross_entropy": 1.0, "temperature": 2.0, "top_k": 5}
    assert SOFT in lowered(problem, **options)
    jax.tree.map(np.testing.assert_array_equal, problem.value_and_gradients(**options), plain)


def test_a_divergence_from_nobody_counts_nothing():
    problem = Problem()

    def loss(student):
        return vocabulary_loss(
            student, problem.targets, problem.weights, vocab_size=VOCAB, shares=(),
            coefficients={"cross_entropy": 1.0, "forward_kl": 1.0},
        )  # fmt: skip

    (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(problem.student)
    (expected, _), expected_gradients = problem.value_and_gradients(cross_entropy=1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert terms["forward_kl"] == 0
    jax.tree.map(close, gradients, expected_gradients)


def test_a_second_derivative_is_that_of_all_scores():
    problem = Problem(batch=2, seq=4)

    def second(function):
        slope = jax.grad(lambda hidden: function(problem.student._replace(hidden=hidden)))
        return jax.grad(lambda hidden: jnp.square(slope(hidden)).sum())(problem.student.hidden)

    def whole(student):
        scores = (student.hidden @ student.table.T)[..., :VOCAB]
        targets = np.maximum(problem.targets, 0)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], -1)[..., 0]
        return -(problem.weights * chosen).sum()

    found = second(lambda student: problem.loss(student, cross_entropy=1.0)[0])
    expected = second(whole)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_two_teachers_are_xlas():
    problem = Problem()

    def loss(student):
        return vocabulary_loss(
            student, problem.targets, problem.weights, vocab_size=VOCAB, coefficients={"forward_kl": 1.0},
            teachers=(problem.teacher, problem.teacher), shares=(0.5, 0.5),
        )[0]  # fmt: skip

    assert SOFT not in jax.jit(jax.grad(loss)).lower(problem.student).as_text()


def test_one_teacher_counts_its_share():
    problem = Problem()

    def loss(student, share):
        return vocabulary_loss(
            student, problem.targets, problem.weights, vocab_size=VOCAB, coefficients={"forward_kl": 1.0},
            teachers=(problem.teacher,), shares=(share,),
        )[0]  # fmt: skip

    whole, half = (jax.value_and_grad(loss)(problem.student, share) for share in (1.0, 0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-5, atol=1e-6), whole, half)


def test_value_without_gradient_is_the_same():
    problem = Problem()
    options = MIXTURES["mixed"] | {"teacher": problem.teacher, "chunk_tokens": 24}
    (expected, expected_terms), _ = problem.value_and_gradients(**options)
    loss, terms = jax.jit(lambda s: problem.loss(s, **options))(problem.student)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), terms, expected_terms)


@pytest.mark.parametrize("chunk_tokens", [1, 8, 40, 56, 96, 4096])
def test_chunk_size_never_changes_the_loss(chunk_tokens):
    problem = Problem()
    options = MIXTURES["mixed"] | {"teacher": problem.teacher}
    (loss, _), gradients = problem.value_and_gradients(chunk_tokens=chunk_tokens, **options)
    expected, _, expected_gradients = reference(problem, **MIXTURES["mixed"])
    close(loss, expected)
    jax.tree.map(close, gradients, expected_gradients)


@pytest.mark.parametrize("chunk_tokens", [8, 40])
@pytest.mark.parametrize("at_once", ["_with_rows", "_with_columns"])
def test_the_table_gradient_is_added_a_part_at_a_time(monkeypatch, at_once, chunk_tokens):
    problem = Problem()
    for name in ("_ROWS", "_COLUMNS"):
        monkeypatch.setattr(table_gradient, name, 9)
    monkeypatch.setattr(table_gradient, "_with_rows", getattr(table_gradient, at_once))
    options = MIXTURES["mixed"] | {"teacher": problem.teacher}
    _, gradients = problem.value_and_gradients(chunk_tokens=chunk_tokens, **options)
    jax.tree.map(close, gradients, reference(problem, **MIXTURES["mixed"])[2])


def test_what_pads_the_vocabulary_never_changes_the_loss():
    problem = Problem()
    options = MIXTURES["mixed"] | {"teacher": problem.teacher}
    (loss, _), gradients = problem.value_and_gradients(**options)
    table = problem.student.table.copy()
    table[VOCAB:] = 1e3
    problem.student = problem.student._replace(table=table)
    (disturbed, _), disturbed_gradients = problem.value_and_gradients(**options)
    assert loss == disturbed
    np.testing.assert_array_equal(gradients.table, disturbed_gradients.table)
    np.testing.assert_array_equal(disturbed_gradients.table[VOCAB:], 0)


def test_scores_far_from_zero_stay_exact():
    """A shift of all scores, as trained GPT-2 has it, changes nothing."""
    problem = Problem()
    hidden, table = (np.array(x) for x in problem.student)
    hidden[..., 0], table[:, 0] = 10, -10
    problem.student = Head(hidden, table)
    (loss, _), gradients = problem.value_and_gradients(teacher=problem.teacher, **MIXTURES["mixed"])
    expected, _, expected_gradients = reference(problem, **MIXTURES["mixed"])
    close(loss, expected)
    jax.tree.map(lambda a, e: close(a, e, 3e-5), gradients, expected_gradients)


def test_all_weights_zero_gives_zero_and_no_nan():
    problem = Problem()
    problem.weights[:] = 0
    (loss, _), gradients = problem.value_and_gradients(teacher=problem.teacher, **MIXTURES["mixed"])
    assert loss == 0
    assert all(not np.any(g) for g in gradients)


def test_upstream_gradient_scales_ours():
    problem = Problem()
    gradients = jax.grad(lambda s: problem.loss(s, cross_entropy=1.0)[0])(problem.student)
    tripled = jax.grad(lambda s: 3 * problem.loss(s, cross_entropy=1.0)[0])(problem.student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-6), gradients, tripled)


def test_teacher_and_terms_give_no_gradient():
    problem = Problem()

    def loss(teacher):
        return problem.loss(problem.student, teacher=teacher, **MIXTURES["mixed"])[0]

    assert all(not np.any(g) for g in jax.grad(loss)(problem.teacher))
    terms = jax.grad(lambda s: problem.loss(s, cross_entropy=1.0)[1]["cross_entropy"])(problem.student)
    assert all(not np.any(g) for g in terms)


def test_bfloat16_states_reduce_in_float32_and_give_float32_table_gradients():
    problem = Problem(dtype=jnp.bfloat16)
    options = MIXTURES["mixed"] | {"teacher": problem.teacher}
    (loss, _), gradients = problem.value_and_gradients(**options)
    # The tables are rounded too: what is left is rounding of the gradient.
    problem.student, problem.teacher = (
        jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), head)
        for head in (problem.student, problem.teacher)
    )
    expected, _, expected_gradients = reference(problem, **MIXTURES["mixed"])
    close(loss, expected)
    assert gradients.hidden.dtype == jnp.bfloat16
    assert gradients.table.dtype == jnp.float32
    jax.tree.map(lambda a, e: close(a, e, 1e-2), gradients, expected_gradients)


def test_bfloat16_products_are_summed_in_float32(types_of_products):
    problem = Problem(dtype=jnp.bfloat16)
    options = MIXTURES["mixed"] | {"teacher": problem.teacher}
    asked = types_of_products(jax.grad(lambda s: problem.loss(s, **options)[0]), problem.student)
    # Scores of both, gradients of the hidden states and of the table.
    assert asked == [("bf16", "bf16", "f32")] * 4


def test_a_new_loss_is_one_function(monkeypatch):
    """Reverse KL in place of forward KL, with the gradient autodiff finds."""

    def reverse_kl(scores):
        q, p = jax.nn.log_softmax(scores.student), jax.nn.log_softmax(scores.teacher)
        return (jnp.exp(q) * (q - p)).sum(-1)

    monkeypatch.setitem(vocabulary.LOSSES, "forward_kl", reverse_kl)
    problem = Problem()

    def whole(student):
        q, p = (jax.nn.log_softmax((h.hidden @ h.table.T)[..., :VOCAB]) for h in (student, problem.teacher))
        return (problem.weights * (jnp.exp(q) * (q - p)).sum(-1)).sum()

    (loss, _), gradients = problem.value_and_gradients(
        teacher=problem.teacher, cross_entropy=0.0, forward_kl=1.0, chunk_tokens=16
    )
    expected, expected_gradients = jax.value_and_grad(whole)(problem.student)
    close(loss, expected)
    jax.tree.map(close, gradients, expected_gradients)


class Small(Problem):
    """Few tokens and a small table, for what is tried with every loss."""

    VOCAB = 20

    def __init__(self, seed: int = 0, dtype=np.float32):
        super().__init__(seed, batch=2, seq=7, dtype=dtype)
        self.student, self.teacher = (
            head._replace(table=np.float32(0.4) * head.table[:128]) for head in (self.student, self.teacher)
        )
        self.targets %= self.VOCAB

    def losses(self, coefficients, *, teachers=None, **options):
        """Loss, terms and gradients; of the one teacher where no others are given."""
        taught = (self.teacher,) if teachers is None else teachers

        def loss(student):
            return vocabulary_loss(
                student, self.targets, self.weights, vocab_size=self.VOCAB,
                coefficients=coefficients, teachers=taught, **options,
            )  # fmt: skip

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(self.student)

    def logits(self, head):
        return np.asarray(head.hidden, np.float64) @ np.asarray(head.table, np.float64)[: self.VOCAB].T

    def gradients(self, slopes):
        """Those of the student's head, from how the loss of each token changes with its logits."""
        slopes = slopes * np.asarray(self.weights, np.float64)[..., None]
        hidden, table = (np.asarray(x, np.float64) for x in self.student)
        table_gradient = np.zeros_like(table)
        table_gradient[: self.VOCAB] = np.einsum("bsv,bsd->vd", slopes, hidden)
        return Head(slopes @ table[: self.VOCAB], table_gradient)


OTHER = Mixing(skew=0.3, teacher_share=0.8)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (2.0, 0), (2.0, 5)])
def test_every_loss_and_its_gradients_equal_float64(name, formula, slopes_of, temperature, top_k):
    problem = Small()
    (loss, terms), gradients = problem.losses(
        {name: 0.7}, temperature=temperature, mixing=OTHER, top_k=top_k, chunk_tokens=4
    )
    teacher = problem.logits(problem.teacher)

    def exact(student):
        return formula(name, student, teacher, temperature=temperature, skew=0.3, share=0.8, top_k=top_k)

    own = problem.logits(problem.student)
    expected = (problem.weights * exact(own)).sum()
    close(terms[name], expected)
    close(loss, 0.7 * expected)
    jax.tree.map(close, gradients, problem.gradients(0.7 * slopes_of(exact, own)))


def test_chunk_size_never_changes_any_loss(name):
    problem = Small()
    (expected, _), expected_gradients = problem.losses({name: 1.0}, temperature=2.0, chunk_tokens=4096)
    (loss, _), gradients = problem.losses({name: 1.0}, temperature=2.0, chunk_tokens=6)
    close(loss, expected, 1e-6)
    jax.tree.map(lambda a, e: close(a, e, 1e-6), gradients, expected_gradients)


def test_padding_never_changes_any_loss(name):
    """Neither that of the vocabulary, nor tokens without weight, nor more of them."""
    problem = Small()
    options = {"temperature": 2.0, "chunk_tokens": 6}
    (expected, _), expected_gradients = problem.losses({name: 1.0}, **options)

    def disturbed(head):
        hidden, table = np.array(head.hidden), np.array(head.table)
        hidden[0, -3:] *= -50
        table[problem.VOCAB :] = 1e3
        longer = np.pad(hidden, [(0, 0), (0, 4), (0, 0)], constant_values=7.0)
        return Head(longer, table)

    problem.student, problem.teacher = disturbed(problem.student), disturbed(problem.teacher)
    problem.targets = np.pad(problem.targets, [(0, 0), (0, 4)])
    problem.weights = np.pad(problem.weights, [(0, 0), (0, 4)])
    (loss, _), gradients = problem.losses({name: 1.0}, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradients.hidden[:, 7:], 0)
    np.testing.assert_array_equal(gradients.hidden[0, 4:], 0)
    close(gradients.hidden[:, :7], expected_gradients.hidden, 1e-6)
    np.testing.assert_array_equal(gradients.table[problem.VOCAB :], 0)
    close(gradients.table, expected_gradients.table, 1e-6)


def test_bfloat16_moves_every_loss_by_less_than_one_percent(name, formula, slopes_of):
    """And its gradients, as vectors, by less than three, against float64 of the float32 model."""
    problem, rounded = Small(), Small(dtype=jnp.bfloat16)
    (loss, _), gradients = rounded.losses({name: 1.0})
    teacher, own = problem.logits(problem.teacher), problem.logits(problem.student)

    def exact(student):
        return formula(name, student, teacher)

    close(loss, (problem.weights * exact(own)).sum(), 1e-2)
    for found, expected in zip(gradients, problem.gradients(slopes_of(exact, own)), strict=True):
        # Where p is close to q, rounding turns the sign that total variation's gradient has.
        assert np.linalg.norm(found - expected) < 3e-2 * np.linalg.norm(expected)


def test_all_outcomes_told_apart_are_the_whole_distribution():
    problem = Small()
    (expected, _), expected_gradients = problem.losses({"reverse_kl": 1.0}, temperature=2.0)
    (loss, _), gradients = problem.losses({"reverse_kl": 1.0}, temperature=2.0, top_k=problem.VOCAB)
    close(loss, expected)
    jax.tree.map(close, gradients, expected_gradients)


def test_what_was_kept_of_a_teacher_stands_for_it():
    """Its likeliest tokens at the temperature of the training."""
    problem = Small()
    logits = problem.logits(problem.teacher)
    kept = likeliest(jnp.asarray((logits - logits.max(-1, keepdims=True)) / 2, jnp.float32), 5)
    kept = kept._replace(ids=kept.ids.astype(np.uint16))
    options = {"temperature": 2.0, "chunk_tokens": 4}
    (expected, _), expected_gradients = problem.losses({"reverse_kl": 1.0}, top_k=5, **options)
    (loss, _), gradients = problem.losses({"reverse_kl": 1.0}, teachers=(kept,), **options)
    close(loss, expected)
    jax.tree.map(close, gradients, expected_gradients)


def test_draws_estimate_the_forward_kl_without_bias():
    """A z-test over many keys of the loss and of its gradients."""
    problem = Small()
    (value, _), gradient = problem.losses({"forward_kl": 1.0})
    logits = centred(jnp.asarray(problem.logits(problem.teacher), jnp.float32))

    def estimate(key):
        def loss(student):
            return vocabulary_loss(
                student, problem.targets, problem.weights, vocab_size=problem.VOCAB,
                coefficients={"forward_kl": 1.0}, teachers=(drawn(logits, 4, key),), chunk_tokens=8,
            )[0]  # fmt: skip

        return jax.value_and_grad(loss)(problem.student)

    found = jax.jit(lambda keys: jax.lax.map(estimate, keys))(jax.random.split(jax.random.key(0), 1000))
    for draws, expected in zip(jax.tree.leaves(found), jax.tree.leaves((value, gradient)), strict=True):
        error = np.std(draws, 0, ddof=1) / np.sqrt(len(draws))
        assert (np.abs(np.mean(draws, 0) - expected) < 4.5 * error + 1e-5).all()
        assert error.max() > 0


def test_weights_and_temperatures_that_are_traced_give_what_plain_ones_do():
    problem = Small()
    (expected, terms), expected_gradients = problem.losses(
        {"cross_entropy": 0.3, "reverse_kl": 0.7}, temperature=1.5
    )

    @jax.jit
    def traced(own, other, temperature):
        def loss(student):
            return vocabulary_loss(
                student, problem.targets, problem.weights, vocab_size=problem.VOCAB,
                coefficients={"cross_entropy": own, "reverse_kl": other}, teachers=(problem.teacher,),
                temperature=temperature,
            )  # fmt: skip

        return jax.value_and_grad(loss, has_aux=True)(problem.student)

    (loss, found), gradients = traced(0.3, 0.7, 1.5)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, e: close(a, e, 1e-6), (found, gradients), (terms, expected_gradients))
    (none, _), still = traced(0.0, 0.0, 1.5)
    assert none == 0
    assert not any(np.any(g) for g in still)


def test_several_teachers_are_the_weighted_sum_of_each():
    problem, other = Small(), Small(seed=1)
    logits = centred(jnp.asarray(problem.logits(other.teacher), jnp.float32))
    teachers = (problem.teacher, other.teacher, likeliest(logits, 5))
    shares, options = (0.5, 0.2, 0.3), {"chunk_tokens": 6}
    (loss, terms), gradients = problem.losses(
        {"reverse_kl": 1.0}, teachers=teachers, shares=shares, **options
    )
    apart = [problem.losses({"reverse_kl": 1.0}, teachers=(each,), **options) for each in teachers]
    close(loss, sum(share * value for share, ((value, _), _) in zip(shares, apart, strict=True)))
    assert terms["reverse_kl"] == loss
    expected = jax.tree.map(
        lambda *each: sum(share * np.asarray(g) for share, g in zip(shares, each, strict=True)),
        *(own for _, own in apart),
    )
    jax.tree.map(close, gradients, expected)


def test_all_losses_together_are_their_weighted_sum(formula):
    problem = Small()
    weights = {"cross_entropy": 0.2} | {name: 0.1 + 0.1 * i for i, name in enumerate(LOSSES)}
    (loss, terms), _ = problem.losses(weights, temperature=2.0)
    assert terms.keys() == weights.keys()
    student, teacher = problem.logits(problem.student), problem.logits(problem.teacher)
    for name in LOSSES:
        exact = (problem.weights * formula(name, student, teacher, temperature=2.0)).sum()
        np.testing.assert_allclose(terms[name], exact, rtol=1e-5)
    np.testing.assert_allclose(loss, sum(weights[name] * terms[name] for name in weights), rtol=1e-6)


def sharded(problem, config: Mesh, **options):
    """The compiled gradient on a mesh of eight devices, and its arguments."""
    mesh = make_mesh(config)
    axes = PartitionSpec(BATCH_AXES)
    table = PartitionSpec("tensor", "fsdp")

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    heads = [Head(place(h.hidden, axes), place(h.table, table)) for h in (problem.student, problem.teacher)]
    numbers = place(problem.targets, axes), place(problem.weights, axes)

    def loss(student, teacher, targets, weights):
        return loss_of(student, targets, weights, teacher=teacher, **options)

    with jax.set_mesh(mesh):
        function = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*heads, *numbers).compile()
    return function, (*heads, *numbers)


@pytest.mark.parametrize("mesh", [Mesh(8, 1, 1), Mesh(2, 4, 1), Mesh(1, 8, 1), Mesh(2, 2, 2)], ids=str)
def test_eight_devices_equal_one(mesh):
    problem = Problem()
    options = MIXTURES["mixed"] | {"chunk_tokens": 4}
    (expected, _), expected_gradients = problem.value_and_gradients(teacher=problem.teacher, **options)
    function, arguments = sharded(problem, mesh, shards=8 // mesh.tensor, **options)
    (loss, _), gradients = function(*arguments)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, e: close(a, e, 1e-6), gradients, expected_gradients)


@pytest.mark.parametrize("mesh", [Mesh(8, 1, 1), Mesh(2, 4, 1)], ids=str)
def test_no_chunk_waits_for_other_devices(mesh):
    problem = Problem()
    function, _ = sharded(problem, mesh, shards=8, chunk_tokens=4, **MIXTURES["mixed"])
    body = bodies_of_loops(function.as_text())
    assert "dot(" in body
    assert not re.findall(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\S*\(", body)


@pytest.mark.parametrize("mesh", [Mesh(2, 4, 1), Mesh(2, 2, 2)], ids=str)
def test_each_table_is_gathered_once_and_along_its_width_alone(mesh):
    problem = Problem()
    function, _ = sharded(problem, mesh, shards=8 // mesh.tensor, chunk_tokens=4, **MIXTURES["mixed"])
    gathered = re.findall(r" = f32\[(\d+,\d+)\]\S* all-gather\(", function.as_text())
    rows = PADDED // mesh.tensor
    assert sorted(gathered) == [f"{rows},{WIDTH}", f"{rows},{TEACHER_WIDTH}"]


def bodies_of_loops(text: str) -> str:
    """The text of every computation that a while loop's body reaches."""
    computations = {
        match[1]: match[0] for match in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) \(.*?^}", text, re.S | re.M)
    }
    reached, waiting = set(), re.findall(r"body=%?([\w.-]+)", text)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", computations[name])
    return "\n".join(computations[name] for name in reached)


def test_memory_does_not_grow_with_the_scores():
    """More tokens cost their hidden states, not their scores."""

    def temporaries(batch):
        problem = Problem(batch=batch, seq=32)
        function = jax.jit(
            jax.value_and_grad(
                lambda s: problem.loss(s, teacher=problem.teacher, chunk_tokens=32, **MIXTURES["mixed"]),
                has_aux=True,
            )
        )
        return function.lower(problem.student).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(4), temporaries(32)
    more_tokens = (32 - 4) * 32
    assert large - small < more_tokens * 4 * 4 * (WIDTH + TEACHER_WIDTH)
    assert large - small < more_tokens * 4 * VOCAB / 2


def test_no_table_is_written_out_once_more_for_products_of_16_bits():
    def heads(rows, width):
        shape = jax.ShapeDtypeStruct
        return Head(shape((1, 64, width), jnp.bfloat16), shape((rows, width), jnp.float32))

    def loss(student, teacher, targets, weights):
        return vocabulary_loss(
            student, targets, weights, vocab_size=8192, coefficients={"forward_kl": 1.0},
            teachers=(teacher,), chunk_tokens=8,
        )[0]  # fmt: skip

    one, whole = heads(8192, 512), (1, 64)
    given = jax.ShapeDtypeStruct(whole, jnp.int32), jax.ShapeDtypeStruct(whole, jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(one, one, *given).compile()
    in_16_bits = 2 * 8192 * 512
    # Of both tables one each, and some chunks of scores.
    assert program.memory_analysis().temp_size_in_bytes < 3 * in_16_bits
