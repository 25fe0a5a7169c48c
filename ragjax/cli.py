"""The command line: each verb parses, calls one function, prints."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from inspect import cleandoc
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from ragjax.config import (
    Compress,
    Mesh,
    OneShot,
    OneShotBudget,
    OneShotMethod,
    Pattern,
    Pretrain,
    Shrink,
)
from ragjax.config_file import read_config
from ragjax.errors import InputError

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 130

_OVERVIEW = """\
ragjax takes a GPT and hands back a smaller, faster one, with the proof that it kept its quality.

usage: ragjax VERB ...

  compress   CONFIG   teacher -> pruned and distilled student -> evaluation -> report
  train      CONFIG   train one model, from scratch or on from another
  prune      MODEL    remove weights of a trained model at once, guided by a text; --compare methods
  sensitivity MODEL   how much pruning each matrix bears
  shrink     MODEL    take neurons, heads, width or layers out, to sizes or to a budget
  eval       MODEL    perplexity, size, sparsity and speed
  generate   MODEL    continue a prompt
  export     MODEL    write it for another runtime: Hugging Face, GGUF, StableHLO
  tokenizer  SOURCE   train a byte-level BPE tokenizer
  report     RUN      write a run's report.html again
  doctor              what this machine offers, and what is amiss

MODEL is a Hugging Face folder, a GGUF file, a hub id (openai-community/gpt2), or a ragjax run folder.
`ragjax VERB --help` tells more. To begin, offline, in about five minutes on two CPU cores:

  ragjax compress configs/quickstart.py
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 bad input, 3 diverged, 75 stopped and saved, 130 stopped."""
    # Only tokenizers are asked of transformers, which would complain that torch is not there.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_OVERVIEW, end="")
        return
    if given[0] == "--version":
        from ragjax.run_folder import versions

        print(f"ragjax {versions()['ragjax']}")
        return
    verb, rest = given[0], given[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        _fail(
            f"There is no verb {verb!r}"
            + (f"; did you mean {near[0]}?" if near else f": {', '.join(VERBS)}.")
        )
    try:
        VERBS[verb](rest)
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"{error.strerror}: free some space and run it again; what is done is kept.")
    except KeyboardInterrupt:
        _fail("stopped at once; what was saved before is still there.", EXIT_STOPPED)


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    print(f"ragjax: {message}", file=sys.stderr)
    raise SystemExit(code)


@dataclass(frozen=True)
class _CompressCommand:
    """Compress a model: teacher, student, control, evaluation, report; each stage goes on where it stopped.

    Any field of the config can be set here. The result is RUN/student, a Hugging Face folder, and
    RUN/report.html.
    """

    config: Annotated[Compress, arg(name="")]
    workdir: Path | None = None
    """RUN, the run folder; none: runs/NAME-OF-CONFIG."""
    scratch: FlagCreatePairsOff[bool] = False
    """Also train a student of the same shape from a random start, as --student.scratch."""


@dataclass(frozen=True)
class _TrainCommand:
    """Train one model, from scratch or on from another; the same command goes on where it stopped.

    Any field of the config can be set here. The result is RUN/model, a Hugging Face folder.
    """

    config: Annotated[Pretrain, arg(name="")]
    workdir: Path | None = None
    """RUN, the run folder; none: runs/NAME-OF-CONFIG."""


def _compress(given: list[str]) -> None:
    command, workdir = _run_command("compress", given, _CompressCommand, Compress)
    config = command.config
    if command.scratch:
        config = replace(config, student=replace(config.student, scratch=True))
    from ragjax.recipe import compress

    _long_work(lambda: compress(config, workdir), f"ragjax compress {workdir / 'config.json'}")


def _train(given: list[str]) -> None:
    command, workdir = _run_command("train", given, _TrainCommand, Pretrain)
    from ragjax.recipe import pretrain

    _long_work(lambda: pretrain(command.config, workdir), f"ragjax train {workdir / 'config.json'}")


def _run_command(verb: str, given: list[str], command: type, kind: type) -> tuple[Any, Path]:
    """The command with its config file read and overridden, and the run folder."""
    file = Path(given[0] if given and not given[0].startswith("-") else "")
    asked = {"-h", "--help"} & set(given)
    if not file.name and not asked:
        raise InputError(
            f"A config file comes first: ragjax {verb} CONFIG.py [options]; see ragjax {verb} --help."
        )
    config, told = read_config(file) if file.name else (kind(), "")
    if not isinstance(config, kind):
        other = "train" if kind is Compress else "compress"
        raise InputError(f"{file} holds a {type(config).__name__}: use `ragjax {other} {file}`.")
    parsed = tyro.cli(
        command,
        default=command(config=config),
        args=given[1:] if file.name else given,
        prog=f"ragjax {verb} {file if file.name else 'CONFIG.py'}",
        description="\n\n".join(filter(None, [cleandoc(command.__doc__ or ""), told])),
    )
    workdir = parsed.workdir
    if workdir is None:
        # The config of a run folder goes on in that folder.
        workdir = Path("runs") / file.stem if file.suffix == ".py" else file.parent
    return parsed, workdir


def _long_work(work: Callable[[], object], again: str) -> None:
    from ragjax.training.interrupts import EXIT_INTERRUPTED
    from ragjax.training.loop import Diverged, Interrupted

    try:
        work()
    except Interrupted as stopped:
        _fail(f"{stopped}. Go on with: {again}", EXIT_INTERRUPTED)
    except Diverged as error:
        _fail(str(error), EXIT_DIVERGED)


@dataclass(frozen=True)
class _PruneCommand:
    """Remove weights of a trained model at once, and write the sparse one as a Hugging Face folder.

    A text shows which weights matter. The model goes by block by block, so that one that fits into the
    host's memory can be pruned on a small device.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[OneShot, arg(name="")]
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


