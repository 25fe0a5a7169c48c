"""Configs that cannot work are refused when they are built, with all that is wrong of each."""

import dataclasses
import typing

import pytest

from ragjax.config import (
    Architecture,
    Compress,
    Data,
    Distill,
    Evaluate,
    FakeQuantize,
    Mesh,
    OneShot,
    OnPolicy,
    Quantize,
    Shrink,
    Sparsity,
    Student,
    Teacher,
    Train,
    Writing,
)
from ragjax.errors import InputError


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Train(steps=0), "steps must be at least 1"),
        (lambda: Train(steps=0, dtype="bf16"), "(?s)dtype must be one of float32, bfloat16, .*steps must be"),
        (lambda: OneShot(method="xyz"), "method must be one of magnitude, .*, alps, found 'xyz'"),
        (lambda: OneShot(pattern="rows"), "pattern must be one of tensor, row, .*found 'rows'"),
        (lambda: Shrink(params=0.5, what=("mlp",)), r"what must be one of neurons, .*found \('mlp',\)"),
        (lambda: Shrink(params=0.5, what="heads"), "what must be one of neurons, .*found 'heads'"),
        (
            lambda: Distill(layer_map="first"),
            r"must be one of uniform, last, tuple\[int, ...\], found 'first'",
        ),
        (lambda: Distill(layer_map=("x",)), r"must be one of uniform, last, .*, found \('x',\)"),
        (lambda: OneShot(pattern=3), "pattern must be one of tensor, row, .*, None, found 3"),
        (lambda: Shrink(params=0.5, what=3), "what must be one of neurons, .*found 3"),
        (lambda: Teacher(also=("a", "b"), shares=(1.0, 2.0)), "a number for each of 3 teachers, found 2"),
        (lambda: Teacher(also=("a",), shares=(1.0, 0.0)), "shares must be above 0, found 0.0"),
        (lambda: Train(keep=1), "keep must be at least 2"),
        (lambda: Writing(prompts="text:a", samples=0), "samples must be at least 1"),
        (lambda: Writing(prompts="text:a", prompt_tokens=0), "prompt_tokens must be at least 1"),
        (lambda: Writing(prompts="text:a", temperature=-1.0), "temperature must be 0 .greedy. or above"),
        (lambda: Writing(prompts="text:a", temperature=0.0, samples=2), "samples must be 1 at temperature 0"),
        (lambda: Train(clip=-1.0), "clip must be at least 0"),
        (lambda: Train(weight_decay=float("nan")), "weight_decay must be at least 0, found nan"),
        (lambda: Train(b2=1.0), "b2 must be at least 0 and below 1"),
        (lambda: Train(batch_size=6, accumulate=4), "divisible by accumulate"),
        (lambda: Train(learning_rate=float("nan")), "learning_rate must be above 0"),
        (lambda: Train(warmup=300, steps=300), "warmup must be below steps"),
        (lambda: Sparsity(target=1.0), "target must be at least 0 and below 1"),
        (lambda: Sparsity(pattern="n_of_m", n=2, m=4, target=0.6), "set them alike"),
        (lambda: Sparsity(pattern="n_of_m", n=4, m=4), "n must be below m"),
        (lambda: Sparsity(start=5, stop=4), "stop must not lie before start"),
        (lambda: Sparsity(prunable=()), "prunable must name at least one"),
        (lambda: Sparsity(power=0), "power must be above 0"),
        (lambda: Sparsity(0.5, "ste", decay=0.1), "decay is read by the method sr_ste alone"),
        (lambda: Sparsity(0.5, "set", schedule="cosine"), "schedule is read by the method gradual or"),
        (lambda: Sparsity(0.5, "movement", score="random"), "movement has its own score"),
        (lambda: Sparsity(0.5, "rigl", pattern="row"), "rigl regrows within a matrix"),
        (lambda: Sparsity(0.5, "rewind", rewind_to=3), "rewind_to must not lie after start"),
        (lambda: Sparsity(0.5, pattern="global", budget="erk"), "budget 'erk' needs the pattern"),
        (lambda: Quantize(samples=0, calibration=""), "(?s)samples must be .*calibration must name a source"),
        (lambda: Quantize(quantizable=()), "quantizable must name at least one pattern"),
        (lambda: Quantize(dampening=0.0), "dampening must be above 0, found 0.0"),
        (lambda: Quantize(strength=1.5), r"strength must lie in \[0, 1\], found 1.5"),
        (lambda: Quantize("int8_activations", group=32), "one scale an output, found group 32"),
        (lambda: Quantize("int4", group=7, samples=0), "(?s)samples must be .*group must be even"),
        (lambda: FakeQuantize("int8", group=-3), "group must be 0 .all inputs. or at least 2, found -3"),
        (lambda: FakeQuantize(group=32), "group is of a scheme, found 32 and scheme 'none'"),
        (lambda: OneShot(sparsity=1.0), "sparsity must be at least 0 and below 1, found 1.0"),
        (lambda: OneShot(sparsity=-0.1, samples=0), "(?s)samples must be .*sparsity must be"),
        (lambda: OneShot(pattern="n_of_m", n=4, m=4), "n must be below m, found 4 of 4"),
        (
            lambda: OneShot(pattern="n_of_m", sparsity=0.7),
            "2 of 4 removes 0.5 of the weights, sparsity says 0.7",
        ),
        (lambda: OneShot(pattern="n_of_m", budget="owl"), "budget owl has nothing to share"),
        (lambda: OneShot(pattern="global", budget="erk"), "global is a budget of its own"),
        (lambda: OneShot(budget="table"), "go together, found table and None"),
        (lambda: OneShot(table="t.json"), "go together, found uniform and 't.json'"),
        (lambda: OneShot(block=(0, 8)), "sides of at least 1"),
        (lambda: OneShot(dampening=0.0), "dampening must be above 0"),
        (
            lambda: OneShot(sequence_length=1, batch_size=0),
            "(?s)batch_size must be .*sequence_length must be",
        ),
        (lambda: OneShot(calibration=""), "calibration must name a source"),
        (lambda: OneShot(prunable=()), "prunable must name at least one"),
        (lambda: Mesh(data=-1, fsdp=-1), "only one"),
        (lambda: Mesh(fsdp=0), "fsdp must be -1 or at least 1, found 0"),
        (lambda: Architecture(width=10, heads=3), "divisible by heads"),
        (lambda: Architecture(windows=(0, -8)), "windows must not be negative, found -8"),
        (lambda: Architecture(dropout=1.0), "dropout must be at least 0 and below 1"),
        (lambda: Student(layers=(3, 1)), "rise without repeats"),
        (lambda: Student(layers=(1, 1)), "rise without repeats"),
        (lambda: Student(layers=()), "at least one layer"),
        (lambda: Student(layers=0), "layers must be at least 1"),
        (lambda: Data(train=""), "name a source"),
        (lambda: Data(vocab_size=256), "vocab_size must be at least 257"),
        (lambda: Distill(forward_kl=0, cross_entropy=0), "at least one of forward_kl"),
        (lambda: Distill(cross_entropy=-0.1), "cross_entropy must be at least 0"),
        (lambda: Distill(temperature=0.0), "temperature must be above 0"),
        (lambda: OnPolicy(share=(0.0, 1.5), replay=()), r"(?s)share must lie between .*replay must name"),
        (
            lambda: OnPolicy(teacher_share=-0.1),
            "teacher_share must lie between 0 and 1 throughout, found -0.1",
        ),
        (lambda: OnPolicy(prompt_tokens=0, new_tokens=0), "(?s)prompt_tokens must be .*new_tokens must be"),
        (lambda: OnPolicy(top_p=0.0, rise=2.0), "(?s)top_p must be above 0.*rise must lie between 0 and 1"),
        (
            lambda: OnPolicy(temperature=float("inf"), rise_over=-1),
            "(?s)temperature must be 0.*rise_over must",
        ),
        (lambda: OnPolicy(temperature=0.0, teacher_share=0.5), "are about draws: set temperature above 0"),
        (
            lambda: Compress(
                teacher=Teacher(model="m", cache="c"),
                on_policy=OnPolicy(share=0.5),
                data=Data(fixed_cuts=True),
            ),
            "on_policy needs a teacher that runs",
        ),
        (
            lambda: Compress(
                distill=Distill(forward_kl=0.0),
                train=Train(batch_size=64, evaluate_every=0),
                data=Data(sequence_length=16),
                on_policy=OnPolicy(share=0.5, replay=0.5, capacity=32, rise=0.1),
            ),
            "(?s)nothing to learn by.*32 must not exceed.*16.*at least train.batch_size 64.*evaluate_every",
        ),
        (lambda: Evaluate(sequence_length=32, stride=33), "stride 33 must not exceed sequence_length 32"),
        (lambda: Evaluate(max_tokens=0), "max_tokens must be at least 1"),
        (lambda: Compress(data=Data(sequence_length=512)), "must not exceed"),
        (
            lambda: Compress(teacher=Teacher(architecture=Architecture(layers=2)), student=Student(layers=3)),
            "more than",
        ),
        (
            lambda: Compress(
                teacher=Teacher(architecture=Architecture(layers=2)), student=Student(layers=(0, 2))
            ),
            "more than",
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_when_built(build, said):
    with pytest.raises(InputError, match=said):
        build()


def test_all_that_is_wrong_with_a_group_is_said_at_once():
    with pytest.raises(InputError, match=r"(?s)steps must be.*batch_size must be.*learning_rate must be"):
        Train(steps=0, batch_size=0, learning_rate=-1.0)


def test_a_teacher_that_exists_is_not_measured_by_the_architecture_of_a_new_one():
    config = Compress(teacher=Teacher(model="m"), student=Student(layers=12), data=Data(sequence_length=999))
    assert config.student.layers == 12


def test_n_of_m_says_what_share_is_removed():
    assert Sparsity(pattern="n_of_m", n=1, m=4).target == 0.75


def test_every_choice_in_the_schema_is_in_its_table():
    from ragjax.distillation.vocabulary import LOSSES
    from ragjax.quantization.scheme import SCHEMES
    from ragjax.sparsity.budgets import BUDGETS
    from ragjax.sparsity.patterns import PATTERNS
    from ragjax.sparsity.schedules import SPARSITY_SCHEDULES
    from ragjax.sparsity.scores import SCORES
    from ragjax.sparsity.transform import METHODS
    from ragjax.training.optimizer import OPTIMIZERS, learning_rate

    hints = typing.get_type_hints(Sparsity)
    trained = {name for name, score in SCORES.items() if score.needs != "input_norms"}
    assert set(typing.get_args(hints["score"])) == trained
    assert set(typing.get_args(hints["pattern"])) == set(PATTERNS)
    assert set(typing.get_args(hints["schedule"])) == set(SPARSITY_SCHEDULES)
    assert set(typing.get_args(hints["method"])) == set(METHODS)
    assert set(typing.get_args(hints["budget"])) == set(BUDGETS)
    assert set(typing.get_args(typing.get_type_hints(Train)["optimizer"])) == set(OPTIMIZERS)
    for name in typing.get_args(typing.get_type_hints(Train)["schedule"]):
        learning_rate(Train(schedule=name))
    trained = set(typing.get_args(typing.get_type_hints(FakeQuantize)["scheme"])) - {"none"}
    assert trained == {name for name, scheme in SCHEMES.items() if not scheme.activations}
    fields = {f.name for f in dataclasses.fields(typing.get_type_hints(Compress)["distill"])}
    assert set(LOSSES) <= fields
