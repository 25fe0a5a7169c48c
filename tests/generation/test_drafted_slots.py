"""Requests that join and leave a batch in which a draft helps write what each writes alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.config import Decoding, Mesh
from ragjax.errors import InputError
from ragjax.generation.continuation import continuations
from ragjax.generation.model_slots import ModelSlots
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh

GREEDY, DRAWN = (0, 2, 6), (1, 3, 4, 7)
"""Numbers of the requests."""
ORDER = (6, 1, 0, 7, 4, 3, 5, 2)


def costing(slots, monkeypatch, costs):
    """Has rounds of 0, 1, 2 drafted tokens cost so much, whatever they were measured to cost."""
    costs = np.asarray(costs, np.float32)
    monkeypatch.setattr(slots._table, "_costs", {False: costs, True: costs})


@pytest.fixture(scope="module")
def slots(teacher, near):
    made = ModelSlots(teacher, draft=near, draft_tokens=2, count=3, room=64)
    made.warm()
    return made


@pytest.fixture(scope="module")
def written(slots, served):
    """Tokens and log-probs of all requests, a few tokens at a time."""
    return served(slots, ORDER, 5)


def test_greedy_tokens_and_their_log_probs_are_the_models_own(teacher, asked, written):
    tokens, told = written
    for number in GREEDY:
        prompt, options = asked[number]
        [alone] = continuations(teacher, [prompt], options)
        assert tokens[number] == alone.tokens.tolist(), number
        if alone.log_probs is not None:
            assert told[number] == pytest.approx(alone.log_probs.tolist(), abs=1e-5)


def test_draws_are_those_of_the_same_seed_whoever_else_is_there(slots, served, written, compiled):
    for number in DRAWN:
        assert served(slots, [number])[0][number] == written[0][number], number
    assert compiled == []


def test_draws_are_those_of_the_model_and_its_draft_alone(slots, teacher, near):
    """In the program of test_speculative, whose lengths of drafts are other ones."""
    options = Decoding(max_new_tokens=30, draft_tokens=2, log_probs=2, temperature=1.0, seed=2)
    prompts = [[5], list(range(7, 18)), [200, 3, 299]]
    alone = continuations(teacher, prompts, options, draft=near)
    written = [[], [], []]
    for slot, prompt in enumerate(prompts):
        slots.join(slot, prompt, options, row=slot)
    while (new := slots.step(3).tokens).max() >= 0:
        for slot, row in enumerate(new):
            written[slot] += row[row >= 0].tolist()
    for slot in range(3):
        slots.leave(slot)
    assert written == [each.tokens.tolist() for each in alone]


@pytest.mark.parametrize("cheap", [0, -1])
def test_lengths_of_drafts_change_nothing(slots, served, written, monkeypatch, cheap):
    """Neither where no token is drafted, nor where as many as may be are."""
    costs = np.full(3, 1e6)
    costs[cheap] = 1
    costing(slots, monkeypatch, costs)
    assert served(slots, ORDER)[0] == written[0]


def test_it_is_told_how_the_drafts_did(slots, asked, monkeypatch):
    costing(slots, monkeypatch, [1, 1.1, 1.2])
    for slot, number in ((0, 0), (2, 1)):
        slots.join(slot, asked[number][0], replace(asked[number][1], max_new_tokens=40))
    assert slots.step().drafts is None
    sums = np.zeros((3, 3), int)
    while (tokens := slots.step(6)).drafts.passes.any():
        sums += tokens.drafts
        going = tokens.drafts.passes > 0
        assert (tokens.drafts.accepted <= tokens.drafts.drafted).all()
        # Each pass keeps what it keeps and adds one of its own, but for what the end cuts off.
        added, cut = (tokens.tokens >= 0).sum(1), tokens.drafts.passes + tokens.drafts.accepted
        assert ((added <= cut) & (cut - added <= 2))[going].all()
    passes, drafted, accepted = sums
    assert (passes[1], drafted[1]) == (0, 0)
    assert (passes[[0, 2]] < 39).all()
    assert (accepted[[0, 2]] > 0).all()
    assert accepted.sum() < drafted.sum()
    slots.leave(0)
    slots.leave(2)


@pytest.mark.parametrize(("seed", "length"), [(1, 2), (9, 0)])
def test_drafts_are_as_long_as_they_are_kept(teacher, asked, seed, length, monkeypatch):
    """Of the model itself, and of a stranger, whose passes take as long."""
    slots = ModelSlots(
        teacher, draft=replace(teacher, params=init_params(teacher.config, seed)), draft_tokens=2, count=3,
        room=64,
    )  # fmt: skip
    costing(slots, monkeypatch, [1, 1.5, 2])
    for slot, number in ((0, 0), (1, 2)):
        slots.join(slot, asked[number][0], replace(asked[number][1], max_new_tokens=50))
    drafts = [slots.step().drafts for _ in range(14)][-3:]
    assert [(each.drafted[:2] / each.passes[:2]).tolist() for each in drafts] == [[length] * 2] * 3


def test_a_slot_that_is_left_early_serves_the_next_unharmed(slots, asked, served, written):
    slots.join(0, *asked[4], row=4)
    slots.join(2, *asked[1], row=1)
    slots.step()
    slots.step(4)
    slots.leave(0)
    slots.leave(2)
    assert served(slots, [2, 0])[0][2] == written[0][2]
    assert (slots.step().tokens == -1).all()


@pytest.mark.slow
def test_slots_may_lie_on_a_mesh(teacher, near, served, written):
    mesh = make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4])
    slots = ModelSlots(teacher, draft=near, draft_tokens=2, count=2, room=64, mesh=mesh)
    order = (0, 1, 3)
    assert served(slots, order)[0] == {number: written[0][number] for number in order}


def test_a_draft_that_cannot_speak_for_the_model_is_refused(teacher, tiny_byte_model):
    with pytest.raises(InputError, match="300 tokens, the draft 257"):
        ModelSlots(teacher, draft=tiny_byte_model, room=32)