@dataclass(frozen=True)
class _CompareCommand:
    """Prune a model in several ways, and write what each costs: comparison.json and report.html.

    The same command goes on where it stopped.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write."""
    compare: str
    """Methods, with commas between: magnitude,wanda,sparsegpt."""
    sparsity: str = "0.3,0.5,0.7"
    """Sparsities, with commas between; for the pattern n_of_m it is what n and m say."""
    data: str = "builtin:python"
    """Source URI of the text perplexity is measured on."""
    max_tokens: int = 16_384
    """Tokens of it that are scored at most."""
    pattern: Pattern | None = None
    """As without --compare."""
    n: int = 2
    """As without --compare."""
    m: int = 4
    """As without --compare."""
    block: tuple[int, int] = (8, 128)
    """As without --compare."""
    budget: OneShotBudget = "uniform"
    """As without --compare."""
    calibration: str = "builtin:python"
    """As without --compare."""
    samples: int = 128
    """As without --compare."""
    sequence_length: int | None = None
    """As without --compare."""
    batch_size: int = 8
    """As without --compare."""
    seed: int = 0
    """As without --compare."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def _compare(given: list[str]) -> None:
    command = tyro.cli(_CompareCommand, args=given, prog="ragjax prune --compare")
    shared = {
        name: getattr(command, name)
        for name in ("pattern", "n", "m", "block", "budget", "calibration", "samples", "sequence_length",
                     "batch_size", "seed")
    }  # fmt: skip
    levels: list[float | None] = [None] if command.pattern == "n_of_m" else []
    problems = []
    for text in [] if levels else command.sparsity.split(","):
        try:
            levels.append(float(text))
        except ValueError:
            problems.append(f"sparsity must be numbers with commas between, found {text!r}")
    methods = command.compare.split(",")
    problems += [
        f"there is no method {name!r}: {', '.join(get_args(OneShotMethod))}"
        for name in methods
        if name not in get_args(OneShotMethod)
    ]
    if problems:
        raise InputError(f"--compare: {'; '.join(problems)}.")
    ways = [
        OneShot(method=cast(OneShotMethod, method), sparsity=level, **shared)
        for level in levels
        for method in methods
    ]
    from ragjax.pruning_files import compare_to_folder, print_comparison

    found = compare_to_folder(
        command.model, command.out, ways,
        data=command.data, max_tokens=command.max_tokens, to_stderr=command.json,
    )  # fmt: skip
    if command.json:
        print(dumps(found))
    else:
        print_comparison(found, command.out)


@dataclass(frozen=True)
class _SensitivityCommand:
    """Measure how the loss grows when one matrix of one layer is pruned, for each of them.

    Writes curves (sensitivity.json), the sparsities by which --sparsity costs least (budget.json, for
    `ragjax prune --budget table --table`), and report.html.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[OneShot, arg(name="")]
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Shares of a matrix's weights that are removed."""
    sequences: int = 8
    """Sequences of held-out text by which losses are measured."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def _sensitivity(given: list[str]) -> None:
    command = tyro.cli(_SensitivityCommand, args=given, prog="ragjax sensitivity")
    from ragjax.pruning_files import print_sensitivity, sensitivity_to_folder

    found = sensitivity_to_folder(
        command.model, command.out, command.config,
        sparsities=command.sparsities, sequences=command.sequences, to_stderr=command.json,
    )  # fmt: skip
    if command.json:
        print(dumps(found))
    else:
        print_sensitivity(found, command.model, command.out)


def _prune(given: list[str]) -> None:
    if any(word.split("=")[0] == "--compare" for word in given):
        _compare(given)
        return
    command = tyro.cli(_PruneCommand, args=given, prog="ragjax prune")
    from ragjax.prune_verb import print_report, prune_to_folder, summary

    report = prune_to_folder(
        command.model, command.out, command.config, devices=command.mesh, to_stderr=command.json
    )
    if command.json:
        print(dumps(summary(report, command.out)))
    else:
        print_report(report, command.out)


@dataclass(frozen=True)
class _ShrinkCommand:
    """Take neurons, heads, width or layers out of a model's arrays, and write the smaller one.

    A budget (--params, --flops, --latency), sizes, or both say how small; a text shows what matters.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; must not exist."""
    config: Annotated[Shrink, arg(name="")]
    data: str | None = None
    """Source URI of a text on which perplexity is measured before and after; none: it is not."""
    max_tokens: int | None = None
    """Tokens of it that are scored at most; none: all."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object; progress goes to standard error."""


