"""A model in onnxruntime writes what the same model writes in JAX."""

from dataclasses import replace

import jax
import numpy as np
import onnxruntime
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.generation import Decoding, continuations, generate, generate_tokens, stream
from ragjax.generation.onnx import network
from ragjax.interchange.onnx import export_onnx, in_onnxruntime, load_onnx
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.parallel.mesh import make_mesh

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [20, 3, 49], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def pair(tiny_model):
    """The tiny model, and the same in onnxruntime."""
    return tiny_model, in_onnxruntime(tiny_model, threads=1)


@pytest.fixture(scope="module")
def byte_pair(tiny_byte_model):
    return tiny_byte_model, in_onnxruntime(tiny_byte_model, threads=1)


def written(model, prompts, **options):
    return [row.tolist() for row in generate_tokens(model, prompts, **options)]


def likeliest(model, prompts, new, *, length):
    """What follows each prompt by one pass of the model over all of its text: only what is right passes."""
    whole = [[*prompt, *tokens] for prompt, tokens in zip(prompts, new, strict=True)]
    scores = np.asarray(model(np.array([text + [0] * (length - len(text)) for text in whole])))
    best = scores.argmax(-1)
    return [
        best[row, len(prompt) - 1 : len(text) - 1].tolist()
        for row, (prompt, text) in enumerate(zip(prompts, whole, strict=True))
    ]


def test_every_family_writes_the_likeliest_tokens(kind, of_kind):
    config = of_kind(kind, positions=24)
    model = Model(config, init_params(config, 0))
    prompts = [prompt[:7] for prompt in PROMPTS]
    found = written(in_onnxruntime(model, threads=1), prompts, max_new_tokens=7)
    assert found == likeliest(model, prompts, found, length=14)
    assert len({tuple(row) for row in found}) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 4},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "repetition_penalty": 0.8, "seed": 5},
    ],
)
def test_draws_filters_and_penalties_are_the_same(pair, options):
    model, there = pair
    expected = written(model, PROMPTS, max_new_tokens=12, **options)
    assert written(there, PROMPTS, max_new_tokens=12, **options) == expected
    # By the number of the prompt, whatever batch it comes in.
    [alone] = written(there, PROMPTS[2:3], max_new_tokens=12, rows=[2], **options)
    assert alone == expected[2]


def test_log_probs_are_those_of_the_model(pair):
    told, expected = (
        continuations(model, PROMPTS, max_new_tokens=6, log_probs=3, temperature=1.0, seed=1)
        for model in pair
    )
    for one, other in zip(told, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)
        for found, right in zip(one.alternatives, other.alternatives, strict=True):
            assert list(found) == list(right)
            np.testing.assert_allclose(list(found.values()), list(right.values()), atol=1e-4)


def test_texts_end_where_they_should_and_the_others_go_on(byte_pair):
    model, there = byte_pair
    prompts = ["one", "twenty-two", ""]
    drawn = Decoding(max_new_tokens=24, temperature=1.0, seed=2)
    plain = continuations(model, prompts, drawn)
    stop, end = plain[0].text[5:7], int(plain[1].tokens[9])
    options = replace(drawn, stop=(stop,), stop_tokens=(end,))
    expected = continuations(model, prompts, options)
    told = continuations(there, prompts, options)
    assert {one.ended for one in expected} >= {"stop_string", "end_token"}
    for one, other in zip(told, expected, strict=True):
        assert (one.text, one.ended, one.tokens.tolist()) == (other.text, other.ended, other.tokens.tolist())


def test_pieces_come_as_they_are_written(byte_pair):
    _, there = byte_pair
    pieces = list(stream(there, "once", max_new_tokens=12, temperature=1.0))
    assert len(pieces) > 1
    assert "".join(pieces) == generate(there, ["once"], max_new_tokens=12, temperature=1.0)[0]


def test_a_long_prompt_is_read_in_parts(of_kind, random_model, monkeypatch):
    monkeypatch.setattr(network, "_CHUNK", 3)
    model = random_model(of_kind("qwen2", positions=24))
    prompts = [prompt[:7] for prompt in PROMPTS]
    found = written(in_onnxruntime(model, threads=1), prompts, max_new_tokens=7)
    assert found == likeliest(model, prompts, found, length=14)


def test_a_row_begins_anew_while_the_others_stay(pair):
    model, there = pair
    held = network.Network(there, batch=3, room=16)
    held.read(PROMPTS[:1] + PROMPTS[2:])
    # The middle row had a longer text than the one that now begins.
    held.read_row(1, PROMPTS[1])
    held.read_row(1, [9, 9])
    found = held.feed(np.array([6, 7, 8]), np.array([2, 3, 5])).copy()
    whole = ([5, 6, 0, 0, 0], [9, 9, 7, 0, 0], [40, 41, 42, 43, 8])
    expected = np.asarray(model(np.array(whole)))[np.arange(3), [1, 2, 4]]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_session_is_one_and_a_second_prompt_of_like_size_compiles_nothing(
    tiny_model, tmp_path, monkeypatch, compiled
):
    opened = []
    real = onnxruntime.InferenceSession

    def counting(*arguments, **options):
        opened.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counting)
    there = load_onnx(export_onnx(tiny_model, tmp_path / "m"), threads=1)
    generate_tokens(there, PROMPTS, max_new_tokens=10, temperature=1.0)
    compiled.clear()
    more = [[1] * 9, [3, 4], [5], [6]]
    generate_tokens(there, more, max_new_tokens=14, temperature=0.7, top_k=5, repetition_penalty=1.1, seed=9)
    generate_tokens(there, more[:2], max_new_tokens=40)
    assert len(opened) == 1
    assert compiled == []


def test_what_it_cannot_do_is_refused_all_at_once(pair):
    model, there = pair
    mesh = make_mesh(Mesh(data=2), jax.devices()[:2])
    with pytest.raises(InputError) as refused:
        continuations(there, [[1]], draft=model, mesh=mesh, beams=2, cache_dtype="bfloat16")
    told = str(refused.value)
    for what in ("beams is 2", "cache_dtype is bfloat16", "there is a draft", "there is a mesh"):
        assert f"  - {what}" in told
    with pytest.raises(InputError, match="64 positions"):
        continuations(there, [[1] * 60], max_new_tokens=5)
