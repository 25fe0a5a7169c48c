import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.data.tokenizer import train_tokenizer
from ragjax.errors import InputError
from ragjax.evaluation import Speed, evaluate
from ragjax.evaluation.figures import default_length
from ragjax.evaluation.perplexity import perplexity

TEXTS = [
    "The naïve reader reads words.",
    "日本語 and other words, all of them short.\n",
    "One more document.",
]
SPEED = Speed(tokens_per_second=123.0, ratio=1.5, rounds=(123.0,))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return f"jsonl:{path}#text", tmp_path / "cache"


@pytest.fixture(scope="module")
def uniform(tiny_byte_model):
    """Every one of the 257 tokens is equally likely."""
    return dataclasses.replace(tiny_byte_model, params=jax.tree.map(jnp.zeros_like, tiny_byte_model.params))


@pytest.mark.parametrize("stride", [64, 20])
@pytest.mark.parametrize("max_tokens", [None, 37])
def test_a_uniform_byte_model_has_a_byte_perplexity_of_257(uniform, source, stride, max_tokens):
    data, cache = source
    found = evaluate(
        uniform, data, sequence_length=64, stride=stride, max_tokens=max_tokens, speed=SPEED, cache=cache
    )
    assert 2**found.bits_per_byte == pytest.approx(257, rel=1e-5)
    assert found.perplexity == pytest.approx(257, rel=1e-5)


def test_word_perplexity_is_over_the_words_of_the_text(uniform, source):
    data, cache = source
    found = evaluate(uniform, data, speed=SPEED, cache=cache)
    # The first byte has nothing before it; its word is not begun by a scored token either.
    scored_bytes = sum(len(text.encode()) for text in TEXTS) - 1
    words = sum(len(text.split()) for text in TEXTS) - 1
    assert found.word_perplexity == pytest.approx(257 ** (scored_bytes / words), rel=1e-4)
    assert found.tokens == scored_bytes + len(TEXTS)


def test_figures_of_a_trained_vocabulary_follow_from_its_log_likelihood(source, tiny_config, random_model):
    data, cache = source
    tokenizer = train_tokenizer(TEXTS, 280)
    config = dataclasses.replace(tiny_config, vocab_size=len(tokenizer))
    model = random_model(config, tokenizer=tokenizer)
    found = evaluate(model, data, sequence_length=32, stride=8, speed=SPEED, cache=cache)
    end = tokenizer.eos_token_id
    stream = np.concatenate([[*tokenizer.encode(text), end] for text in TEXTS])
    nll = perplexity(model, stream, sequence_length=32, stride=8, batch_size=2, separators=(end,))
    first = len(tokenizer.decode([stream[0]]).encode())
    total_bytes = sum(len(text.encode()) for text in TEXTS) - first
    assert found.perplexity == pytest.approx(nll.perplexity, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nll.text_nats / math.log(2) / total_bytes, rel=1e-6)


def test_bytes_of_an_unknown_alphabet_are_a_share_of_the_text(uniform, source, monkeypatch):
    data, cache = source
    monkeypatch.setattr("ragjax.evaluation.text.token_bytes", lambda tokenizer: None)
    found = evaluate(uniform, data, max_tokens=40, speed=SPEED, cache=cache)
    assert 2**found.bits_per_byte == pytest.approx(257, rel=1e-5)


def test_counts_leave_out_the_padded_vocabulary_and_see_zeros(tiny_byte_model, source):
    data, cache = source
    config, params = tiny_byte_model.config, jax.tree.map(jnp.ones_like, tiny_byte_model.params)
    half = params["layers"]["mlp"]["up"]["kernel"].at[:, :, ::2].set(0)
    params["layers"]["mlp"]["up"]["kernel"] = half
    found = evaluate(dataclasses.replace(tiny_byte_model, params=params), data, speed=SPEED, cache=cache)
    width, layers, mlp = config.width, config.layers, config.mlp_width
    kernels = layers * (4 * width * width + 2 * width * mlp)
    vectors = layers * (4 * width + width + mlp + 4 * width) + 2 * width
    assert found.parameters == (257 + config.positions) * width + kernels + vectors
    assert found.nonzero_parameters == found.parameters - half.size // 2
    assert found.sparsity_prunable == pytest.approx(half.size / 2 / kernels)
    assert found.sparsity_total == pytest.approx(half.size / 2 / found.parameters)
    assert found.stored_bytes == 4 * found.parameters
    assert found.layers == layers


