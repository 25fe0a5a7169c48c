"""A run folder as a compression run leaves it, with figures that can be checked by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from ragjax.seen_files import look

STEP_TOKENS = 2048


def figures(perplexity: float, speed: float, layers: int, sparsity: float, rounds: list[float]) -> dict:
    """Figures of a GPT-2 of width 256 with 2048 tokens, 256 positions and `layers` blocks."""
    prunable = layers * 786_432
    parameters = 590_336 + layers * 789_760
    return {
        "perplexity": perplexity,
        "bits_per_byte": math.log2(perplexity) / 3.9,
        "word_perplexity": perplexity**1.6,
        "tokens": 131_072,
        "parameters": parameters,
        "nonzero_parameters": parameters - int(sparsity * prunable),
        "sparsity_prunable": sparsity,
        "sparsity_total": sparsity * prunable / parameters,
        "stored_bytes": 4 * parameters,
        "tokens_per_second": speed,
        "speed_vs_teacher": speed / 5000,
        "layers": layers,
        "tokens_per_second_rounds": rounds,
    }


def example_summary() -> dict:
    return {
        "ragjax": "0.1.0",
        "seed": 0,
        "data": {"train": "builtin:python", "validation": "builtin:python#validation"},
        "device": {"kind": "cpu", "name": "AMD EPYC 9R14", "count": 1},
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
        "git": "3f1c2a9",
        "seconds": {"teacher": 100.2, "student": 61.0, "control": 44.5, "scratch": 44.1, "evaluate": 18.3},
        "teacher": figures(30.0, 5000, 6, 0.0, [4900, 5000, 5050, 5000, 4950]),
        "student": figures(31.5, 9000, 3, 0.5, [8900, 9000, 9100, 9000, 8950]),
        "control": figures(33.6, 9020, 3, 0.5, [8950, 9020, 9080, 9000, 9040]),
        "scratch": figures(45.2, 8980, 3, 0.5, [8800, 8980, 9100, 9000, 8950]),
    }


def example_metrics() -> list[dict]:
    """Losses that fall by a power of the step; sparsity by the cubic schedule."""
    found = []
    for stage, steps, first, last in (
        ("teacher", 600, 7.6, 3.4), ("student", 400, 4.4, 3.45), ("control", 400, 4.4, 3.515),
        ("scratch", 400, 7.6, 3.81),
    ):  # fmt: skip
        for step in range(10, steps + 1, 10):
            loss = last + (first - last) * math.exp(-6 * step / steps) + 0.03 * math.sin(step * 1.7)
            zeros = 0.0 if stage == "teacher" else 0.5 * (1 - max(0.0, 1 - step / 200) ** 3)
            entry = {
                "stage": stage, "step": step, "time": step * 0.17, "tokens": step * STEP_TOKENS,
                "loss": loss, "cross_entropy": loss, "gradient_norm": 0.9, "learning_rate": 1e-3,
                "sparsity": zeros, "skipped": 0, "tokens_per_second": 11_900 + step,
            }  # fmt: skip
            if stage == "student":
                entry["forward_kl"] = 0.28 + 0.9 * math.exp(-7 * step / steps)
                entry["loss"] = 0.9 * entry["forward_kl"] + 0.1 * loss
            found.append(entry)
            if step % 100 == 0:
                value = loss + 0.02
                found.append({"stage": stage, "step": step, "time": step * 0.17, "validation_loss": value})
    return found


def example_config() -> dict:
    return {
        "kind": "Compress",
        "seed": 0,
        "teacher": {"model": None, "architecture": {"layers": 6, "width": 256}, "train": {"steps": 600}},
        "student": {"layers": 3, "control": True},
        "evaluate": {"sequence_length": 256, "stride": 128, "prompts": []},
    }


def example_masks() -> dict:
    names = [f"layers/attention/{n}/kernel" for n in ("query", "key", "value", "out")]
    sizes = dict.fromkeys(names, 65_536) | {f"layers/mlp/{n}/kernel": 262_144 for n in ("up", "down")}
    return {
        "student": [
            {
                "name": name,
                "layer": layer,
                "size": size,
                "zeros": int(size * (0.32 + 0.06 * i + 0.04 * layer)),
            }
            for i, (name, size) in enumerate(sizes.items())
            for layer in range(3)
        ]
    }


def example_samples() -> list[dict]:
    teacher = (
        "returns a list of the names in the current local scope. With an argument, it attempts to return"
    )
    return [
        {
            "prompt": "The dir() function, called without arguments,",
            "teacher": teacher,
            "student": "returns the list of names in the current scope. If the object has a method named",
            "control": "is a list of the object of the module, and the module is the same as the object",
        },
        {
            "prompt": "If an exception is raised inside a with block,",
            "teacher": "the context manager’s __exit__() method gets the exception and its traceback.",
            "student": "the __exit__() method of the context manager is called, and the exception is raised.",
            "control": "the exception is raised when the exception is raised. The default is None, and the",
        },
    ]


def example_speed(times: float, bytes_: float) -> dict:
    """Figures of a model that is so many times as fast as one of 20 tokens/s."""
    return {
        str(batch): {
            "first_token_seconds": 0.5 / times, "prefill_tokens_per_second": 256 * times * batch,
            "decode_tokens_per_second": 20.0 * times * batch, "bytes_per_token": bytes_ / batch,
            "share_of_bandwidth": 0.5, "prefill_ratio": times, "decode_ratio": times,
        }
        for batch in (1, 8)
    }  # fmt: skip


def example_bench(folder: Path) -> dict:
    """As `ragjax bench` keeps it: the models of a run folder, and a third one beside that folder."""
    models = []
    for role, name, times, perplexity in (
        ("teacher", folder / "teacher", 1.0, None), ("student", folder / "student", 2.0, None),
        (None, folder.parent / "small", 4.0, 33.0),
    ):  # fmt: skip
        seen = look([name / "model.safetensors"])
        models.append(
            {
                "model": str(name), "engine": "jax" if role else "onnx",
                "weights": "float32" if role else "int8", "parameters": 10,
                "batch": example_speed(times, 8e6 / times), "role": role, "folder": str(name),
                "files": seen, "stored_bytes": 8e6 / times, "perplexity": perplexity, "why": None,
            }
        )  # fmt: skip
    return {
        "format": 1, "machine": "a machine", "bandwidth_bytes_per_second": 8e9,
        "options": {"batch": [1, 8], "prompt_tokens": 128, "new_tokens": 64, "rounds": 5},
        "models": models, "date": "2026-11-02T10:00:00+00:00", "versions": {},
        "student_perplexity": 31.5,
    }  # fmt: skip


def write(folder: Path, **files: object) -> Path:
    """Writes each given file; `metrics` as JSON lines, None not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name == "metrics" and content is not None:
            lines = "".join(json.dumps(line) + "\n" for line in content)
            (folder / "metrics.jsonl").write_text(lines)
        elif content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def summary() -> dict:
    return example_summary()


@pytest.fixture
def metrics() -> list[dict]:
    return example_metrics()


@pytest.fixture
def config() -> dict:
    return example_config()


@pytest.fixture
def make_run(tmp_path, summary, metrics, config) -> Callable[..., Path]:
    """Writes a run folder; a keyword replaces one file's content, None leaves that file out."""

    def make(**changes: object) -> Path:
        files = {
            "summary": summary, "metrics": metrics, "config": config, "masks": example_masks(),
            "samples": example_samples(),
        }  # fmt: skip
        return write(tmp_path / "run", **(files | changes))

    return make


@pytest.fixture
def make_bench() -> Callable[[Path], Path]:
    """Adds the figures of a bench to a run folder, with files of the models it is of."""

    def make(run: Path) -> Path:
        for folder in (run / "teacher", run / "student", run.parent / "small"):
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(folder.name.encode())
        return write(run, bench=example_bench(run))

    return make
