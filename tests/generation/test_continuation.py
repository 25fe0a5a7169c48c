import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.generation import decoding, generate, generate_tokens, stream
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [200, 3, 299], [40, 41, 42, 43]]


def variant(config, seed=1, **changes):
    config = dataclasses.replace(config, **changes)
    return Model(config, init_params(config, seed))


def recomputed(model, prompt, new):
    """Greedy decoding that reads the whole text again for every token."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(np.argmax(whole_scores(model, ids))))
    return ids[len(prompt) :]


def whole_scores(model, ids):
    """Scores after the last of `ids`, without a cache; what is filled in behind cannot be seen."""
    filled = ids + [0] * (model.config.positions - len(ids))
    return np.asarray(model(np.array([filled]))[0, len(ids) - 1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"tied": False}, {"layers": 5, "heads": 2, "mlp_width": 50, "scale_attention_by_layer": True}],
    ids=["plain", "untied", "odd"],
)
def test_greedy_equals_transformers_for_ragged_prompts(tiny_config, as_torch, changes):
    torch = pytest.importorskip("torch")
    model = variant(tiny_config, **changes)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    expected = as_torch(model).generate(
        ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None
    )[:, longest:]
    found = generate_tokens(model, PROMPTS, max_new_tokens=20)
    assert [row.tolist() for row in found] == expected.tolist()


@pytest.mark.parametrize("windows", [(3,), (0, 4), (5, 0, 2)])
def test_windows_hold_with_the_cache(tiny_config, windows):
    model = variant(tiny_config, windows=windows)
    found = generate_tokens(model, PROMPTS[:3], max_new_tokens=16)
    assert [row.tolist() for row in found] == [recomputed(model, p, 16) for p in PROMPTS[:3]]


@pytest.mark.parametrize("windows", [(), (0, 4)])
def test_cached_scores_equal_recomputed_ones(tiny_config, windows):
    model = variant(tiny_config, windows=windows)
    prompt = [[9, 8, 7, 6, 5]]
    padded = np.array([[0] * 3 + prompt[0]], np.int32)
    settings = decoding.Settings(np.float32(0), jax.random.key(0), np.array([-1], np.int32))
    layers = decoding.unstack(model.params, config=model.config)
    state = decoding.prefill(
        model.params, padded, np.array([3], np.int32), settings, config=model.config, room=16
    )
    for step in range(1, 16):
        scores, _ = decoding.advance(model.params, layers, state, config=model.config)
        whole = prompt[0] + np.asarray(state.tokens)[0, :step].tolist()
        np.testing.assert_allclose(scores[0], whole_scores(model, whole), atol=1e-4)
        until = np.int32(step + 1)
        state = decoding.decode(model.params, layers, state, until, settings, config=model.config)


def test_a_second_prompt_of_like_size_compiles_nothing(tiny_byte_model):
    model = tiny_byte_model
    generate(model, ["a prompt"], max_new_tokens=20)
    programs = (decoding.prefill, decoding.decode, decoding.unstack)
    before = [program._cache_size() for program in programs]
    generate(model, ["other"], max_new_tokens=30)
    generate(model, ["one more"], max_new_tokens=17, temperature=0.7, seed=3, stop_at_eos=False)
    list(stream(model, "streamed", max_new_tokens=18))
    assert [program._cache_size() for program in programs] == before


def test_decoding_stops_where_every_sequence_has_ended(tiny_config):
    free = generate_tokens(variant(tiny_config), PROMPTS, max_new_tokens=20)
    # The token that comes third for one prompt ends texts from here on.
    end = int(free[1][2])
    ended = generate_tokens(variant(tiny_config, eos_token=end), PROMPTS, max_new_tokens=20)
    for before, after in zip(free, ended, strict=True):
        places = np.flatnonzero(before == end)
        assert after.tolist() == before[: places[0] + 1 if len(places) else None].tolist()
    assert len(ended[1]) <= 3
    unstopped = generate_tokens(
        variant(tiny_config, eos_token=end), PROMPTS, max_new_tokens=20, stop_at_eos=False
    )
    assert [row.tolist() for row in unstopped] == [row.tolist() for row in free]


def test_the_loop_itself_ends_early(tiny_config):
    model = variant(tiny_config)
    first = int(generate_tokens(model, [PROMPTS[0]], max_new_tokens=1)[0][0])
    settings = decoding.Settings(np.float32(0), jax.random.key(0), np.array([first], np.int32))
    config = model.config
    state = decoding.prefill(
        model.params, np.array([PROMPTS[0]]), np.zeros(1, np.int32), settings, config=config, room=8
    )
    layers = decoding.unstack(model.params, config=config)
    state = decoding.decode(model.params, layers, state, np.int32(8), settings, config=config)
    assert int(state.step) == 1


def test_any_of_several_end_tokens_ends_a_text(tiny_config):
    free = generate_tokens(variant(tiny_config), PROMPTS, max_new_tokens=20)[1]
    ends = (int(free[3]), int(free[1]))
    found = generate_tokens(variant(tiny_config, eos_token=ends), PROMPTS, max_new_tokens=20)[1]
    assert found[-1] in ends
    assert not set(found[:-1].tolist()) & set(ends)


def test_sampling_repeats_with_the_seed_and_not_without(tiny_config):
    model = variant(tiny_config)

    def draw(seed):
        rows = generate_tokens(model, PROMPTS, max_new_tokens=20, temperature=1.0, seed=seed)
        return [row.tolist() for row in rows]

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)


def test_what_a_prompt_draws_does_not_depend_on_the_batch(tiny_config):
    model = variant(tiny_config)
    alone = generate_tokens(model, PROMPTS[:1], temperature=1.0, max_new_tokens=9)[0]
    together = generate_tokens(model, PROMPTS, temperature=1.0, max_new_tokens=20)[0]
    assert alone.tolist() == together[:9].tolist()


def test_draws_follow_the_softmax_and_stay_inside_the_vocabulary():
    config = DecoderConfig(
        vocab_size=6, positions=8, width=16, layers=1, heads=2, mlp_width=16, initializer_range=0.5
    )
    model = Model(config, init_params(config, seed=3))
    prompt, draws, temperature = [1, 4], 4000, 2.0
    scores = np.asarray(model(np.array([prompt]))[0, -1], np.float64) / temperature
    expected = np.exp(scores - scores.max())
    expected *= draws / expected.sum()
    tokens = np.concatenate(
        generate_tokens(model, [prompt] * draws, max_new_tokens=2, temperature=temperature, seed=11)
    ).reshape(draws, 2)
    assert tokens.max() < config.vocab_size
    counts = np.bincount(tokens[:, 0], minlength=6)
    # 99.9th percentile of chi-square with 5 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_greedy_is_the_limit_of_low_temperature(tiny_config):
    model = variant(tiny_config)
    greedy = generate_tokens(model, PROMPTS, max_new_tokens=20)
    cold = generate_tokens(model, PROMPTS, max_new_tokens=20, temperature=1e-4)
    assert [row.tolist() for row in greedy] == [row.tolist() for row in cold]


def test_a_prompt_may_fill_all_positions_but_one(tiny_config):
    model = variant(tiny_config)
    prompt = list(range(63))
    assert generate_tokens(model, [prompt], max_new_tokens=1)[0].tolist() == recomputed(model, prompt, 1)


def test_everything_wrong_with_a_request_is_named_at_once(tiny_config):
    with pytest.raises(InputError) as error:
        generate_tokens(
            variant(tiny_config), [[1] * 60, [], [300, -1], [2]], max_new_tokens=5, temperature=-1.0
        )
    message = str(error.value)
    assert "prompt 0 has 60 tokens and 5 new ones make 65, the model has 64 positions" in message
    assert "at most 4 new tokens" in message
    assert "prompt 1 is empty" in message
    assert "prompt 2 holds [300, -1], the vocabulary ends at 299" in message
    assert "temperature must be 0 (greedy) or above, found -1.0" in message
    assert "prompt 3" not in message


def test_an_empty_prompt_starts_from_the_token_that_begins_a_text(tiny_config):
    for changes, start in (({"bos_token": 7, "eos_token": 9}, 7), ({"eos_token": (9, 8)}, 9)):
        model = variant(tiny_config, **changes)
        options = {"max_new_tokens": 6, "stop_at_eos": False}
        empty, given = generate_tokens(model, [[], [start]], **options)
        assert empty.tolist() == given.tolist()


def test_text_needs_a_tokenizer(tiny_model):
    with pytest.raises(InputError, match="tokenizer"):
        generate(tiny_model, ["hello"])


def test_no_prompts_give_no_texts(tiny_byte_model):
    assert generate(tiny_byte_model, []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_streamed_pieces_make_the_generated_text(tiny_byte_model, temperature):
    options = {"max_new_tokens": 40, "temperature": temperature, "seed": 2}
    pieces = list(stream(tiny_byte_model, "naïve ", **options))
    assert "".join(pieces) == generate(tiny_byte_model, ["naïve "], **options)[0]
    assert all(pieces)


def test_a_stream_refuses_at_once(tiny_byte_model):
    with pytest.raises(InputError, match="positions"):
        stream(tiny_byte_model, "x" * 100)


def test_a_row_draws_by_its_number_in_whatever_batch_it_comes(tiny_byte_model):
    prompts = [list(b"ab"), list(b"abcdefghijk"), list(b"x")]
    asked = partial(generate_tokens, tiny_byte_model, max_new_tokens=8, temperature=1.0, seed=4)
    whole = [tokens.tolist() for tokens in asked(prompts)]
    assert [tokens.tolist() for tokens in asked(prompts, rows=[0, 1, 2])] == whole
    mixed = [tokens.tolist() for tokens in asked([prompts[2], prompts[0]], rows=[2, 0])]
    assert mixed == [whole[2], whole[0]]
    assert asked([prompts[2]], rows=[7])[0].tolist() != whole[2]
