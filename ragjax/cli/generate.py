"""The verb `generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from json import JSONDecodeError, dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from ragjax.cli import dataset
from ragjax.cli.arguments import ModelName
from ragjax.cli.engine import Engine, load_for
from ragjax.config import Decoding, Mesh
from ragjax.errors import InputError

if TYPE_CHECKING:
    from ragjax.generation import Continuation, Speculation


@dataclass(frozen=True)
class _GenerateCommand:
    """Continue prompts. A single one is printed as it is written.

    With --dataset OUT.jsonl it completes the prompts of a source, and writes a corpus:
    ragjax generate --dataset --help tells more.
    """

    model: ModelName
    options: Annotated[Decoding, arg(name="")] = field(default_factory=Decoding)
    draft: str | None = None
    """MODEL, faster and of the same vocabulary, that proposes tokens; the text stays MODEL's own."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """A text to continue; give it several times for several."""
    prompts_file: Path | None = None
    """Texts to continue, one a line; in a .jsonl file each line is a JSON string."""
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by."""
    engine: Engine | None = None
    """What runs MODEL: jax, or onnx: onnxruntime, on CPU. None: jax, or onnx for what `ragjax export --format
    onnx` wrote, which it alone runs."""
    threads: int | None = None
    """With onnx: threads. None: as many as there are cores."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object: texts, tokens, why each ended, and what was asked for besides."""


def run(given: list[str]) -> None:
    """Does `ragjax generate`, given the words that follow it."""
    if any(word.partition("=")[0] == "--dataset" for word in given):
        dataset.run(given)
        return
    command = tyro.cli(_GenerateCommand, args=given, prog="ragjax generate")
    prompts = [*command.prompt, *(_read(command.prompts_file) if command.prompts_file else ())]
    if not prompts:
        raise InputError("There is nothing to continue: give --prompt TEXT, or --prompts-file FILE.")
    from ragjax.generation import continuations
    from ragjax.interchange.folder import load
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.parallel.working_mesh import working_mesh

    keep_compiled_programs()
    mesh = working_mesh(command.mesh)
    model = load_for(
        command.engine, command.model, threads=command.threads, options=command.options, draft=command.draft,
        mesh=mesh,
    )  # fmt: skip
    draft = None if command.draft is None else load(command.draft, mesh=mesh)
    alone = len(prompts) == 1 and not command.json
    if alone:
        print(prompts[0], end="", flush=True)
    told = continuations(
        model, prompts, command.options, draft=draft, mesh=mesh,
        on_text=(lambda _, piece: print(piece, end="", flush=True)) if alone else None,
    )  # fmt: skip
    if command.json:
        each = [_as_json(prompt, one) for prompt, one in zip(prompts, told, strict=True)]
        print(dumps({"continuations": each} | _speculation(told[0].speculation)))
    elif alone:
        print()
    else:
        print("\n\n".join(f"{prompt}{one.text}" for prompt, one in zip(prompts, told, strict=True)))
    if told[0].speculation and not command.json:
        print(_summary(told[0].speculation), file=sys.stderr)


def _read(file: Path) -> list[str]:
    """The prompts in a file."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}.") from error
    if file.suffix != ".jsonl":
        return lines
    return [_string(file, number, line) for number, line in enumerate(lines, 1)]


def _string(file: Path, number: int, line: str) -> str:
    try:
        value = loads(line)
    except JSONDecodeError:
        value = None
    if not isinstance(value, str):
        raise InputError(
            f'{file}: line {number} must be a JSON string, such as "Once upon", found {line[:60]}.'
        )
    return value


def _as_json(prompt: str, one: Continuation) -> dict[str, Any]:
    """A continuation with what was not asked for left out."""
    known = {
        name: value for name, value in asdict(one).items() if value is not None and name != "speculation"
    }
    lists = {name: value.tolist() for name, value in known.items() if hasattr(value, "tolist")}
    return {"prompt": prompt, **known, **lists}


def _speculation(found: Speculation | None) -> dict[str, Any]:
    """How a draft did, as a part of the JSON object."""
    if found is None:
        return {}
    return {"speculation": asdict(found) | {"acceptance": found.acceptance, "speed_up": found.speed_up}}


def _summary(found: Speculation) -> str:
    """How a draft did, in a line."""
    faster = "" if found.speed_up is None else f", {found.speed_up:.2f} times as fast as the model alone"
    return (
        f"draft: {found.acceptance:.0%} of {found.drafted} drafted tokens kept, {found.rounds} rounds{faster}"
    )
