import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.generation import (
    Decoding,
    continuation,
    continuations,
    decoding,
    generate,
    generate_tokens,
    stream,
    writer,
)
from ragjax.generation.network import unstack
from ragjax.generation.request import request
from ragjax.generation.writer import ModelWriter
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [200, 3, 299], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def variant(random_model):
    """Makes a random model of a config but for some of its fields."""
    return lambda config, seed=1, **changes: random_model(dataclasses.replace(config, **changes), seed)


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
def test_greedy_equals_transformers_for_ragged_prompts(tiny_config, as_torch, changes, variant):
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


@pytest.mark.parametrize(
    ("seconds", "begun"), [(0.0, [1, 2, 3, 4, 5, 6, 7, 8]), (1e9, [1, 2, 3, 5, 7, 8])], ids=["slow", "fast"]
)
def test_the_device_writes_on_while_a_reader_is_told(tiny_model, monkeypatch, seconds, begun):
    """One token ahead, or as many as come while the reader waits anyhow, at most twice as many as before."""
    seen, go_on = [], writer._go_on
    monkeypatch.setattr(
        writer, "_go_on", lambda *given, **named: (seen.append(int(given[2])), go_on(*given, **named))[1]
    )
    monkeypatch.setattr(continuation, "_SECONDS_BETWEEN_LOOKS", seconds)
    asked = Decoding(max_new_tokens=8, stop_at_eos=False)
    [alone] = generate_tokens(tiny_model, [[5, 6]], asked)
    assert seen == [8]
    seen.clear()
    [told] = continuations(tiny_model, [[5, 6]], asked, on_text=lambda row, piece: None)
    assert seen == begun
    assert told.tokens.tolist() == alone.tolist()


