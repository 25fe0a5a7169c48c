"""What a student writes while it is trained: its own distribution, or an exact mixture with its teacher's."""

import dataclasses
import re
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.generation import generate_tokens
from ragjax.generation.decoding import Settings
from ragjax.generation.rollout import Prompted, Writer, write
from ragjax.generation.sampling import next_token, sequence_keys
from ragjax.model import Model
from ragjax.models.decoder import init_params, logits
from ragjax.models.decoder_config import DecoderConfig
from ragjax.models.run import run_decoder
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place

PROMPTS = [[5], [7, 8, 9, 10, 11, 12], [200, 3, 299], [40, 41, 42, 43]]


@pytest.fixture(scope="module")
def student(tiny_config, random_model):
    return random_model(dataclasses.replace(tiny_config, layers=2), seed=1)


@pytest.fixture(scope="module")
def teacher(of_kind, random_model):
    """Of another family, width and depth, over the same tokens."""
    return random_model(of_kind("llama", vocab_size=300, positions=40, layers=1), seed=2)


def prompted(prompts, limit):
    longest = max(map(len, prompts))
    tokens = np.array([[9] * (longest - len(p)) + p for p in prompts], np.int32)
    padding = np.array([longest - len(p) for p in prompts], np.int32)
    return Prompted(tokens, padding, np.broadcast_to(np.int32(limit), len(prompts)))


def settings(temperature=1.0, seed=0, ends=(-1,)):
    return Settings(jnp.float32(temperature), jax.random.key(seed), jnp.asarray(ends, jnp.int32))


def written(model, given, chosen, *, room, teacher=None, **options):
    """Of each sequence what was written, and how its tokens count."""

    @jax.jit
    def run(params, taught, given, chosen):
        other = None if teacher is None else Writer(teacher.config, taught)
        return write(Writer(model.config, params), given, chosen, room=room, teacher=other, **options)

    found = jax.device_get(run(model.params, teacher and teacher.params, given, chosen))
    cut = partial(zip, found.length, strict=True)
    ratios = None if found.ratio is None else [row[:n] for n, row in cut(found.ratio)]
    return [row[:n].tolist() for n, row in cut(found.tokens)], ratios


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_student_alone_writes_what_generate_tokens_does(student, temperature):
    options = {"temperature": temperature, "seed": 3}
    free = [row.tolist() for row in generate_tokens(student, PROMPTS, max_new_tokens=12, **options)]
    found, ratios = written(student, prompted(PROMPTS, 12), settings(temperature, 3), room=12)
    assert found == free
    assert ratios is None
    # Tokens that end texts from here on, one in the middle of a sequence and one at its beginning.
    ends = (free[1][4], free[2][0])
    ending = Model(dataclasses.replace(student.config, eos_token=ends), student.params)
    expected = [row.tolist() for row in generate_tokens(ending, PROMPTS, max_new_tokens=12, **options)]
    assert sorted(map(len, expected))[0] == 1
    found, _ = written(student, prompted(PROMPTS, 12), settings(temperature, 3, ends), room=12)
    assert found == expected


def test_a_student_alone_keeps_to_the_likeliest_of_a_mass(student):
    free = generate_tokens(student, PROMPTS, max_new_tokens=9, temperature=0.8, top_p=0.3, seed=3)
    found, _ = written(student, prompted(PROMPTS, 9), settings(0.8, 3), room=9, top_p=0.3)
    assert found == [row.tolist() for row in free]


def test_each_sequence_has_a_limit_of_its_own(student):
    free = generate_tokens(student, PROMPTS, max_new_tokens=9, temperature=1.0, seed=3)
    limits = [9, 1, 4, 20]
    found, _ = written(student, prompted(PROMPTS, limits), settings(1.0, 3), room=9)
    assert found == [row[:limit].tolist() for row, limit in zip(free, limits, strict=True)]


