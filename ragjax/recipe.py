"""The stages of a run, in order; each is skipped when done and goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from rich.console import Console
from rich.table import Table

from ragjax.config import (
    Architecture,
    Compress,
    Data,
    Distill,
    FakeQuantize,
    OnPolicy,
    Pretrain,
    Sparsity,
    Train,
    to_dict,
)
from ragjax.data import documents, open_corpora, save_tokenizer, train_tokenizer, training_split
from ragjax.data.batches import Batches
from ragjax.data.uri import check_alike
from ragjax.duration import duration
from ragjax.errors import InputError
from ragjax.evaluation.figures import Figures
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.folder import load, save
from ragjax.interchange.tokenizer import check_vocabulary, load_tokenizer
from ragjax.model import Model
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel import hosts
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.mesh import make_mesh
from ragjax.parallel.rules import place, shardings
from ragjax.proof import prove
from ragjax.report import write_report
from ragjax.run_folder import RunFolder, check_same_run
from ragjax.sparsity.depth import choose_layers, keep_layers
from ragjax.sparsity.figures import sparsity_figures
from ragjax.teacher_cache import TeacherCache, check_cache, teacher_digest, text_digest
from ragjax.training.fit import PLAIN, Place, Texts, check_training, fit
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted
from ragjax.training.metrics import MetricsLog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    with _opened(config, workdir, console) as run:
        _check_before_teaching(config, run)
        teacher = _teacher(config, run)
        texts = open_texts(config.data, teacher.tokenizer)
        start = _student_start(config, teacher, run)
        _say_shapes(run.console, teacher, start)
        cache = _cache(config, teacher, texts) if config.teacher.cache is not None else None
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
                begins = _random_start(start, config.seed, run.place.mesh)
            work = _Work(config.train, config.sparsity, PLAIN, quantize=config.quantize)
            if not alone:
                work = replace(work, distill=config.distill, on_policy=config.on_policy)
            _train(run, stage, begins, work, texts, config, **({} if alone else answers))
        models = {
            "teacher": run.folder.model("teacher") if config.teacher.model is None else config.teacher.model
        }
        models |= {stage: run.folder.model(stage) for stage in stages}
        del answers, start
        figures = prove(config, run.folder, models, run.place, stop_if_asked=run.stop_if_asked)
        if hosts.is_writer():
            page = write_report(run.folder.path)
            run.console.print(
                f"\n[bold]report[/bold]  {page}\n[bold]student[/bold] {run.folder.model('student')}"
            )
        return figures


def pretrain(config: Pretrain, workdir: str | Path, *, console: Console | None = None) -> Model:
    """Trains one model, from scratch or on from one that exists, and saves it as `workdir/model`.

    Args:
      config: what to do.
      workdir: the run folder.
      console: where progress is printed; none: standard output.

    Raises:
      InputError: the config, the model, the text or the folder cannot be used.
      Interrupted: SIGINT or SIGTERM; everything is saved.
    """
    with _opened(config, workdir, console) as run:
        if not run.done("model"):
            start = (
                existing_model(config.model, config.data, run.place.mesh)
                if config.model
                else _new_model(config.architecture, config.data, run, config.seed)
            )
            texts = open_texts(config.data, start.tokenizer)
            work = _Work(config.train, config.sparsity, PLAIN, quantize=config.quantize)
            _train(run, "model", start, work, texts, config)
        run.console.print(f"\n[bold]model[/bold] {run.folder.model('model')}")
        return load(str(run.folder.model("model")), mesh=run.place.mesh)


@dataclass(frozen=True)
class _Run:
    """A run folder that is open for work."""

    folder: RunFolder
    place: Place

    @property
    def console(self) -> Console:
        return self.place.console

    def done(self, stage: str) -> bool:
        """Whether `stage` has left its model; says so.

        Raises:
          Interrupted: someone asked to stop.
        """
        self.stop_if_asked(stage)
        done = from_writer(lambda: self.folder.has_model(stage))
        if done:
            self.console.print(f"[bold]{stage}[/bold]: done, {self.folder.model(stage)}", highlight=False)
        return done

    def stop_if_asked(self, before: str) -> None:
        """Raises Interrupted where someone asked to stop while no step was running."""
        if self.place.interrupts.requested():
            raise Interrupted(f"Stopped before {before}; what was done is saved")


@contextmanager
def _opened(config: Compress | Pretrain, workdir: str | Path, console: Console | None) -> Iterator[_Run]:
    check_alike(config.data.train, config.data.validation)
    hosts.start()
    keep_compiled_programs()
    folder = RunFolder(Path(workdir))
    mesh = make_mesh(config.mesh)
    from_writer(partial(_claim, folder, config))
    console = console or Console(highlight=False)
    if not hosts.is_writer():
        console = Console(quiet=True)
    with Interrupts() as interrupts:
        yield _Run(folder, Place(mesh, folder.path, console, interrupts))


def _claim(folder: RunFolder, config: Compress | Pretrain) -> None:
    """Makes the run folder and writes the config into it, unless it belongs to another run."""
    check_same_run(folder, config)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_json("config.json", to_dict(config))
    except OSError as error:
        reason = f"{folder.path} cannot be written ({error.strerror})"
        raise InputError(f"{reason}: choose another --workdir.") from None


@dataclass(frozen=True)
class _Work:
    """What is done to a model in one training."""

    train: Train
    sparsity: Sparsity
    distill: Distill
    on_policy: OnPolicy = field(default_factory=OnPolicy)
    quantize: FakeQuantize = field(default_factory=FakeQuantize)


def _train(
    run: _Run,
    stage: str,
    start: Model,
    work: _Work,
    texts: Texts,
    config: Compress | Pretrain,
    teachers: Sequence[Model] = (),
    cache: TeacherCache | None = None,
) -> None:
    """Trains `start` and saves it as the model of `stage`, with a line of history."""
    began, earlier = time.monotonic(), MetricsLog(run.folder.path / "metrics.jsonl").seconds(stage)
    model = fit(
        start, stage=stage, train=work.train, texts=texts, place_=run.place, seed=config.seed,
        sparsity=work.sparsity, distill=work.distill, teachers=teachers,
        shares=config.teacher.shares if isinstance(config, Compress) and teachers else (), cache=cache,
        on_policy=work.on_policy, quantize=work.quantize,
    )  # fmt: skip
    seconds = earlier + time.monotonic() - began
    done = {
        "did": stage,
        "data": config.data.train,
        "tokens": work.train.steps * work.train.batch_size * texts.sequence_length,
        "train": asdict(work.train),
        "sparsity": asdict(work.sparsity),
        "losses": asdict(work.distill),
        **({"on_policy": asdict(work.on_policy)} if work.on_policy.asked else {}),
        **({"quantize": asdict(work.quantize)} if work.quantize.scheme != "none" else {}),
        "seconds": round(seconds, 1),
    }
    finished = replace(model, history=(*model.history, done))
    from_writer(lambda: str(save(finished, run.folder.model(stage))))
    run.console.print(f"  saved {run.folder.model(stage)} after {duration(seconds)}", highlight=False)


def _teacher(config: Compress, run: _Run) -> Model:
    if config.teacher.model is not None:
        return existing_model(config.teacher.model, config.data, run.place.mesh)
    if not run.done("teacher"):
        start = _new_model(config.teacher.architecture, config.data, run, config.seed)
        texts = open_texts(config.data, start.tokenizer)
        _train(run, "teacher", start, _Work(config.teacher.train, Sparsity(), PLAIN), texts, config)
    return load(str(run.folder.model("teacher")), mesh=run.place.mesh)


def _teachers(config: Compress, first: Model, run: _Run) -> list[Model]:
    """All that the student learns from."""
    others = [_sibling("teacher.also", name, config.data, first, run) for name in config.teacher.also]
    return [first, *others]


def _check_before_teaching(config: Compress, run: _Run) -> None:
    """Refuses a student that cannot be trained before minutes are spent on its teacher."""
    if config.teacher.model is not None or config.student.model is not None:
        return
    shape = _shape(config.teacher.architecture, config.data.vocab_size)
    kept = choose_layers(shape.layers, config.student.layers)
    check_training(
        replace(shape, layers=len(kept)), train=config.train, sparsity=config.sparsity, teachers=[shape],
        distill=config.distill, sequence_length=config.data.sequence_length, mesh=run.place.mesh,
        quantize=config.quantize,
    )  # fmt: skip


def _new_model(shape: Architecture, data: Data, run: _Run, seed: int) -> Model:
    tokenizer = _tokenizer(data, run)
    ends = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    config = replace(_shape(shape, len(tokenizer)), **ends)
    return Model(config, _random_params(config, seed, run.place.mesh), tokenizer)


def existing_model(model: str, data: Data, mesh: jax.sharding.Mesh) -> Model:
    """A model that is there, with the tokenizer the config names, or else its own."""
    loaded = load(model, mesh=mesh, floats=True)
    if data.tokenizer is None:
        return loaded
    tokenizer = load_tokenizer(data.tokenizer)
    check_vocabulary(tokenizer, loaded.config.vocab_size)
    return replace(loaded, tokenizer=tokenizer)


def _shape(shape: Architecture, vocab_size: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        positions=shape.positions,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        mlp_width=4 * shape.width,
        windows=shape.windows,
        embedding_dropout=shape.dropout,
        attention_dropout=shape.dropout,
        residual_dropout=shape.dropout,
    )


def _tokenizer(data: Data, run: _Run) -> PreTrainedTokenizerBase:
    """The tokenizer the config names, or one trained on its text, kept in the run folder."""
    if data.tokenizer is not None:
        return load_tokenizer(data.tokenizer)
    kept = run.folder.model("tokenizer")

    def make() -> None:
        if kept.is_dir():
            return
        run.console.print(
            f"[bold]tokenizer[/bold]: {data.vocab_size} tokens from {data.train}", highlight=False
        )
        split = training_split(data.train, hold_out=data.validation is None)
        made = train_tokenizer(documents(data.train, split), data.vocab_size)
        with atomic_folder(kept) as folder:
            save_tokenizer(made, folder)

    from_writer(make)
    return load_tokenizer(str(kept))


def open_texts(data: Data, tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    """The tokens to train and to validate on, as a model's tokenizer has them."""
    if tokenizer is None:
        raise InputError("The model has no tokenizer: set data.tokenizer to one of its vocabulary.")
    train, validation = open_corpora(data.train, data.validation, tokenizer, cache=data.cache)
    return Texts(
        train, validation, data.sequence_length, data.isolate_documents, data.fixed_cuts, data.pack_pairs
    )


