import dataclasses
import math

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.data.corpus import Corpus
from ragjax.errors import InputError
from ragjax.evaluation import perplexity as perplexity_file
from ragjax.evaluation.perplexity import perplexity, score
from ragjax.evaluation.windows import pair_windows
from ragjax.model import Model
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place


@pytest.fixture(scope="module")
def stream():
    return np.random.default_rng(1).integers(0, 300, 173).astype(np.uint16)


def guide(gpt2, tokens, length, stride, *, each_token_alike):
    """Hugging Face's guide, and its loop with every scored token weighed alike."""
    torch = pytest.importorskip("torch")
    ids = torch.tensor(tokens.astype(np.int64))[None]
    total = count = before = 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + length, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = gpt2(ids[:, begin:end], labels=labels).loss.item()
        weight = int((labels[:, 1:] != -100).sum() if each_token_alike else (labels != -100).sum() - 1)
        total += loss * weight if weight else 0
        count += weight
        before = end
        if end == ids.shape[1]:
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(("length", "stride"), [(64, 64), (64, 32), (32, 7), (16, 3), (50, 49)])
def test_perplexity_is_that_of_the_guide(tiny_model, as_torch, stream, length, stride):
    found = perplexity(tiny_model, stream, sequence_length=length, stride=stride, batch_size=4)
    expected, count = guide(as_torch(tiny_model), stream, length, stride, each_token_alike=True)
    assert found.tokens == count
    assert found.perplexity == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("length", [64, 32])
def test_without_overlap_it_is_the_guide_to_the_letter(tiny_model, as_torch, stream, length):
    found = perplexity(tiny_model, stream, sequence_length=length, stride=length, batch_size=4)
    expected, count = guide(as_torch(tiny_model), stream, length, length, each_token_alike=False)
    assert (found.tokens, found.perplexity) == (count, pytest.approx(expected, rel=1e-4))


def test_the_batch_size_changes_nothing(tiny_model, stream):
    found = [
        perplexity(tiny_model, stream, sequence_length=32, stride=11, batch_size=size).total_nats
        for size in (1, 4, 100)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_other_texts_of_any_length_compile_nothing(tiny_model, stream):
    options = {"sequence_length": 32, "stride": 16, "batch_size": 3}
    perplexity(tiny_model, stream, **options)
    before = perplexity_file._nats._cache_size()
    perplexity(tiny_model, stream[::-1][:140], **options)
    assert perplexity_file._nats._cache_size() == before


def test_at_most_max_tokens_are_scored_from_the_start(tiny_model, stream):
    options = {"sequence_length": 32, "stride": 16, "batch_size": 4}
    few = perplexity(tiny_model, stream, max_tokens=40, **options)
    assert few == perplexity(tiny_model, stream[:41], **options)
    assert few.tokens == 40


def test_a_text_shorter_than_a_window_is_scored(tiny_model, stream):
    short = stream[:9]
    found = perplexity(tiny_model, short, sequence_length=64, stride=32, batch_size=8)
    scores = np.asarray(tiny_model(short[None]), np.float64)[0]
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert found.tokens == 8
    assert found.total_nats == pytest.approx(-np.log(chances[np.arange(8), short[1:]]).sum(), rel=1e-5)


@pytest.mark.parametrize("stride", [5, 16])
def test_the_sum_over_text_leaves_separators_out(tiny_model, stream, stride):
    options = {"sequence_length": 16, "stride": stride, "batch_size": 4}
    marked = stream.copy()
    marked[[3, 16, 40, 41, 172]] = 299
    split = perplexity(tiny_model, marked, separators=(299,), **options)
    uniform = Model(tiny_model.config, jax.tree.map(np.zeros_like, tiny_model.params))
    counted = perplexity(uniform, marked, separators=(299,), **options)
    separators = sum(int(marked[i] == 299) for i in range(1, 173) if stride == 5 or i % 16)
    assert counted.text_nats == pytest.approx((counted.tokens - separators) * math.log(300), rel=1e-6)
    assert split.total_nats == pytest.approx(perplexity(tiny_model, marked, **options).total_nats, rel=1e-7)
    assert split.text_nats < split.total_nats


@pytest.mark.parametrize("mesh", [Mesh(data=8), Mesh(data=2, fsdp=2, tensor=2)])
def test_eight_devices_measure_what_one_does(tiny_config, stream, mesh, random_model):
    model = random_model(dataclasses.replace(tiny_config, layers=1))
    options = {"sequence_length": 32, "stride": 16, "batch_size": 3}
    alone = perplexity(model, stream, **options)
    devices = make_mesh(mesh)
    spread = dataclasses.replace(model, params=place(model.params, devices))
    found = perplexity(spread, stream, mesh=devices, **options)
    assert found.tokens == alone.tokens
    assert found.total_nats == pytest.approx(alone.total_nats, rel=1e-5)


def test_a_window_longer_than_the_model_is_refused(tiny_model, stream):
    with pytest.raises(InputError, match="64 positions, found 65"):
        perplexity(tiny_model, stream, sequence_length=65, stride=1, batch_size=1)


def test_completions_score_as_torch_scores_each_pair_alone(tiny_model, as_torch):
    torch = pytest.importorskip("torch")
    gpt2 = as_torch(tiny_model)
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 30, (13, 2))
    ends = np.cumsum(sizes.sum(1))
    starts = ends - sizes.sum(1)
    pairs = Corpus(
        rng.integers(0, 300, ends[-1]), starts, utf8_bytes=0, words=0, completions=starts + sizes[:, 0]
    )
    expected = 0.0
    for number, (prompt, _) in enumerate(sizes):
        ids = torch.tensor(pairs.document(number))[None]
        with torch.no_grad():
            nats = -gpt2(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        expected += nats[prompt - 1 :].sum().item()
    windows = pair_windows(pairs, sequence_length=64)
    for batch_size in (1, 3, 20):
        found = score(tiny_model, pairs.tokens, windows, batch_size=batch_size, separators=(7,))
        assert found.tokens == sizes[:, 1].sum()
        assert found.total_nats == pytest.approx(expected, rel=1e-5)
        assert found.text_nats < found.total_nats
