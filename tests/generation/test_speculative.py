import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.generation import Decoding, continuations, generate, generate_tokens, stream
from ragjax.generation.drafted import DraftedWriter, draft_lengths
from ragjax.generation.filters import Filters, filtered
from ragjax.generation.request import request
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [200, 3, 299]]


def variant(config, seed=1, **changes):
    config = replace(config, **changes)
    return Model(config, init_params(config, seed))


OPTIONS = Decoding(max_new_tokens=30, draft_tokens=2, log_probs=2)
"""One program serves all that differ from these by traced values."""


def told(found):
    return [(one.tokens.tolist(), one.ended) for one in found]


def test_greedy_tokens_and_their_log_probs_are_the_models_own(teacher, near):
    alone = continuations(teacher, PROMPTS, OPTIONS)
    for draft in (near, teacher):
        found = continuations(teacher, PROMPTS, OPTIONS, draft=draft)
        assert told(found) == told(alone)
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_allclose(other.log_probs, one.log_probs, atol=1e-4)
            assert [list(best) for best in other.alternatives] == [list(best) for best in one.alternatives]
    always = found[0].speculation
    assert always.accepted == always.drafted > 0
    assert always.acceptance == 1


def test_sequences_keep_different_parts_of_their_drafts(teacher, near):
    """So that each has its own place in the caches, which the other tests could not show if none had."""
    writer = DraftedWriter(teacher, near, request(teacher, PROMPTS, OPTIONS, None))
    assert len(set(writer.write(8).counts.tolist())) > 1
    found = writer.speculation
    assert 0 < found.accepted < found.drafted
    assert min(found.seconds, found.seconds_alone) > 0


def test_penalty_and_ends_hold_with_a_draft(teacher, near):
    options = replace(OPTIONS, repetition_penalty=1.4)
    free = continuations(teacher, PROMPTS, options)
    ends = tuple(int(one.tokens[7]) for one in free)
    ended = replace(options, stop_tokens=ends)
    assert told(continuations(teacher, PROMPTS, options, draft=near)) == told(free)
    found = told(continuations(teacher, PROMPTS, ended, draft=near))
    assert found == told(continuations(teacher, PROMPTS, ended))
    assert {why for _, why in found} == {"end_token"}


def test_other_options_compile_nothing(teacher, near, compiled):
    continuations(teacher, PROMPTS, OPTIONS, draft=near)
    compiled.clear()
    other = replace(
        OPTIONS, temperature=0.8, top_k=5, top_p=0.9, min_p=0.01, seed=3, stop_tokens=(5,), max_new_tokens=20
    )
    continuations(teacher, [[9, 8], [7] * 12, [6, 5]], other, draft=near)
    assert compiled == []


@pytest.fixture(scope="module")
def stranger(tiny_byte_model):
    """A draft of other geometry, which knows nothing of the model."""
    drawn = variant(tiny_byte_model.config, seed=3, layers=1, heads=2, mlp_width=20, positions=50)
    return replace(drawn, tokenizer=tiny_byte_model.tokenizer)


def test_text_is_streamed_and_cut_as_without_a_draft(tiny_byte_model, stranger):
    options = Decoding(max_new_tokens=30, stop_at_eos=False, draft_tokens=2)
    [whole] = generate(tiny_byte_model, ["the"], options)
    # Both kinds of its characters, which change in the middle of it.
    string = next(whole[i : i + 2] for i in range(3, len(whole)) if whole[i] != whole[i + 1])
    for each in (options, replace(options, stop=(string,))):
        [text] = generate(tiny_byte_model, ["the"], each)
        pieces = list(stream(tiny_byte_model, "the", each, draft=stranger))
        assert "".join(pieces) == text == generate(tiny_byte_model, ["the"], each, draft=stranger)[0]
        assert len(pieces) > 2
    assert text == whole[: whole.index(string)]