def _cache(config: Compress, teacher: Model, texts: Texts) -> TeacherCache:
    """What was kept of the teacher, checked to be of this one and of this text."""
    assert config.teacher.cache is not None
    cache = TeacherCache(config.teacher.cache)
    isolate, pack = texts.isolate_documents, texts.pack_pairs
    check_cache(
        cache,
        text=from_writer(lambda: text_digest(texts.train, isolate_documents=isolate, pack_pairs=pack)),
        teacher=teacher_digest(teacher),
        batches=Batches(
            corpus=texts.train, batch_size=config.train.batch_size, seed=config.seed,
            sequence_length=texts.sequence_length, isolate_documents=isolate, fixed_cuts=True,
            pack_pairs=pack,
        ),
        steps=config.train.steps,
        distill=config.distill,
    )  # fmt: skip
    return cache


def _student_start(config: Compress, teacher: Model, run: _Run) -> Model:
    given, keeps = config.student.model, config.student.keeps
    start = _sibling("student.model", given, config.data, teacher, run) if given else teacher
    layers = choose_layers(start.config.layers, config.student.layers)
    params, shape = keep_layers(start.params, start.config, layers)
    params = place(params, run.place.mesh)
    if keeps != "all":
        drawn = _random_params(shape, config.seed, run.place.mesh)
        tables = ("embedding", "head") if keeps == "embeddings" else ()
        params = drawn | {name: params[name] for name in tables if name in params}
        return replace(start, config=shape, params=params, history=())
    history = start.history
    if len(layers) < start.config.layers:
        history = (*history, {"did": "keep layers", "of": start.config.layers, "layers": list(layers)})
    return replace(start, config=shape, params=params, history=history)


