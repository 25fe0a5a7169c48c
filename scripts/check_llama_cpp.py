"""Runs ragjax's GGUF files in llama.cpp, and compares tokens, logits and greedy continuations with ragjax.

    python scripts/check_llama_cpp.py [MODEL ...] [--python PYTHON]

Without MODEL, random small models of every architecture that is written are compared. llama-cpp-python
may be installed beside ragjax or, since it must be built, in an environment of its own, whose interpreter
--python (or RAGJAX_LLAMA_PYTHON) names. Ends with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

import ragjax
from ragjax.data import train_tokenizer
from ragjax.generation import generate_tokens
from ragjax.interchange.gguf import write_gguf
from ragjax.interchange.layout import parameter_shapes
from ragjax.model import Model
from ragjax.models.decoder_config import DecoderConfig, Rotary, RotaryScaling

PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "It's 3 o'clock; they'll've 12,345 naïve cafés…  and   spaces\n\n\t漢字 🙂 end",
)
NEW_TOKENS = 24
TOLERANCE = 0.01
"""Logits: llama.cpp looks GELU and SiLU up in tables of half precision."""

LLAMA = """
import json, sys
import numpy as np
from llama_cpp import Llama
job = json.load(sys.stdin)
model = Llama(job["file"], n_ctx=job["length"], n_batch=job["length"], logits_all=True, verbose=False,
              type_k=0, type_v=0, n_gpu_layers=0)
answers = []
for prompt, ids in zip(job["prompts"], job["ids"]):
    model.reset()
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    new = [int(logits[-1].argmax())]
    for _ in range(job["new"] - 1):
        model.eval(new[-1:])
        new.append(int(np.array(model.scores[model.n_tokens - 1]).argmax()))
    tokens = model.tokenize(prompt.encode(), add_bos=True, special=False)
    answers.append({"tokens": tokens, "new": new})
    np.save(job["folder"] + f"/{len(answers)}.npy", logits)
json.dump(answers, open(job["folder"] + "/answers.json", "w"))
"""
"""What the other interpreter runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--python", default=os.environ.get("RAGJAX_LLAMA_PYTHON", sys.executable))
    given = parser.parse_args()
    models = {name: ragjax.load(name) for name in given.models} or random_models()
    same = [compare(name, model, given.python) for name, model in models.items()]
    raise SystemExit(0 if all(same) else 1)


def compare(name: str, model: Model, python: str) -> bool:
    """Whether llama.cpp, run by the interpreter `python`, does what ragjax does; prints how well."""
    assert model.tokenizer is not None
    ids = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    length = max(map(len, ids)) + NEW_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        file = write_gguf(model, Path(folder, "model.gguf")).path
        job: dict[str, Any] = {"file": str(file), "folder": folder, "prompts": PROMPTS, "ids": ids}
        job |= {"length": length, "new": NEW_TOKENS}
        subprocess.run([python, "-c", LLAMA], input=json.dumps(job), text=True, check=True)
        answers = json.loads(Path(folder, "answers.json").read_text())
        theirs = [np.load(Path(folder, f"{i + 1}.npy")) for i in range(len(ids))]
    ours = [np.asarray(model(np.array([tokens], np.int32)))[0] for tokens in ids]
    difference = max(float(abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    new = [t.tolist() for t in generate_tokens(model, ids, max_new_tokens=NEW_TOKENS, stop_at_eos=False)]
    found = {
        "tokens": all(answer["tokens"] == tokens for answer, tokens in zip(answers, ids, strict=True)),
        "logits": difference < TOLERANCE,
        "continuations": all(answer["new"] == tokens for answer, tokens in zip(answers, new, strict=True)),
    }
    told = ", ".join(f"{what} {'same' if same else 'DIFFER'}" for what, same in found.items())
    print(f"{name}: {told}; logits differ by {difference:.1e} at most", flush=True)
    return all(found.values())


def random_models() -> dict[str, Model]:
    """Small models of every architecture, with odd settings."""
    tokenizer = train_tokenizer([prompt * 3 for prompt in PROMPTS], 300)
    size = len(tokenizer)
    shape = {
        "vocab_size": size, "positions": 256, "width": 48, "layers": 3, "heads": 6,
        "bos_token": size - 1, "eos_token": size - 1,
    }  # fmt: skip
    llama = {
        **shape, "mlp_width": 80, "kv_heads": 2, "learned_positions": False, "norm": "rms", "gated": True,
        "activation": "silu", "attention_bias": False, "attention_out_bias": False, "mlp_bias": False,
    }  # fmt: skip
    long, linear = (Rotary(5e5, None, RotaryScaling(*s)) for s in (("llama3", 8.0), ("linear", 4.0)))
    configs = {
        "gpt2": DecoderConfig(**shape, mlp_width=192),
        "gpt2, untied, odd MLP": DecoderConfig(**shape, mlp_width=100, tied=False),
        "llama": DecoderConfig(**llama, rotary=Rotary()),
        "llama, untied": DecoderConfig(**llama, rotary=Rotary(), tied=False),
        "llama, wide heads, biases": DecoderConfig(
            **{**llama, "attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
            rotary=Rotary(), head_size=16,
        ),
        "llama 3": DecoderConfig(**llama, rotary=long),
        "llama, linear scaling": DecoderConfig(**llama, rotary=linear),
        "qwen2": DecoderConfig(**{**llama, "attention_bias": True}, rotary=Rotary(1e6)),
    }  # fmt: skip
    return {name: Model(config, _random(config), tokenizer) for name, config in configs.items()}


def _random(config: DecoderConfig) -> dict[str, Any]:
    """Random parameters, biases and norms among them."""
    random = np.random.default_rng(0)
    params = {}
    for path, shape in parameter_shapes(config).items():
        values = random.standard_normal(shape) * 0.2 + path.endswith("scale")
        if shape[0] == config.padded_vocab_size:
            values[config.vocab_size :] = 0
        params[path] = jnp.asarray(values, jnp.float32)
    return unflatten_dict(params, sep="/")


if __name__ == "__main__":
    main()
