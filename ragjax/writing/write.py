"""A model writes a corpus: its completions of many prompts, as pairs that a student learns from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from ragjax.config import Mesh, Writing
from ragjax.data.tokenizer import encode_prompts, fingerprint
from ragjax.data.uri import parse_uri
from ragjax.duration import duration
from ragjax.generation import generate_tokens
from ragjax.generation.prompts import end_tokens, tokenizer_of
from ragjax.interchange.folder import load
from ragjax.model import Model
from ragjax.pace import Pace
from ragjax.parallel import hosts
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.mesh import batch_shards
from ragjax.parallel.working_mesh import working_mesh
from ragjax.teacher_cache import teacher_digest
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted
from ragjax.writing.dataset import Dataset, Written
from ragjax.writing.prompts import Prompts, read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_dataset(
    model: str,
    out: str | Path,
    asked: Writing,
    *,
    devices: Mesh | None = None,
    console: Console | None = None,
) -> Written:
    """Has a model complete prompts, and writes both as JSON lines that are a source of pairs.

    A line is {"prompt": ..., "completion": ..., "ended": ...}; read as jsonl:OUT#prompt,completion,ended, no
    end is learned where the model was cut off. The draws of a completion depend on the seed and on the
    number of its row alone: not on its batch, nor on where a run was stopped. The same call goes on where an
    earlier one stopped.

    Args:
      model: MODEL.
      out: the file to write; its name ends in .jsonl. What it is made from is kept beside it.
      asked: the prompts, and how they are completed.
      devices: how those that share the work are laid out; none: each with a copy of the model.
      console: where progress is printed; none: standard output.

    Returns:
      What was written.

    Raises:
      InputError: the model, the prompts or the file cannot be used; or what is there was made from others.
      Interrupted: SIGINT or SIGTERM; what is written is kept.

    Reference: Kim and Rush, "Sequence-Level Knowledge Distillation", https://arxiv.org/abs/1606.07947
    """
    parse_uri(asked.prompts)
    hosts.start()
    keep_compiled_programs()
    mesh = working_mesh(devices or Mesh())
    console = (console or Console(highlight=False)) if hosts.is_writer() else Console(quiet=True)
    loaded = load(model, mesh=mesh)
    prompts = read_prompts(asked, tokenizer_of(loaded), loaded.config.positions)
    settings = _settings(loaded, prompts, asked)
    origin = {"model": model, **asdict(asked)}
    with ExitStack() as held:
        files: list[Dataset] = []

        def begin() -> list[Any]:
            files.append(Dataset(out, settings, origin))
            held.callback(files[0].close)
            return [files[0].finished, asdict(files[0].written)]

        def keep(lines: str, written: Written) -> Written:
            return Written(**from_writer(lambda: asdict(files[0].append(lines, written))))

        finished, there = from_writer(begin)
        written = Written(**there)
        _announce(console, asked, prompts, written, out)
        if not finished:
            with nullcontext() if mesh is None else jax.set_mesh(mesh):
                parts = 1 if mesh is None else batch_shards(mesh)
                writer = _Writer(loaded, prompts.texts, asked, parts=parts)
                written = _write_on(writer, written, keep, Pace(console, "completions", writer.rows))
            from_writer(lambda: files[0].finish())
    _tell_end(console, written, asked, out)
    return written


def _write_on(
    writer: _Writer, written: Written, keep: Callable[[str, Written], Written], pace: Pace
) -> Written:
    """Writes what is not there yet."""
    with Interrupts() as interrupts:
        while written.rows < writer.rows:
            written = keep(*writer.after(written))
            pace(written.rows, written.tokens)
            if interrupts.requested() and written.rows < writer.rows:
                done = f"{written.rows:,} of {writer.rows:,} completions"
                raise Interrupted(f"Stopped after {done}, which are kept")
    return written


class _Writer:
    """Writes the rows of a dataset: of each prompt its samples, one prompt after another."""

    def __init__(self, model: Model, prompts: list[str], asked: Writing, *, parts: int):
        self._model, self._prompts, self._asked = model, prompts, asked
        self._tokenizer, self._ends = tokenizer_of(model), end_tokens(model)
        self.rows = len(prompts) * asked.samples
        self._at_once = -(-asked.batch_size // parts) * parts

    def after(self, written: Written) -> tuple[str, Written]:
        """The lines of the next batch, and how far the dataset is with them."""
        began = time.monotonic()
        asked, first = self._asked, written.rows
        # A last batch that is not full is filled up with its last row: it has the program of the others.
        numbers = np.minimum(np.arange(first, first + self._at_once), self.rows - 1)
        texts = [self._prompts[number // asked.samples] for number in numbers]
        ids = encode_prompts(self._tokenizer, texts)
        answers = generate_tokens(
            self._model, ids, max_new_tokens=asked.max_new_tokens, temperature=asked.temperature,
            seed=asked.seed, rows=numbers.tolist(),
        )  # fmt: skip
        lines, blank, cut, tokens = [], 0, 0, 0
        count = min(self._at_once, self.rows - first)
        for text, prompt, answer in zip(texts[:count], ids, answers, strict=False):
            ended = bool(len(answer)) and int(answer[-1]) in self._ends
            completion = _text(self._tokenizer, prompt, answer[:-1] if ended else answer)
            tokens += len(answer)
            cut += not ended
            if completion.strip():
                line = {"prompt": text, "completion": completion, "ended": ended}
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
            else:
                blank += 1
        return "".join(lines), Written(
            rows=first + count,
            pairs=written.pairs + len(lines),
            blank=written.blank + blank,
            cut=written.cut + cut,
            tokens=written.tokens + tokens,
            seconds=round(written.seconds + time.monotonic() - began, 3),
        )


def _text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: np.ndarray) -> str:
    """What `answer` adds to the text of `prompt`, in whole characters."""

    def decoded(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    whole = decoded([*prompt, *answer.tolist()])
    return whole[len(decoded(list(prompt))) :].rstrip("\N{REPLACEMENT CHARACTER}")


def _settings(model: Model, prompts: Prompts, asked: Writing) -> dict:
    """What the lines depend on."""
    digest = sha256(json.dumps(prompts.texts).encode()).hexdigest()
    return {
        "model": teacher_digest(model),
        "tokenizer": fingerprint(tokenizer_of(model)),
        "prompts": digest,
        "count of prompts": len(prompts.texts),
        "samples": asked.samples,
        "max_new_tokens": asked.max_new_tokens,
        "temperature": asked.temperature,
        "seed": asked.seed,
    }


def _announce(console: Console, asked: Writing, prompts: Prompts, written: Written, out: str | Path) -> None:
    each = "a completion" if asked.samples == 1 else f"{asked.samples} completions"
    console.print(
        f"[bold]write[/bold] {escape(str(out))}: {each} of each of {len(prompts.texts):,} prompts, "
        f"{asked.max_new_tokens} tokens at most, at temperature {asked.temperature:g}",
        soft_wrap=True,
    )
    if prompts.left_out:
        console.print(f"  prompts left out, as they leave no room: {prompts.left_out:,}")
    if written.rows:
        console.print(f"  there are {written.rows:,} completions already")


def _tell_end(console: Console, written: Written, asked: Writing, out: str | Path) -> None:
    told = f"{written.pairs:,} pairs, {written.tokens:,} tokens in {duration(written.seconds)}"
    told += f"; cut at {asked.max_new_tokens} tokens: {written.cut:,}" if written.cut else ""
    told += f"; left out, as they are blank: {written.blank:,}" if written.blank else ""
    console.print(
        f"[bold]dataset[/bold] {escape(str(out))}: {told}\n"
        f"  learn from it: --data.train jsonl:{escape(str(out))}#prompt,completion,ended",
        soft_wrap=True,
    )