def _sibling(field: str, name: str, data: Data, teacher: Model, run: _Run) -> Model:
    """A model that reads the teacher's tokens, with the teacher's tokenizer.

    Args:
      field: of the config, which names it.
      name: MODEL.
      data: of the config.
      teacher: the teacher.
      run: where.

    Raises:
      InputError: it reads others.
    """
    model = existing_model(name, data, run.place.mesh)
    if model.tokenizer is not None and teacher.tokenizer is not None:
        own, others = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
        if own != others:
            token = min(own.items() ^ others.items(), key=lambda item: item[1])[0]
            raise InputError(
                f"{field} {name} and the teacher must number their tokens alike, found "
                f"{own.get(token, 'none')} and {others.get(token, 'none')} for {token!r}: choose models of "
                "one family, or set data.tokenizer."
            )
    return replace(model, tokenizer=teacher.tokenizer)


def _random_start(model: Model, seed: int, mesh: jax.sharding.Mesh) -> Model:
    return replace(model, params=_random_params(model.config, seed, mesh), history=())


def _random_params(config: DecoderConfig, seed: int, mesh: jax.sharding.Mesh) -> Params:
    """New parameters, each made on the devices that hold it."""
    make = partial(init_params, config, seed)
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()


def _say_shapes(console: Console, teacher: Model, student: Model) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "layers", "width", "parameters"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, model in (("teacher", teacher), ("student", student)):
        count = sparsity_figures(model.params, model.config).parameters
        table.add_row(name, str(model.config.layers), str(model.config.width), f"{count:,}")
    console.print(table)