@pytest.mark.parametrize("heads", [{}, {"kv_heads": 2}], ids=["own", "shared"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_copies_no_cache(tiny_config, variant, users_flags, batch, heads):
    room = 1024
    model = variant(tiny_config, positions=2 * room, **heads)
    asked = request(model, [[5, 6]] * batch, Decoding(max_new_tokens=room), None)
    begun = ModelWriter(model, asked)
    given = (*begun._network, begun._state, np.int32(9), begun._settings)
    program = decoding.decode.lower(*given, config=model.config).compile(users_flags)
    assert program.memory_analysis().temp_size_in_bytes < begun._state.cache[0].key.nbytes


@pytest.mark.parametrize("windows", [(3,), (0, 4), (5, 0, 2)])
def test_windows_hold_with_the_cache(tiny_config, windows, variant):
    model = variant(tiny_config, windows=windows)
    found = generate_tokens(model, PROMPTS[:3], max_new_tokens=16)
    assert [row.tolist() for row in found] == [recomputed(model, p, 16) for p in PROMPTS[:3]]


@pytest.mark.parametrize("windows", [(), (0, 4)])
def test_cached_scores_equal_recomputed_ones(tiny_config, windows, variant):
    model = variant(tiny_config, windows=windows)
    prompt = [[9, 8, 7, 6, 5]]
    padded = np.array([[0] * 3 + prompt[0]], np.int32)
    settings = decoding.Settings(np.float32(0), jax.random.key(0), np.array([-1], np.int32))
    layers = unstack(model.params, config=model.config)
    state = decoding.prefill(
        model.params, padded, np.array([3], np.int32), settings, config=model.config, room=16
    )
    for step in range(1, 16):
        scores, _ = decoding.advance(model.params, layers, state, config=model.config)
        whole = prompt[0] + np.asarray(state.tokens)[0, :step].tolist()
        np.testing.assert_allclose(scores[0], whole_scores(model, whole), atol=1e-4)
        until = np.int32(step + 1)
        state = decoding.decode(model.params, layers, state, until, settings, config=model.config)


def test_a_second_prompt_of_like_size_compiles_nothing(tiny_byte_model, compiled):
    model = tiny_byte_model
    # Whatever other tests have compiled.
    jax.clear_caches()
    generate(model, ["a prompt"], max_new_tokens=20, stop=("\0",))
    assert compiled
    compiled.clear()
    generate(model, ["other"], max_new_tokens=30)
    generate(model, ["one more"], max_new_tokens=17, temperature=0.7, seed=3, stop_at_eos=False)
    drawn = Decoding(
        temperature=1.3, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.2, max_new_tokens=25
    )
    [text] = generate(model, ["again"], drawn)
    generate(model, ["ended"], drawn, stop_tokens=(5, 6, 7), stop=(text[3], "b"))
    list(stream(model, "streamed", max_new_tokens=18))
    assert compiled == []


def test_decoding_stops_where_every_sequence_has_ended(tiny_config, variant):
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


def test_the_loop_itself_ends_early(tiny_config, variant):
    model = variant(tiny_config)
    first = int(generate_tokens(model, [PROMPTS[0]], max_new_tokens=1)[0][0])
    settings = decoding.Settings(np.float32(0), jax.random.key(0), np.array([first], np.int32))
    config = model.config
    state = decoding.prefill(
        model.params, np.array([PROMPTS[0]]), np.zeros(1, np.int32), settings, config=config, room=8
    )
    layers = unstack(model.params, config=config)
    state = decoding.decode(model.params, layers, state, np.int32(8), settings, config=config)
    assert int(state.step) == 1


def test_any_of_several_end_tokens_ends_a_text(tiny_config, variant):
    free = generate_tokens(variant(tiny_config), PROMPTS, max_new_tokens=20)[1]
    ends = (int(free[3]), int(free[1]))
    found = generate_tokens(variant(tiny_config, eos_token=ends), PROMPTS, max_new_tokens=20)[1]
    assert found[-1] in ends
    assert not set(found[:-1].tolist()) & set(ends)


def test_sampling_repeats_with_the_seed_and_not_without(tiny_config, variant):
    model = variant(tiny_config)

    def draw(seed):
        rows = generate_tokens(model, PROMPTS, max_new_tokens=20, temperature=1.0, seed=seed)
        return [row.tolist() for row in rows]

    assert draw(4) == draw(4)
    assert draw(4) != draw(5)


def test_what_a_prompt_draws_does_not_depend_on_the_batch(tiny_config, variant):
    model = variant(tiny_config)
    alone = generate_tokens(model, PROMPTS[:1], temperature=1.0, max_new_tokens=9)[0]
    together = generate_tokens(model, PROMPTS, temperature=1.0, max_new_tokens=20)[0]
    assert alone.tolist() == together[:9].tolist()


def test_draws_follow_the_softmax_and_stay_inside_the_vocabulary(random_model):
    config = DecoderConfig(
        vocab_size=6, positions=8, width=16, layers=1, heads=2, mlp_width=16, initializer_range=0.5
    )
    model = random_model(config, seed=3)
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


def test_greedy_is_the_limit_of_low_temperature(tiny_config, variant):
    model = variant(tiny_config)
    greedy = generate_tokens(model, PROMPTS, max_new_tokens=20)
    cold = generate_tokens(model, PROMPTS, max_new_tokens=20, temperature=1e-4)
    assert [row.tolist() for row in greedy] == [row.tolist() for row in cold]


def test_a_prompt_may_fill_all_positions_but_one(tiny_config, variant):
    model = variant(tiny_config)
    prompt = list(range(63))
    assert generate_tokens(model, [prompt], max_new_tokens=1)[0].tolist() == recomputed(model, prompt, 1)


def test_everything_wrong_with_a_request_is_named_at_once(tiny_config, variant):
    with pytest.raises(InputError) as error:
        generate_tokens(
            variant(tiny_config), [[1] * 60, [], [300, -1], [2]], max_new_tokens=5, stop_tokens=(7, 300),
            log_probs=301,
        )  # fmt: skip
    message = str(error.value)
    assert "prompt 0 has 60 tokens and 5 new ones make 65, the model has 64 positions" in message
    assert "at most 4 new tokens" in message
    assert "prompt 1 is empty" in message
    assert "prompt 2 holds [300, -1], the vocabulary ends at 299" in message
    assert "stop_tokens holds [300], the vocabulary ends at 299" in message
    assert "log_probs is 301, the vocabulary has 300 tokens" in message
    assert "prompt 3" not in message


def test_an_empty_prompt_starts_from_the_token_that_begins_a_text(tiny_config, variant):
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


def test_the_penalty_on_repetition_is_that_of_transformers(tiny_config, as_torch, variant):
    torch = pytest.importorskip("torch")
    model = variant(tiny_config)
    found = generate_tokens(model, PROMPTS, max_new_tokens=20, repetition_penalty=1.5)
    for prompt, row in zip(PROMPTS, found, strict=True):
        # Alone: transformers counts the padding of shorter prompts as tokens that were there.
        told = as_torch(model).generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None, repetition_penalty=1.5,
        )  # fmt: skip
        assert row.tolist() == told[0, len(prompt) :].tolist()


def test_log_probs_are_those_of_the_whole_text(tiny_config, variant):
    model = variant(tiny_config)
    options = Decoding(max_new_tokens=9, temperature=1.5, top_k=50, repetition_penalty=1.3, log_probs=4)
    for prompt, one in zip(PROMPTS, continuations(model, PROMPTS, options), strict=True):
        assert len(one.log_probs) == len(one.alternatives) == len(one.tokens)
        ids = list(prompt)
        for token, told, best in zip(one.tokens.tolist(), one.log_probs, one.alternatives, strict=True):
            expected = np.asarray(jax.nn.log_softmax(whole_scores(model, ids)))
            assert told == pytest.approx(expected[token], abs=1e-4)
            assert list(best) == np.argsort(-expected)[:4].tolist()
            np.testing.assert_allclose(list(best.values()), np.sort(expected)[::-1][:4], atol=1e-4)
            ids.append(token)
    assert continuations(model, PROMPTS[:1], max_new_tokens=2)[0].log_probs is None


def test_a_text_ends_before_a_stop_string_and_tells_so(tiny_byte_model):
    prompts = ["ab", "some longer text", "x"]
    options = {"max_new_tokens": 40, "temperature": 1.0, "stop_at_eos": False}
    free = continuations(tiny_byte_model, prompts, **options)
    string = free[1].text[10:13]
    stopped = continuations(tiny_byte_model, prompts, **options, stop=(string, "never\0"))
    for before, after in zip(free, stopped, strict=True):
        end = before.text.find(string)
        if end < 0:
            assert (after.text, after.ended) == (before.text, "length")
        else:
            assert (after.text, after.ended) == (before.text[:end], "stop_string")
        assert after.tokens.tolist() == before.tokens[: len(after.tokens)].tolist()
    assert stopped[1].ended == "stop_string"
    assert len(stopped[1].tokens) < 40
    pieces = list(stream(tiny_byte_model, prompts[1], max_new_tokens=40, stop=(string,), stop_at_eos=False))
    assert string not in "".join(pieces)


def test_stop_strings_need_a_tokenizer(tiny_model):
    with pytest.raises(InputError, match="stop_tokens instead"):
        generate_tokens(tiny_model, [[1]], stop=("a",), max_new_tokens=3)


def test_stop_tokens_end_texts_beside_the_models_own(tiny_config, variant):
    free = generate_tokens(variant(tiny_config), PROMPTS, max_new_tokens=20)[1]
    [one] = continuations(
        variant(tiny_config, eos_token=int(free[5])),
        [PROMPTS[1]],
        max_new_tokens=20,
        stop_tokens=(int(free[2]),),
    )
    assert one.ended == "end_token"
    assert one.tokens.tolist() == free[: len(one.tokens)].tolist()
    assert one.tokens[-1] == free[2]


def test_pieces_of_several_prompts_are_handed_on_as_they_come(tiny_byte_model):
    prompts = ["naïve ", "b", "c d e"]
    options = {"max_new_tokens": 20, "temperature": 2.0, "seed": 1}
    pieces = []
    texts = generate(tiny_byte_model, prompts, **options, on_text=lambda *piece: pieces.append(piece))
    assert texts == generate(tiny_byte_model, prompts, **options)
    assert ["".join(piece for row, piece in pieces if row == i) for i in range(3)] == texts
    assert [row for row, _ in pieces] != sorted(row for row, _ in pieces)


@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
@pytest.mark.parametrize("tensor", [1, 2])
def test_one_sequence_writes_what_it_writes_beside_another(tiny_config, variant, cache_dtype, tensor):
    """Its buffers have no axis of sequences in the loop."""
    model = variant(tiny_config, kv_heads=2, windows=(0, 4, 0))
    mesh = None if tensor == 1 else make_mesh(Mesh(data=1, tensor=2), jax.devices()[:2])
    options = {"max_new_tokens": 20, "cache_dtype": cache_dtype, "mesh": mesh}
    [alone] = generate_tokens(model, PROMPTS[1:2], **options)
    assert alone.tolist() == generate_tokens(model, PROMPTS, **options)[1].tolist()


def test_a_cache_in_16_bits_takes_half_and_decides_almost_alike(tiny_config, variant):
    model = variant(tiny_config)
    wide, short = (
        continuations(model, PROMPTS, max_new_tokens=20, log_probs=0, cache_dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    for exact, rounded in zip(wide, short, strict=True):
        # The first token of all comes before anything is read from the cache.
        assert exact.tokens[0] == rounded.tokens[0]
        assert rounded.log_probs[1] != exact.log_probs[1]
        if (exact.tokens[:2] == rounded.tokens[:2]).all():
            np.testing.assert_allclose(exact.log_probs[:2], rounded.log_probs[:2], atol=0.05)
    settings = decoding.Settings(np.float32(0), jax.random.key(0), np.array([-1], np.int32))
    state = jax.eval_shape(
        lambda: decoding.prefill(
            model.params, np.array(PROMPTS[:1]), np.zeros(1, np.int32), settings, config=model.config, room=8,
            cache_dtype=jax.numpy.bfloat16,
        )
    )  # fmt: skip
    assert {each.dtype for each in jax.tree.leaves(state.cache)} == {np.dtype(jax.numpy.bfloat16)}


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "tensor": 2},
        pytest.param({"data": 1, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_mesh_splits_the_cache_and_changes_nothing(tiny_config, sizes, variant):
    """Three prompts over two rows of devices; grouped heads over the tensor axis."""
    model = variant(tiny_config, kv_heads=2, windows=(0, 6))
    mesh = make_mesh(Mesh(**sizes), jax.devices()[:4])
    options = Decoding(max_new_tokens=12, log_probs=2)
    alone, split = (continuations(model, PROMPTS[:3], options, mesh=each) for each in (None, mesh))
    for one, other in zip(alone, split, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
    asked = request(model, PROMPTS[:3], options, mesh)
    writer = ModelWriter(model, asked)
    writer.write(5)
    for layer in writer._state.cache:
        for buffer in layer:
            batch, heads, length, width = buffer.shape
            assert batch == 4
            assert buffer.sharding.shard_shape(buffer.shape) == (2, heads // 2, length, width)


def test_a_mesh_that_does_not_divide_the_heads_is_refused(tiny_config, variant):
    mesh = make_mesh(Mesh(data=1, tensor=2), jax.devices()[:2])
    with pytest.raises(InputError, match="heads of keys and values over mesh"):
        generate_tokens(variant(tiny_config, kv_heads=1), PROMPTS, max_new_tokens=3, mesh=mesh)


def test_a_row_draws_by_its_number_in_whatever_batch_it_comes(tiny_byte_model):
    prompts = [list(b"ab"), list(b"abcdefghijk"), list(b"x")]
    asked = partial(generate_tokens, tiny_byte_model, max_new_tokens=8, temperature=1.0, seed=4)
    whole = [tokens.tolist() for tokens in asked(prompts)]
    assert [tokens.tolist() for tokens in asked(prompts, rows=[0, 1, 2])] == whole
    mixed = [tokens.tolist() for tokens in asked([prompts[2], prompts[0]], rows=[2, 0])]
    assert mixed == [whole[2], whole[0]]
    assert asked([prompts[2]], rows=[7])[0].tolist() != whole[2]