def test_the_keys_are_those_that_are_documented(tiny_byte_model, source):
    data, cache = source
    found = evaluate(tiny_byte_model, data, max_tokens=30, stored_bytes=77, speed=SPEED, cache=cache)
    assert list(dataclasses.asdict(found)) == [
        "perplexity", "bits_per_byte", "word_perplexity", "tokens", "parameters", "nonzero_parameters",
        "sparsity_prunable", "sparsity_total", "stored_bytes", "tokens_per_second", "speed_vs_teacher",
        "layers",
    ]  # fmt: skip
    assert (found.stored_bytes, found.tokens_per_second, found.speed_vs_teacher) == (77, 123.0, 1.5)
    assert all(isinstance(value, int | float) for value in dataclasses.asdict(found).values())


def test_speed_measured_alone_has_no_ratio(tiny_byte_model, source):
    data, cache = source
    found = evaluate(tiny_byte_model, data, cache=cache)
    assert found.speed_vs_teacher is None
    assert found.tokens_per_second > 0


def test_what_cannot_be_measured_is_refused(tiny_model, tiny_byte_model, source):
    data, cache = source
    with pytest.raises(InputError, match="tokenizer"):
        evaluate(tiny_model, data, cache=cache)
    with pytest.raises(InputError, match="begin no word"):
        evaluate(tiny_byte_model, data, max_tokens=1, cache=cache)
    with pytest.raises(InputError, match="64 positions, found 100"):
        evaluate(tiny_byte_model, data, sequence_length=100, cache=cache)


@pytest.mark.parametrize("max_tokens", [None, 20])
def test_tokens_that_open_documents_are_no_text_and_give_the_first_something_before_it(
    uniform, sentencepiece_tokenizer, source, max_tokens
):
    data, cache = source
    config = dataclasses.replace(uniform.config, vocab_size=384)
    model = dataclasses.replace(uniform, config=config, tokenizer=sentencepiece_tokenizer)
    found = evaluate(model, data, sequence_length=64, max_tokens=max_tokens, speed=SPEED, cache=cache)
    ids = [token for text in TEXTS for token in (*sentencepiece_tokenizer.encode(text), 2)]
    scored = ids[1:] if max_tokens is None else ids[1 : max_tokens + 1]
    text = [token for token in scored if token not in (1, 2)]
    documents = sentencepiece_tokenizer.decode([1, *scored]).replace("<s>", "").split("</s>")
    written = sum(len(part.lstrip(" ").encode()) for part in documents)
    assert found.tokens == len(scored)
    assert found.bits_per_byte == pytest.approx(len(text) * math.log2(384) / written, rel=1e-5)


def test_without_a_length_windows_are_as_long_as_the_shortest_model_and_no_longer_than_2048(tiny_byte_model):
    def of(positions):
        return dataclasses.replace(
            tiny_byte_model, config=dataclasses.replace(tiny_byte_model.config, positions=positions)
        )

    assert default_length(of(131072)) == 2048
    assert default_length(of(131072), of(64), of(100)) == 64


def test_of_pairs_the_completions_are_measured(uniform, pairs_file, tmp_path):
    rows = [("The naïve question?", " An answer."), ("", "日本語"), ("q", "one two")]
    uri = pairs_file(rows)
    found = evaluate(uniform, uri, speed=SPEED, cache=tmp_path)
    written = sum(len(completion.encode()) for _, completion in rows)
    assert found.tokens == written + len(rows)
    assert 2**found.bits_per_byte == pytest.approx(257, rel=1e-5)
    # A completion begins a word whatever stands before it.
    assert found.word_perplexity == pytest.approx(257 ** (written / 5), rel=1e-4)
    assert evaluate(uniform, uri, max_tokens=5, speed=SPEED, cache=tmp_path).tokens == 5
