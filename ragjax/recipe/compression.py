"""A model compressed and proved: teacher, student, control, evaluation, report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ragjax.config import Compress, Sparsity
from ragjax.evaluation.figures import Figures
from ragjax.interchange.folder import load
from ragjax.model import Model
from ragjax.parallel import hosts
from ragjax.parallel.agreement import from_writer
from ragjax.proof import prove
from ragjax.recipe.open_run import OpenRun, opened
from ragjax.recipe.stage import Work, train_stage
from ragjax.recipe.starts import (
    existing_model,
    new_model,
    new_shape,
    random_start,
    run_tokenizer,
    sibling,
    student_start,
)
from ragjax.recipe.texts import open_cache, open_texts
from ragjax.report import write_report
from ragjax.sparsity.depth import choose_layers
from ragjax.sparsity.figures import sparsity_figures
from ragjax.training.fit import PLAIN, check_training


def compress(config: Compress, workdir: str | Path, *, console: Console | None = None) -> dict[str, Figures]:
    """Compresses a model and proves it: teacher, student, control, evaluation, report.

    Each stage is skipped when it is done; the same call goes on where an earlier one stopped.

    Args:
      config: what to do.
      workdir: the run folder, made where missing; `student/` in it is the result.
      console: where progress is printed; none: standard output.

    Returns:
      The figures of each model: `teacher`, `student`, and those it is compared with.

    Raises:
      InputError: the config, the model, the text or the folder cannot be used.
      Interrupted: SIGINT or SIGTERM; everything is saved.

    Example:
      >>> from tempfile import mkdtemp
      >>> from ragjax.config import Architecture, Compress, Data, Evaluate, Student, Teacher, Train
      >>> brief = Train(steps=2, warmup=1, batch_size=8)
      >>> config = Compress(
      ...     teacher=Teacher(architecture=Architecture(layers=2, width=32, heads=2), train=brief),
      ...     student=Student(layers=1, control=False),
      ...     data=Data(train="builtin:python", sequence_length=32, vocab_size=300),
      ...     train=brief,
      ...     evaluate=Evaluate(max_tokens=200, speed_rounds=1, sample_tokens=2),
      ... )
      >>> figures = compress(config, mkdtemp(), console=Console(quiet=True))
      >>> figures["student"].parameters < figures["teacher"].parameters
      True
    """
    with opened(config, workdir, console) as run:
        _check_before_teaching(config, run)
        teacher = _teacher(config, run)
        texts = open_texts(config.data, teacher.tokenizer)
        start = student_start(config, teacher, run)
        _say_shapes(run.console, teacher, start)
        cache = open_cache(config, teacher, texts) if config.teacher.cache is not None else None
        answers = {"cache": cache} if cache else {"teachers": _teachers(config, teacher, run)}
        # What is cached need not lie on the devices.
        del teacher
        stages = ["student"]
        stages += ["control"] if config.student.control else []
        stages += ["scratch"] if config.student.scratch else []
        for stage in stages:
            if run.done(stage):
                continue
            alone = stage != "student"
            begins = start
            if stage == "scratch":
                begins = random_start(start, config.seed, run.place.mesh)
            work = Work(config.train, config.sparsity, PLAIN, quantize=config.quantize)
            if not alone:
                work = replace(work, distill=config.distill, on_policy=config.on_policy)
            train_stage(run, stage, begins, work, texts, config, **({} if alone else answers))
        models = {
            "teacher": run.folder.model("teacher") if config.teacher.model is None else config.teacher.model
        }
        models |= {stage: run.folder.model(stage) for stage in stages}
        del answers, start
        figures = prove(config, run.folder, models, run.place, stop_if_asked=run.stop_if_asked)
        if hosts.is_writer():
            page = write_report(run.folder.path)
            run.console.print(
                f"\n[bold]report[/bold]  {escape(str(page))}\n"
                f"[bold]student[/bold] {escape(str(run.folder.model('student')))}"
            )
        return figures


def _check_before_teaching(config: Compress, run: OpenRun) -> None:
    """Refuses a student that cannot be trained before minutes are spent on its teacher."""
    if config.teacher.model is not None or from_writer(lambda: run.folder.has_model("teacher")):
        return
    given, also, tokenizer = config.student.model, config.teacher.also, None
    vocabulary = config.data.vocab_size
    if given or also:
        tokenizer = run_tokenizer(config.data, run)
        vocabulary = len(tokenizer)
    shape = new_shape(config.teacher.architecture, vocabulary)
    teachers = [shape, *(sibling("teacher.also", each, config.data, tokenizer, run).config for each in also)]
    start = sibling("student.model", given, config.data, tokenizer, run).config if given else shape
    kept = choose_layers(start.layers, config.student.layers)
    check_training(
        replace(start, layers=len(kept)), train=config.train, sparsity=config.sparsity, teachers=teachers,
        distill=config.distill, sequence_length=config.data.sequence_length, mesh=run.place.mesh,
        quantize=config.quantize,
    )  # fmt: skip


def _teacher(config: Compress, run: OpenRun) -> Model:
    if config.teacher.model is not None:
        return existing_model(config.teacher.model, config.data, run.place.mesh)
    if not run.done("teacher"):
        start = new_model(config.teacher.architecture, config.data, run, config.seed)
        texts = open_texts(config.data, start.tokenizer)
        train_stage(run, "teacher", start, Work(config.teacher.train, Sparsity(), PLAIN), texts, config)
    return load(str(run.folder.model("teacher")), mesh=run.place.mesh)


def _teachers(config: Compress, first: Model, run: OpenRun) -> list[Model]:
    """All that the student learns from."""
    others = [
        sibling("teacher.also", name, config.data, first.tokenizer, run) for name in config.teacher.also
    ]
    return [first, *others]


def _say_shapes(console: Console, teacher: Model, student: Model) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "layers", "width", "parameters"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, model in (("teacher", teacher), ("student", student)):
        count = sparsity_figures(model.params, model.config).parameters
        table.add_row(name, str(model.config.layers), str(model.config.width), f"{count:,}")
    console.print(table)
