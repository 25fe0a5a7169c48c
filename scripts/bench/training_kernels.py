"""How fast the parts of a training step are: as XLA makes them, and by the kernels for CPU.

The products of GPT-2 124M's layers, for 1,024 tokens in all, in float32; attention of its heads, without and
with its backward pass; and the losses over the vocabulary of a student and its teacher, with the gradients of
hidden states and table. XLA's are what the same functions compile to where there are no kernels. Medians of
the rounds, in which both take turns; the ratio is the median of quotients within a round. GFLOP/s count no
score above the diagonal. Needs `pip install '.[cpu]'`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from unittest import mock

import jax
import jax.numpy as jnp
from turns import in_turns, machine, waited

from ragjax.distillation.vocabulary import Head, vocabulary_loss
from ragjax.kernels import machine as kernels_machine
from ragjax.models.attention import causal_mask
from ragjax.models.causal_attention import causal_attend
from ragjax.models.products import product, product_with_transposed, weight_gradient

TOKENS, WIDTH, MLP, HEADS, HEAD, VOCAB, PADDED = 1024, 768, 3072, 12, 64, 50_257, 50_304
LAYERS = {"square": (WIDTH, WIDTH), "up": (WIDTH, MLP), "down": (MLP, WIDTH)}
"""Inputs and outputs."""
TEXTS = {"1 x 1,024": (1, 1024), "2 x 512": (2, 512)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="times each is measured (default 9)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    found = {name: compare(*part, rounds=options.rounds) for name, part in parts().items()}
    print(json.dumps(found | {"machine": machine()}) if options.json else table(found))


def parts() -> dict[str, tuple[Callable, tuple[jax.Array, ...], float]]:
    """What is timed: a function, what it is given, and how many GFLOP it makes."""
    found = {}
    for name, (inputs, outputs) in LAYERS.items():
        x, kernel, gradient = normal(TOKENS, inputs), normal(inputs, outputs), normal(TOKENS, outputs)
        work = 2e-9 * TOKENS * inputs * outputs
        found[f"{name}, forward"] = (product, (x, kernel), work)
        found[f"{name}, to inputs"] = (product_with_transposed, (gradient, kernel), work)
        found[f"{name}, to weights"] = (weight_gradient, (x, gradient), work)
    for name, (batch, length) in TEXTS.items():
        heads = [normal(batch, length, HEADS, HEAD) for _ in range(4)]
        work = 2e-9 * batch * length**2 * HEADS * HEAD
        found[f"attention, {name}"] = (attention(length), tuple(heads[:3]), work)
        found[f"attention and back, {name}"] = (attention_and_back(length), tuple(heads), 3.5 * work)
    heads = [normal(1, TOKENS, WIDTH), normal(PADDED, WIDTH)] * 2
    work = 2e-9 * TOKENS * WIDTH * PADDED
    found["cross-entropy and KL"] = (losses, tuple(heads), 4 * work)
    found["cross-entropy"] = (cross_entropy, tuple(heads[:2]), 3 * work)
    return found


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape) / shape[-1] ** 0.5


def attention(length: int) -> Callable:
    places = jnp.arange(length)[None]

    def attend(query, key, value):
        mask = causal_mask(places, places)
        return causal_attend(query, key, value, mask=mask, scale=HEAD**-0.5)

    return attend


def attention_and_back(length: int) -> Callable:
    def both(query, key, value, gradient):
        out, pull = jax.vjp(attention(length), query, key, value)
        return out, pull(gradient)

    return both


def losses(hidden, tokens, teacher_hidden, teacher_tokens):
    teachers = (Head(teacher_hidden, teacher_tokens),)
    return differentiated(hidden, tokens, {"cross_entropy": 0.1, "forward_kl": 0.9}, teachers)


def cross_entropy(hidden, tokens):
    return differentiated(hidden, tokens, {"cross_entropy": 1.0}, ())


def differentiated(hidden, tokens, coefficients, teachers):
    def loss(student):
        targets = jnp.arange(TOKENS)[None] % VOCAB
        weights = jnp.full((1, TOKENS), 1 / TOKENS)
        return vocabulary_loss(
            student, targets, weights, vocab_size=VOCAB, coefficients=coefficients, teachers=teachers
        )[0]

    return jax.value_and_grad(loss)(Head(hidden, tokens))


def compare(function: Callable, given: tuple, work: float, *, rounds: int) -> dict[str, float]:
    """Both in turns: milliseconds, and GFLOP/s of the products."""
    programs = {"kernel": jax.jit(lambda *given: function(*given)).lower(*given).compile()}
    with mock.patch.object(kernels_machine, "compiles", return_value=False):
        programs["xla"] = jax.jit(lambda *given: function(*given)).lower(*given).compile()
    calls = {name: partial(waited, program, *given) for name, program in programs.items()}
    taken = in_turns(calls, rounds)
    ratio = median(a / b for a, b in zip(taken["xla"], taken["kernel"], strict=True))
    times = {name: median(each) for name, each in taken.items()}
    rates = {f"{name}_gflops": work / each for name, each in times.items()}
    return {f"{name}_ms": 1e3 * each for name, each in times.items()} | rates | {"times": ratio}


def table(found: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':32}{'XLA ms':>10}{'GFLOP/s':>10}{'kernel ms':>11}{'GFLOP/s':>10}{'times':>8}"]
    for name, row in found.items():
        figures = (row["xla_ms"], row["xla_gflops"], row["kernel_ms"], row["kernel_gflops"])
        widths = zip(figures, (10, 10, 11, 10), (1, 0, 1, 0), strict=True)
        cells = "".join(f"{value:>{width}.{digits}f}" for value, width, digits in widths)
        lines.append(f"{name:32}{cells}{row['times']:>8.2f}")
    return "\n".join([*lines, machine()])


if __name__ == "__main__":
    main()