def _shrink(given: list[str]) -> None:
    command = tyro.cli(_ShrinkCommand, args=given, prog="ragjax shrink")
    from ragjax.shrink_verb import print_comparison, shrink_to_folder, summary

    compared = shrink_to_folder(
        command.model, command.out, command.config,
        data=command.data, max_tokens=command.max_tokens, to_stderr=command.json,
    )  # fmt: skip
    if command.json:
        print(dumps(summary(compared, command.out)))
    else:
        print_comparison(compared, command.model, command.out)


def _eval(given: list[str]) -> None:
    def evaluate(
        model: Annotated[Positional[str], arg(metavar="MODEL")],
        data: str = "builtin:python",
        sequence_length: int | None = None,
        stride: int | None = None,
        max_tokens: int | None = None,
        batch_size: int = 8,
        teacher: str | None = None,
        json: FlagCreatePairsOff[bool] = False,
    ) -> None:
        """Measure a model: perplexity on a text, size, sparsity and speed.

        Args:
            model: MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder.
            data: Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME.
            sequence_length: Tokens the model sees at once; none: as many as it has positions, 2048 at most.
            stride: Tokens the window moves; none: half of the sequence length.
            max_tokens: Tokens that are scored at most; none: all.
            batch_size: Windows evaluated at once.
            teacher: MODEL whose forward speed is measured in turns with this one's, for the ratio.
            json: Print one JSON object.
        """
        from ragjax.evaluation.figures import default_length
        from ragjax.evaluation.figures import evaluate as measure
        from ragjax.evaluation.speed import forward_speed
        from ragjax.interchange.folder import load
        from ragjax.interchange.size import stored_bytes
        from ragjax.parallel.compile_cache import keep_compiled_programs

        keep_compiled_programs()
        loaded, speed = load(model), None
        if teacher is not None:
            both = {"teacher": load(teacher), "model": loaded}
            length = sequence_length or default_length(*both.values())
            speed = forward_speed(both, batch=1, length=length)["model"]
        figures = measure(
            loaded, data, sequence_length=sequence_length, stride=stride, max_tokens=max_tokens,
            batch_size=batch_size, stored_bytes=stored_bytes(model), speed=speed,
        )  # fmt: skip
        if json:
            print(dumps(asdict(figures)))
        else:
            from ragjax.evaluation.table import print_figures

            print_figures({model: figures})

    tyro.cli(evaluate, args=given, prog="ragjax eval")