def distribution(model, ids, temperature):
    """Of the token after `ids`, in float64; what is filled in behind cannot be seen."""
    whole = ids + [0] * (32 - len(ids))
    scores = np.asarray(model(np.array([whole]))[0, len(ids) - 1], np.float64) / temperature
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.6)])
def test_student_and_teacher_write_what_a_plain_loop_over_both_does(student, teacher, temperature, top_p):
    share, new = 0.3, 6
    found, ratios = written(
        student, prompted(PROMPTS, new), settings(temperature, 5), room=new, teacher=teacher,
        teacher_share=share, top_p=top_p,
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for step in range(new):
            own, other = (distribution(model, ids, temperature) for model in (student, teacher))
            drawn = share * other + (1 - share) * own
            if top_p < 1:
                order = np.argsort(-drawn)
                left_out = order[np.cumsum(drawn[order]) - drawn[order] >= top_p]
                assert len(left_out)
                drawn[left_out] = 0
                drawn /= drawn.sum()
            key = sequence_keys(jax.random.key(5), len(PROMPTS), step)[row : row + 1]
            with np.errstate(divide="ignore"):
                token = int(
                    next_token(jnp.log(jnp.float32(drawn))[None], lambda key=key: key, jnp.float32(1))[0]
                )
            assert found[row][step] == token
            assert ratios[row][step] == pytest.approx(own[token] / drawn[token], rel=1e-4)
            ids.append(token)


def test_what_is_drawn_has_the_mixtures_probabilities():
    """All texts of three tokens over a vocabulary of four, against their exact probabilities."""
    shape = DecoderConfig(
        vocab_size=4, positions=8, width=8, layers=1, heads=2, mlp_width=8, initializer_range=1.5
    )
    own, other = (Model(shape, init_params(shape, seed)) for seed in (0, 1))
    share, rows = 0.4, 6000
    found, ratios = written(
        own, prompted([[2, 1]] * rows, 3), settings(seed=1), room=3, teacher=other, teacher_share=share
    )
    texts = list(product(range(4), repeat=3))
    # Scores after every prefix of every text, at once.
    whole = np.array([[2, 1, *text] for text in texts])
    scores = [np.asarray(model(whole), np.float64) for model in (own, other)]
    q, p = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in scores)

    def chances(of):
        return np.prod([of[range(64), 1 + i, [text[i] for text in texts]] for i in range(3)], axis=0)

    mixture = share * p + (1 - share) * q
    expected = rows * chances(mixture)
    count = np.array([found.count(list(text)) for text in texts])
    likely = expected > 5
    assert likely.sum() > 30
    deviation = ((count - expected)[likely] ** 2 / expected[likely]).sum()
    # 40 to 60 degrees of freedom; the student alone, or the parts exchanged, are thousands away.
    assert deviation < 110
    for wrong in (q, (1 - share) * p + share * q):
        assert ((count - rows * chances(wrong))[likely] ** 2 / expected[likely]).sum() > 500
    # Counted by their ratios, the last tokens are the student's again, whatever came before.
    last, ratio = np.array([row[2] for row in found]), np.array([row[2] for row in ratios])
    counted = [ratio[last == token].sum() / rows for token in range(4)]
    first, second, third = whole[:, 2:].T
    before = mixture[range(64), 1, first] * mixture[range(64), 2, second] * q[range(64), 3, third]
    np.testing.assert_allclose(counted, [before[third == token].sum() for token in range(4)], atol=0.02)


def test_half_precision_writes_what_training_computes_in_it(student, teacher, types_of_products):
    given, chosen = prompted(PROMPTS, 8), settings(0.0)
    found, _ = written(student, given, chosen, room=8, dtype=jnp.bfloat16)
    whole = np.zeros((len(PROMPTS), 14), np.int32)
    for row, prompt, new in zip(whole, PROMPTS, found, strict=True):
        row[: len(prompt) + 8] = prompt + new

    @jax.jit
    def training(params):
        return logits(
            params, run_decoder(student.config, params, whole, dtype=jnp.bfloat16).hidden, student.config
        )

    for scores, prompt, new in zip(np.asarray(training(student.params)), PROMPTS, found, strict=True):
        scores = scores[len(prompt) - 1 :][:8]
        # The likeliest but for rounding, which the sums of the attention may do in another order.
        assert (scores.max(-1) - scores[np.arange(8), new]).max() < 0.02 * scores.std()

    def run(params):
        return write(Writer(student.config, params), given, chosen, room=8, dtype=jnp.bfloat16)

    assert {kinds[:2] for kinds in types_of_products(run, student.params)} == {("bf16", "bf16")}


@pytest.mark.parametrize("layout", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_eight_devices_write_what_one_does(student, teacher, layout):
    prompts, options = PROMPTS + PROMPTS[::-1], {"room": 6, "teacher_share": 0.3}
    alone, ratios = written(student, prompted(prompts, 6), settings(), teacher=teacher, **options)
    mesh = make_mesh(Mesh(*layout))
    with jax.set_mesh(mesh):
        own, other = (dataclasses.replace(m, params=place(m.params, mesh)) for m in (student, teacher))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        given = jax.device_put(prompted(prompts, 6), rows)
        found, shared = written(own, given, settings(), teacher=other, **options)
    assert found == alone
    np.testing.assert_allclose(np.array(shared), np.array(ratios), rtol=1e-4)


def test_weights_split_over_fsdp_are_gathered_once_and_not_for_every_token(student):
    mesh = make_mesh(Mesh(data=1, fsdp=8))
    with jax.set_mesh(mesh):
        params = place(student.params, mesh)
        given = prompted(PROMPTS * 2, 6)

        def run(params, given):
            return write(Writer(student.config, params), given, settings(), room=6)

        text = jax.jit(run).lower(params, given).compile().as_text()
    blocks = dict(re.findall(r"^%([\w.\-]+) \(.*?\{$(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    gathers = {body: blocks[body].count(" all-gather(") for body in re.findall(r"body=%([\w.\-]+)", text)}
    # The prompts are read under a scan over the layers, which gathers the matrices of each.
    reading = [body for body, count in gathers.items() if count]
    assert len(reading) == 1
    assert gathers[reading[0]] == 6
    writing = [blocks[body] for body in gathers if body not in reading]
    assert not [kind for kind in ("all-reduce", "all-to-all", "permute") for text in writing if kind in text]
