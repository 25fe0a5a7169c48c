"""One model trained by itself."""

import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

import ragjax
from ragjax.config import Architecture, Data, Pretrain, Sparsity, Train
from ragjax.data import documents, train_tokenizer
from ragjax.models.decoder import init_params
from ragjax.training.loop import Interrupted

FAST = {"batch_size": 8, "warmup": 1, "log_every": 2, "checkpoint_every": 4, "evaluate_every": 4}


def silent():
    return Console(file=io.StringIO(), width=100)


def test_pretraining_leaves_a_model_any_door_opens(
    text, tmp_path, monkeypatch, monkeypatch_module, stop_after
):
    shape = Architecture(layers=2, width=32, heads=2, positions=32, windows=(0, 8), dropout=0.1)
    still = Train(steps=4, learning_rate=1e-12, **FAST)
    config = Pretrain(
        seed=4,
        architecture=shape,
        data=Data(train=text, sequence_length=32, vocab_size=300, isolate_documents=True),
        train=still,
        sparsity=Sparsity(target=0.5, schedule="one_shot"),
    )
    read = []

    def recorded(texts, vocab_size):
        read.extend(texts)
        return train_tokenizer(read, vocab_size)

    monkeypatch.setattr("ragjax.recipe.starts.train_tokenizer", recorded)
    # Before anything is done, then in the first step, then never.
    for times, said in ((1, "Stopped before model"), (2, "model stopped at step 1")):
        monkeypatch.setattr("ragjax.recipe.open_run.Interrupts", lambda times=times: stop_after(times))
        with pytest.raises(Interrupted, match=said):
            ragjax.pretrain(config, tmp_path / "r", console=silent())
    assert read == list(documents(text, "train"))
    monkeypatch.setattr("ragjax.recipe.open_run.Interrupts", lambda: stop_after(99))
    ragjax.pretrain(config, tmp_path / "r", console=silent())
    assert read == list(documents(text, "train"))

    loaded = ragjax.load(tmp_path / "r")
    assert loaded.config.layer_windows == (0, 8)
    assert loaded.config.eos_token == loaded.config.bos_token == loaded.tokenizer.eos_token_id
    dropout = [getattr(loaded.config, f"{where}_dropout") for where in ("embedding", "attention", "residual")]
    assert dropout == [0.1, 0.1, 0.1]
    start = init_params(loaded.config, 4)
    np.testing.assert_allclose(loaded.params["embedding"]["tokens"], start["embedding"]["tokens"], atol=1e-6)
    assert np.mean(np.asarray(loaded.params["layers"]["mlp"]["up"]["kernel"]) == 0) == 0.5
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    # The first token of a document counts as nobody's target.
    assert [0 < line["tokens"] < line["step"] * 8 * 32 for line in lines if "tokens" in line] == [True, True]

    own = dataclasses.replace(config.data, tokenizer=str(tmp_path / "r" / "tokenizer"), vocab_size=1000)
    onward = dataclasses.replace(config, model=str(tmp_path / "r" / "model"), data=own)
    further = ragjax.pretrain(onward, tmp_path / "s", console=silent())
    assert [entry["did"] for entry in further.history] == ["model", "model"]
    anew = ragjax.pretrain(dataclasses.replace(onward, model=None), tmp_path / "t", console=silent())
    assert anew.config.vocab_size == 300
    assert not (tmp_path / "t" / "tokenizer").exists()
