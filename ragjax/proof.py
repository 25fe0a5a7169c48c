"""The proof of a compression: every model of a run measured alike, and what they write side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ragjax.config import Compress, Data, to_dict
from ragjax.data import open_corpora
from ragjax.data.sources import pairs
from ragjax.data.tokenizer import encode_prompts
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError
from ragjax.evaluation.figures import Figures, default_length, evaluate
from ragjax.evaluation.speed import forward_speed
from ragjax.evaluation.table import print_figures
from ragjax.generation import generate
from ragjax.generation.prompts import tokenizer_of
from ragjax.interchange.folder import load
from ragjax.interchange.record import zeros
from ragjax.interchange.size import stored_bytes, weight_files
from ragjax.model import Model
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.hosts import is_writer
from ragjax.run_folder import RunFolder, git_revision, processor_name, versions
from ragjax.training.fit import Place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROMPTS = 3
_PROMPT_TOKENS = 24


def prove(
    config: Compress,
    folder: RunFolder,
    models: dict[str, str | Path],
    place: Place,
    *,
    stop_if_asked: Callable[[str], None],
) -> dict[str, Figures]:
    """Measures the models of a run and writes `summary.json`, `masks.json` and `samples.json`.

    Models are loaded from their folders, so that what is measured is what is handed out. Nothing is
    measured again while config and models are as they were.

    Args:
      config: the run's.
      folder: the run folder.
      models: MODEL of `teacher`, `student`, and those it is compared with.
      place: the devices that hold the models, and the terminal that shows the table.
      stop_if_asked: called between measurements; raises where someone asked to stop.

    Returns:
      The figures by name.
    """
    console, mesh = place.console, place.mesh
    identity, known = from_writer(lambda: [_identity(config, models), folder.read_json("summary.json")])
    names = [field.name for field in fields(Figures)]
    if known and known.get("identity") == identity and all(known[n].keys() >= set(names) for n in models):
        figures = {name: Figures(**{key: known[name][key] for key in names}) for name in models}
        print_figures(figures, console)
        return figures

    console.print("[bold]evaluate[/bold]", highlight=False)
    began = time.monotonic()
    loaded = {name: load(model, mesh=mesh) for name, model in models.items()}
    # What was trained here was saved with the run's tokenizer; the teacher may have come with none.
    loaded["teacher"] = replace(loaded["teacher"], tokenizer=loaded["student"].tokenizer)
    wanted = config.evaluate
    length = wanted.sequence_length or default_length(*loaded.values())
    with jax.set_mesh(mesh):
        speeds = forward_speed(loaded, batch=wanted.batch_size, length=length, rounds=wanted.speed_rounds)
    figures = {}
    for name, model in loaded.items():
        stop_if_asked(f"the {name} was measured")
        figures[name] = evaluate(
            model,
            config.data.validation or config.data.train,
            split="validation" if config.data.validation is None else None,
            sequence_length=length,
            stride=wanted.stride,
            max_tokens=wanted.max_tokens,
            batch_size=wanted.batch_size,
            stored_bytes=stored_bytes(models[name]),
            speed=speeds[name],
            cache=config.data.cache,
            mesh=mesh,
        )
    stop_if_asked("the samples were written")
    with jax.set_mesh(mesh):
        samples = _samples(config, loaded)
    masks = {name: _zeros(model) for name, model in loaded.items() if name != "teacher"}
    if is_writer():
        folder.write_json("masks.json", masks)
        folder.write_json("samples.json", samples)
        folder.write_json(
            "summary.json",
            {
                "identity": identity,
                "ragjax": versions()["ragjax"],
                "seed": config.seed,
                "data": {"train": config.data.train, "validation": config.data.validation},
                "sequence_length": length,
                "device": {
                    "kind": jax.devices()[0].platform,
                    "name": processor_name()
                    if jax.devices()[0].platform == "cpu"
                    else jax.devices()[0].device_kind,
                    "count": jax.device_count(),
                },
                "versions": versions(),
                "git": git_revision(),
                "seconds": _seconds(loaded) | {"evaluate": round(time.monotonic() - began, 1)},
                **{
                    name: asdict(value) | {"tokens_per_second_rounds": speeds[name].rounds}
                    for name, value in figures.items()
                },
            },
        )
    print_figures(figures, console)
    return figures


def _identity(config: Compress, models: dict[str, str | Path]) -> dict[str, Any]:
    """What the figures depend on: the config, and the files of weights; not where the run folder lies."""
    files = {
        name: [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in weight_files(model)]
        for name, model in models.items()
    }
    return json.loads(json.dumps({"config": to_dict(config), "models": files}))


def _seconds(models: dict[str, Model]) -> dict[str, float]:
    """How long each model trained in this run, as its history says."""
    last = {name: model.history[-1] for name, model in models.items() if model.history}
    return {name: entry["seconds"] for name, entry in last.items() if entry.get("did") == name}


def _zeros(model: Model) -> list[dict[str, Any]]:
    """Zeros of each prunable matrix in each layer."""
    return [
        {"name": name, "layer": layer, "size": matrix["size"], "zeros": count}
        for name, matrix in zeros(model.params)["matrices"].items()
        for layer, count in enumerate(matrix["zeros"])
    ]


def _samples(config: Compress, models: dict[str, Model]) -> list[dict[str, str]]:
    """How each model continues the same prompts, taking the likeliest token each time."""
    teacher = models["teacher"]
    prompts = list(config.evaluate.prompts) or _beginnings(config, teacher)
    room = min(m.config.positions for m in models.values()) - config.evaluate.sample_tokens
    tokenized = encode_prompts(tokenizer_of(teacher), prompts)
    long = [p for p, tokens in zip(prompts, tokenized, strict=True) if len(tokens) > room]
    if long:
        raise InputError(
            f"evaluate.prompts must leave room for evaluate.sample_tokens {config.evaluate.sample_tokens}: "
            f"at most {room} tokens, found longer: {long}"
        )
    continued = {
        name: generate(model, prompts, max_new_tokens=config.evaluate.sample_tokens)
        for name, model in models.items()
    }
    return [
        {"prompt": prompt, **{name: texts[i] for name, texts in continued.items()}}
        for i, prompt in enumerate(prompts)
    ]


def _beginnings(config: Compress, teacher: Model) -> list[str]:
    """Beginnings of validation documents long enough to be continued; of pairs, prompts that fit."""
    tokenizer, data = tokenizer_of(teacher), config.data
    if parse_uri(data.train).of_pairs:
        return _prompts(data, tokenizer, teacher.config.positions - config.evaluate.sample_tokens)
    _, held_out = open_corpora(data.train, data.validation, tokenizer, cache=data.cache)
    room = min(_PROMPT_TOKENS, max(1, teacher.config.positions - config.evaluate.sample_tokens))
    found = []
    for number in range(held_out.documents):
        document = held_out.document(number)
        if len(document) >= 2 * room or number == held_out.documents - 1:
            text = tokenizer.decode(document[:room], skip_special_tokens=True)
            assert isinstance(text, str)
            found.append(text.rsplit(" ", 1)[0] if " " in text.strip() else text)
        if len(found) == _PROMPTS:
            break
    return found


def _prompts(data: Data, tokenizer: PreTrainedTokenizerBase, room: int) -> list[str]:
    """The first different prompts of validation pairs that are not longer than `room` tokens."""
    held_out = pairs(data.validation or data.train, "validation" if data.validation is None else None)
    found: list[str] = []
    for pair in held_out:
        if pair.prompt not in found and len(encode_prompts(tokenizer, [pair.prompt])[0]) <= room:
            found.append(pair.prompt)
        if len(found) == _PROMPTS:
            break
    return found
