"""The verb `bench`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from json import dumps
from shlex import quote
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, arg

from ragjax.cli.arguments import ModelName
from ragjax.cli.engine import Engine, load_for
from ragjax.config import Bench, Decoding
from ragjax.errors import InputError


@dataclass(frozen=True)
class _BenchCommand:
    """Measure how fast models read prompts and write on, in turns, beside what memory allows.

    Where models of a run are compared, the figures are kept in its folder, for `ragjax report`.
    """

    model: ModelName
    options: Annotated[Bench, arg(name="")] = field(default_factory=Bench)
    against: tuple[str, ...] = ()
    """MODELs measured in turns with the first, of any vocabulary: its student, or what quantize or export
    --format onnx wrote."""
    engine: Engine | None = None
    """What runs the models: jax, or onnx: onnxruntime, on CPU. None: jax, or onnx for what `ragjax export
    --format onnx` wrote, which it alone runs."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def run(given: list[str]) -> None:
    """Does `ragjax bench`, given the words that follow it."""
    command = tyro.cli(_BenchCommand, args=given, prog="ragjax bench")
    from rich.console import Console

    from ragjax.benchmark import bench, keep, print_report, run_of
    from ragjax.interchange.onnx import is_onnx
    from ragjax.parallel.compile_cache import keep_compiled_programs

    names, threads = [command.model, *command.against], command.options.threads
    engines: list[Engine] = [command.engine or ("onnx" if is_onnx(name) else "jax") for name in names]
    if threads is not None and "onnx" not in engines:
        raise InputError(
            f"threads are those of onnxruntime, found {threads}: leave it out, or set engine to onnx."
        )
    _check_there(names)
    keep_compiled_programs()
    opened = {
        (engine, name): load_for(
            engine, name, threads=threads if engine == "onnx" else None, options=Decoding(), draft=None,
            mesh=None,
        )
        for engine, name in dict.fromkeys(zip(engines, names, strict=True))
    }  # fmt: skip
    models = [opened[each] for each in zip(engines, names, strict=True)]
    console = Console(stderr=command.json, highlight=False, soft_wrap=True)
    report = bench(
        list(zip(names, models, strict=True)), command.options, progress=partial(console.print, markup=False)
    )
    if command.json:
        print(dumps(asdict(report)))
    else:
        print_report(report)
    folder = run_of(names)
    if folder is not None and len(names) > 1:
        kept = keep(folder, report, models, progress=partial(console.print, markup=False))
        console.print(f"Kept in {kept}: ragjax report {quote(str(folder.path))} draws it.", markup=False)


def _check_there(names: list[str]) -> None:
    """Refuses models that are not there, all at once and before one is read."""
    from ragjax.interchange.onnx import is_onnx
    from ragjax.interchange.resolve import resolve

    problems = []
    for name in dict.fromkeys(names):
        if not is_onnx(name):
            try:
                resolve(name)
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
