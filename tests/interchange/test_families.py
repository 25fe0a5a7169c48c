"""What ragjax does to a GPT-2 it does to a model of every family."""

import io
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console

import ragjax
from ragjax.cli import main
from ragjax.config import Compress, Data, Distill, Evaluate, Pretrain, Sparsity, Student, Teacher, Train
from ragjax.generation.continuation import generate_tokens
from ragjax.interchange.families import FAMILIES
from ragjax.sparsity.masks import prunable

_ROTARY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "attn_pdrop": 0.2}
SHAPES = {
    "gpt2": _GPT2,
    "gpt3": {**_GPT2, "attention_windows": [0, 9]},
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 7,
        "attention_types": [[["global", "local"], 1]], "resid_dropout": 0.2,
    },
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 20, "do_layer_norm_before": False,
    },
    "gpt_neox": {**_ROTARY, "attention_bias": False, "hidden_dropout": 0.2},
    "llama": {**_ROTARY, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {
        **_ROTARY, "num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 7,
        "max_window_layers": 1,
    },
}  # fmt: skip
"""Two layers of width 32, of which the second will be kept: that with the window, where there is one."""

BRIEF = Train(steps=2, batch_size=8, warmup=1, evaluate_every=0)
PROMPT = "the first of them"
_QUICK = {"llama"}
"""One that has little in common with a GPT-2; the others are slow tests."""


class Run(NamedTuple):
    family: str
    folder: object
    figures: dict
    config: Compress


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(12):
        words = rng.choice(["the", "first", "of", "them", "and", "then", "no", "more"], 60)
        (folder / f"{number}.txt").write_text(" ".join(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield f"text:{folder}/*.txt"


@pytest.fixture(
    scope="module", params=[pytest.param(f, marks=[] if f in _QUICK else pytest.mark.slow) for f in FAMILIES]
)
def run(request, text, byte_tokenizer, tmp_path_factory, random_model):
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    ends = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
    shape = FAMILIES[family].config_from({"model_type": family, **ends, **SHAPES[family]})
    ragjax.save(random_model(shape, spread=0.2, tokenizer=byte_tokenizer), folder / "teacher")
    config = Compress(
        teacher=Teacher(model=str(folder / "teacher")),
        student=Student(layers=(1,), control=False),
        data=Data(train=text, sequence_length=24),
        train=BRIEF,
        sparsity=Sparsity(target=0.5, stop=1, every=1),
        distill=Distill(hidden_mse=0.1),
        evaluate=Evaluate(max_tokens=200, speed_rounds=1, sample_tokens=8, prompts=(PROMPT,)),
    )
    figures = ragjax.compress(config, folder / "run", console=Console(file=io.StringIO()))
    return Run(family, folder / "run", figures, config)


def test_a_student_is_of_its_teachers_family_and_half_of_it_is_gone(run):
    values = json.loads((run.folder / "student" / "config.json").read_text())
    assert values["model_type"] == run.family
    teacher, student = ragjax.load(run.config.teacher.model).config, ragjax.load(run.folder).config
    assert student.layer_windows == teacher.layer_windows[1:]
    assert run.figures["student"].sparsity_prunable == pytest.approx(0.5, abs=1e-3)
    assert run.figures["student"].parameters < run.figures["teacher"].parameters
    assert np.isfinite([each.perplexity for each in run.figures.values()]).all()
    assert (run.folder / "report.html").is_file()


def test_the_commands_measure_a_student_and_continue_a_prompt(run, capsys):
    main(["eval", str(run.folder), "--data", run.config.data.train, "--max-tokens", "100", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["parameters"] == run.figures["student"].parameters
    assert 1 < told["perplexity"] < 1e4
    main(["generate", str(run.folder), "--prompt", PROMPT, "--max-new-tokens", "8"])
    (sample,) = json.loads((run.folder / "samples.json").read_text())
    assert capsys.readouterr().out == PROMPT + sample["student"] + "\n"


def test_a_student_is_the_same_in_transformers(run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if run.family == "gpt3":
        pytest.skip("transformers has no such class")
    ours, student = ragjax.load(run.folder), run.folder / "student"
    theirs = AutoModelForCausalLM.from_pretrained(student, attn_implementation="eager").eval()
    assert theirs.num_parameters() == run.figures["student"].parameters
    prompt = AutoTokenizer.from_pretrained(student).encode(PROMPT)
    tokens = torch.tensor([prompt])
    np.testing.assert_allclose(ours([prompt]), theirs(tokens).logits.detach().numpy(), atol=1e-4)
    told = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=8, pad_token_id=256
    )
    (answer,) = generate_tokens(ours, [prompt], max_new_tokens=8)
    assert answer.tolist() == told[0, len(prompt) :].tolist()


@pytest.mark.parametrize("run", ["llama"], indirect=True)
def test_what_was_pruned_stays_pruned_in_a_later_training(run, tmp_path):
    before = ragjax.load(run.folder)
    config = Pretrain(model=str(run.folder), data=run.config.data, train=BRIEF)
    after = ragjax.pretrain(config, tmp_path, console=Console(file=io.StringIO()))
    for zeros, now in zip(
        jax.tree.leaves(prunable(before.params)), jax.tree.leaves(prunable(after.params)), strict=True
    ):
        assert not np.asarray(now)[np.asarray(zeros) == 0].any()
        assert (np.asarray(now) != np.asarray(zeros)).any()