def _generate(given: list[str]) -> None:
    def generate(
        model: Annotated[Positional[str], arg(metavar="MODEL")],
        prompt: str,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Continue a prompt, printing tokens as they come.

        Args:
            model: MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder.
            prompt: The text to continue.
            max_new_tokens: Tokens to add at most.
            temperature: 0 takes the likeliest token; higher is more varied.
            seed: Of the random choices, where temperature is above 0.
        """
        from ragjax.generation import stream
        from ragjax.interchange.folder import load
        from ragjax.parallel.compile_cache import keep_compiled_programs

        keep_compiled_programs()
        loaded = load(model)
        pieces = stream(loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()

    tyro.cli(generate, args=given, prog="ragjax generate")


def _export(given: list[str]) -> None:
    def export(
        model: Annotated[Positional[str], arg(metavar="MODEL")],
        out: Annotated[Positional[Path], arg(metavar="OUT")],
        format: Literal["hf", "bitmask", "gguf", "stablehlo"],
        dtype: str | None = None,
    ) -> None:
        """Write a model for another runtime.

        Args:
            model: MODEL: a Hugging Face folder, a GGUF file, a hub id, or a run folder.
            out: Folder or file to write; must not exist.
            format: hf: a Hugging Face folder; bitmask: a smaller one for sparse models, which ragjax alone
                reads; gguf: a file for llama.cpp; stablehlo: a program that JAX runs without ragjax.
            dtype: Type of the weights. hf, bitmask: float32, float16, bfloat16; gguf: f32, f16, q8_0, q4_0;
                stablehlo: float32, bfloat16. None: the first of these.
        """
        from ragjax.interchange.folder import load
        from ragjax.interchange.formats import check_request
        from ragjax.interchange.formats import export as write

        check_request(out, format, dtype)
        made = write(load(model), out, format=format, dtype=dtype)
        rows = {"wrote": out, "what": made.contents, "size": f"{made.size / 1e6:,.1f} MB", "use": made.use}
        print("\n".join(f"{name:<6}{value}" for name, value in rows.items()))

    tyro.cli(export, args=given, prog="ragjax export")


def _tokenizer(given: list[str]) -> None:
    def tokenizer(
        source: Annotated[Positional[str], arg(metavar="SOURCE")],
        out: Annotated[Positional[Path], arg(metavar="FOLDER")],
        vocab_size: int = 32_000,
    ) -> None:
        """Train a byte-level BPE tokenizer and save it in GPT-2's format.

        Args:
            source: Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME.
            out: Folder to write; must not exist.
            vocab_size: Tokens, the end-of-text token included.
        """
        from ragjax.data import documents, save_tokenizer, train_tokenizer, training_split
        from ragjax.interchange.atomic import atomic_folder

        with atomic_folder(out, overwrite=False) as folder:
            made = train_tokenizer(documents(source, training_split(source, hold_out=False)), vocab_size)
            save_tokenizer(made, folder)
        print(f"{out}: {len(made):,} tokens. Use it with --data.tokenizer {out}")

    tyro.cli(tokenizer, args=given, prog="ragjax tokenizer")


def _report(given: list[str]) -> None:
    def report(run: Annotated[Positional[Path], arg(metavar="RUN")], out: Path | None = None) -> None:
        """Write the report of a run again.

        Args:
            run: The run folder.
            out: File to write; none: RUN/report.html.
        """
        from ragjax.report import write_report

        print(write_report(run, out))

    tyro.cli(report, args=given, prog="ragjax report")


def _doctor(given: list[str]) -> None:
    def doctor(json: FlagCreatePairsOff[bool] = False) -> int:
        """Tell what this machine offers and what is amiss.

        Args:
            json: Print one JSON object.
        """
        from ragjax.doctor import examine, print_findings

        findings = examine()
        if json:
            print(dumps(findings))
        else:
            print_findings(findings)
        return EXIT_BAD_INPUT if findings["problems"] else 0

    raise SystemExit(tyro.cli(doctor, args=given, prog="ragjax doctor"))


VERBS: dict[str, Callable[[list[str]], None]] = {
    "compress": _compress,
    "train": _train,
    "prune": _prune,
    "sensitivity": _sensitivity,
    "shrink": _shrink,
    "eval": _eval,
    "generate": _generate,
    "export": _export,
    "tokenizer": _tokenizer,
    "report": _report,
    "doctor": _doctor,
}
