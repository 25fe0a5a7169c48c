"""What is kept of a teacher is what it says of the text, whatever the chunks, the devices and the rows."""

import dataclasses

import jax
import numpy as np
import pytest

from ragjax.data.batches import Batches
from ragjax.distillation.known import Drawn, Likeliest
from ragjax.models.run import run_decoder

WARM = {"dtype": "float32", "temperature": 2.0}


@pytest.fixture(scope="module")
def exact(corpus, teacher):
    """log p of every token at temperature 2, of windows 3 to 10, by numpy in float64."""
    batches = Batches(corpus=corpus, batch_size=8, sequence_length=16, fixed_cuts=True)
    scores = np.asarray(teacher(batches.at(np.arange(3, 11)).tokens), np.float64) / 2
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.mark.parametrize(("devices", "chunk_tokens"), [(1, 512), (1, 24), (8, 3)])
def test_the_likeliest_and_the_rest_are_those_of_the_teacher(making, exact, kept, devices, chunk_tokens):
    made = making(kept("likeliest", 5, **WARM), devices=devices, chunk_tokens=chunk_tokens)
    known = jax.device_get(made.ask(np.arange(3, 11)))
    assert isinstance(known, Likeliest)
    assert [x.dtype for x in known] == [np.uint16, np.float32]
    order = np.argsort(-exact, -1)
    np.testing.assert_array_equal(known.ids, order[..., :5])
    rest = np.log(np.exp(np.take_along_axis(exact, order[..., 5:], -1)).sum(-1, keepdims=True))
    expected = np.concatenate([np.take_along_axis(exact, order[..., :5], -1), rest], -1)
    np.testing.assert_allclose(known.log_probs, expected, atol=1e-5)


def test_draws_belong_to_their_place_in_the_text(making, exact, kept):
    made = making(kept("drawn", 40, seed=7, **WARM))
    known = jax.device_get(made.ask(np.arange(3, 11)))
    assert isinstance(known, Drawn)
    np.testing.assert_allclose(known.log_probs, np.take_along_axis(exact, known.ids, -1), atol=1e-5)
    # The mean of log p over draws estimates minus the entropy.
    entropy, spread = (np.exp(exact) * exact).sum(-1), exact.std()
    assert abs((known.log_probs.mean(-1) - entropy).mean()) < 5 * spread / np.sqrt(known.ids.size)
    assert len({row.tobytes() for row in known.ids.reshape(-1, 40)}) == 8 * 16
    moved = making(kept("drawn", 40, seed=7, **WARM), devices=4, chunk_tokens=5).ask(np.arange(10, 2, -1))
    np.testing.assert_array_equal(np.asarray(moved.ids)[::-1], known.ids)
    other = making(kept("drawn", 40, seed=8, **WARM)).ask(np.arange(3, 11))
    assert np.mean(np.asarray(other.ids) == known.ids) < 0.1


def test_documents_that_are_isolated_are_so_for_the_teacher(making, corpus, teacher, kept):
    made = making(kept("likeliest", 299, **WARM), isolate=True)
    known = jax.device_get(made.ask(np.arange(3, 11)))
    batch = Batches(
        corpus=corpus, batch_size=8, sequence_length=16, fixed_cuts=True, isolate_documents=True
    ).at(np.arange(3, 11))
    assert batch.segments.max() > 0
    hidden = run_decoder(
        teacher.config, teacher.params, batch.tokens, positions=batch.positions, segments=batch.segments
    ).hidden
    scores = np.asarray(hidden, np.float64) @ np.asarray(teacher.params["embedding"]["tokens"][:300].T) / 2
    expected = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        known.log_probs[..., :299], np.take_along_axis(expected, known.ids.astype(int), -1), atol=1e-5
    )


def test_types_hold_what_is_stored_in_them(making, teacher, kept):
    """No logarithm is infinite, also where nothing is left for the rest, and large vocabularies have room."""
    known = jax.device_get(making(kept("likeliest", 300, dtype="float16", temperature=1.0)).ask(np.arange(8)))
    assert known.log_probs.dtype == np.float16
    assert np.isfinite(known.log_probs).all()
    assert (known.log_probs[..., -1] < -60_000).all()
    held = making(kept("likeliest", 64, dtype="float16", temperature=1.0)).held
    assert held.bytes_per_token == 64 * 2 + 65 * 2
    assert dataclasses.replace(held, vocab_size=1 << 16).bytes_per_token == 64 * 2 + 65 * 2
    assert dataclasses.replace(held, vocab_size=(1 << 16) + 1).bytes_per_token == 64 * 4 + 65 * 2
    assert making(kept("drawn", 64, dtype="float32", temperature=1.0)).held.bytes_per_token == 64 * (2 + 4)