@pytest.fixture(scope="module")
def small(shaken):
    """A teacher over four tokens, and a draft whose distribution is another."""
    shape = {"vocab_size": 4, "positions": 16, "width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    model = variant(DecoderConfig(**shape, initializer_range=0.6), seed=3)
    return model, shaken(model, 0.3)


def exact(model, prompt, options, new):
    """Probability of every continuation of `new` tokens, from the model's whole scores."""
    texts = np.array(list(itertools.product(range(model.config.vocab_size), repeat=new)))
    scores = np.asarray(model(np.concatenate([np.tile(prompt, (len(texts), 1)), texts], 1)), np.float64)
    chance = np.ones(len(texts))
    for i in range(new):
        at = scores[:, len(prompt) - 1 + i]
        seen = np.zeros_like(at, bool)
        np.put_along_axis(seen, np.concatenate([np.tile(prompt, (len(texts), 1)), texts[:, :i]], 1), True, 1)
        penalty = options.repetition_penalty
        at = np.where(seen, np.where(at < 0, at * penalty, at / penalty), at) / options.temperature
        filters = Filters(np.int32(options.top_k), np.float32(options.top_p), np.float32(options.min_p))
        at = np.asarray(filtered(at.astype(np.float32), filters), np.float64)
        weights = np.exp(at - at.max(-1, keepdims=True))
        chance *= (weights / weights.sum(-1, keepdims=True))[np.arange(len(texts)), texts[:, i]]
    return chance


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        pytest.param({"temperature": 2.0, "top_k": 3, "top_p": 0.9}, marks=pytest.mark.slow),
        {"temperature": 0.8, "min_p": 0.2, "repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_draws_follow_the_models_distribution_over_whole_texts(small, fields):
    teacher, draft = small
    prompt, draws, new = [1, 3], 8_000, 5
    options = Decoding(max_new_tokens=new, seed=6, draft_tokens=2, adapt_draft=False, **fields)
    expected = exact(teacher, prompt, options, new) * draws
    found = continuations(teacher, [prompt] * draws, options, draft=draft)
    texts = np.stack([one.tokens for one in found])
    counts = np.bincount(texts @ 4 ** np.arange(new)[::-1], minlength=4**new)
    assert counts[expected == 0].sum() == 0
    # Rare texts together, so that every cell has draws enough for the statistic.
    rare = expected < 5
    cells = np.append(expected[~rare], expected[rare].sum())
    there = np.append(counts[~rare], counts[rare].sum())
    cells, there = cells[cells > 0], there[cells > 0]
    statistic, freedom = ((there - cells) ** 2 / cells).sum(), len(cells) - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
    assert 0.3 < found[0].speculation.acceptance < 0.95


def test_the_draft_alone_would_fail_that_test(small):
    """The statistic tells the draft's distribution from the teacher's."""
    options = Decoding(temperature=1.0)
    apart = np.abs(exact(small[0], [1, 3], options, 5) - exact(small[1], [1, 3], options, 5)).sum() / 2
    assert apart > 0.1


def test_a_seed_reproduces_whatever_lengths_the_drafts_have(small):
    """Also where it is left alone or taken up again by how long rounds happen to take."""
    teacher, draft = small
    options = Decoding(max_new_tokens=10, temperature=1.0, draft_tokens=2, adapt_draft=False, seed=4)
    shorter = replace(options, draft_tokens=1, adapt_draft=True)
    first, again, stranger = (
        [row.tolist() for row in generate_tokens(teacher, [[1], [2, 3], [0]], each, draft=draft)]
        for each in (options, shorter, replace(options, seed=5))
    )
    assert first == again != stranger


def test_a_mesh_changes_nothing(small):
    """Three prompts over two rows of devices, the heads over the tensor axis."""
    model, draft = small
    options = Decoding(max_new_tokens=10, draft_tokens=2, adapt_draft=False, repetition_penalty=1.2)
    mesh = make_mesh(Mesh(data=2, tensor=2), jax.devices()[:4])
    prompts = [[1], [2, 3, 1], [0]]
    alone = generate_tokens(model, prompts, options)
    split = generate_tokens(model, prompts, options, draft=draft, mesh=mesh)
    assert [row.tolist() for row in split] == [row.tolist() for row in alone]


@pytest.mark.parametrize(
    ("longest", "adapt", "lengths"), [(6, True, (0, 1, 2, 4, 6)), (1, True, (0, 1)), (5, False, (0, 5))]
)
def test_drafts_have_few_lengths(longest, adapt, lengths):
    assert draft_lengths(Decoding(draft_tokens=longest, adapt_draft=adapt)) == lengths


def test_all_that_keeps_a_draft_from_being_used_is_told(teacher, tiny_byte_model, stranger):
    with pytest.raises(InputError, match=r"(?s)300 tokens, the draft 257.*beams to 1"):
        generate_tokens(teacher, PROMPTS, max_new_tokens=3, draft=tiny_byte_model, beams=2)
    with pytest.raises(InputError, match="may have 53 tokens, the draft has 50 positions"):
        generate_tokens(tiny_byte_model, [[1] * 13], max_new_tokens=40, draft=stranger)
