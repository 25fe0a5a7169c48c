"""A teacher that is paid for once: run over all that a training will read, and what it says kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ragjax.config import Compress
from ragjax.config.distill import values
from ragjax.data.pair_rows import described
from ragjax.data.uri import check_alike
from ragjax.errors import InputError, listing
from ragjax.pace import Pace
from ragjax.parallel import hosts
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.mesh import batch_shards, make_mesh
from ragjax.recipe import existing_model, open_texts
from ragjax.teacher_cache import (
    Held,
    Kept,
    Manifest,
    Stopped,
    asked,
    teacher_digest,
    text_digest,
    write_cache,
)
from ragjax.teacher_cache.manifest import windows_digest
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted


def cache_teacher(
    config: Compress,
    folder: str | Path,
    *,
    top_k: int | None = None,
    draws: int | None = None,
    dtype: str = "float16",
    batch_size: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Runs the teacher of a compression over the sequences its student will read, and keeps what it says.

    The text is cut at the same places in every epoch, as `data.fixed_cuts` has it, so that a window is asked
    about once; where the training is shorter than an epoch, only the windows it visits are. The same call
    goes on where an earlier one stopped, and makes anew what was damaged.

    Args:
      config: the compression: its teacher, text, training, seed and temperature count.
      folder: where the cache goes; shared by all hosts.
      top_k: likeliest tokens that are kept of each distribution, with all others as one; none: 64, unless
        there are draws.
      draws: tokens drawn from each distribution instead, by the config's seed.
      dtype: type of the log-probabilities: float16 or float32.
      batch_size: sequences the teacher reads at once, over all hosts; none: the training's.
      console: where progress is printed; none: standard output.

    Returns:
      What was written.

    Raises:
      InputError: the config, the model, the text or the folder cannot be used.
      Interrupted: SIGINT or SIGTERM; what is whole is kept.
    """
    _check(config, top_k, draws)
    hosts.start()
    keep_compiled_programs()
    mesh = make_mesh(config.mesh)
    console = (console or Console(highlight=False)) if hosts.is_writer() else Console(quiet=True)
    assert config.teacher.model is not None
    teacher = existing_model(config.teacher.model, config.data, mesh)
    texts = replace(open_texts(config.data, teacher.tokenizer), fixed_cuts=True)
    batches = texts.batches(config.train.batch_size, seed=config.seed)
    windows = batches.visited(config.train.steps)
    kept = Kept(
        kind="drawn" if draws else "likeliest",
        count=draws or top_k or 64,
        dtype="float32" if dtype == "float32" else "float16",
        temperature=float(values(config.distill.temperature)[0]),
        seed=config.seed if draws else 0,
    )
    held = Held(
        text=from_writer(
            lambda: text_digest(
                texts.train, isolate_documents=texts.isolate_documents, pack_pairs=texts.pack_pairs
            )
        ),
        teacher=teacher_digest(teacher),
        computed_in=config.train.dtype,
        vocab_size=teacher.config.vocab_size,
        sequence_length=texts.sequence_length,
        isolate_documents=texts.isolate_documents,
        windows=batches.windows,
        sequences=len(windows),
        which=windows_digest(windows),
        kept=kept,
    )
    _check_sizes(held, teacher.config.positions)
    folder = Path(folder).expanduser()
    _announce(console, held, folder)
    if texts.train.completions is not None:
        pairs = described(texts.train, texts.sequence_length, pack=texts.pack_pairs)
        console.print(f"  {pairs}", soft_wrap=True)
    shards = batch_shards(mesh)
    rows = -(-min(batch_size or config.train.batch_size, len(windows)) // shards) * shards
    pace = Pace(console, "sequences", held.sequences)
    with Interrupts() as interrupts:
        try:
            manifest = write_cache(
                folder, held, windows,
                asked(teacher, held, batches, mesh, chunk_tokens=config.distill.chunk_tokens),
                batch_rows=rows, stop=interrupts.requested,
                tell=lambda done, of: pace(done, done * held.sequence_length),
            )  # fmt: skip
        except Stopped:
            raise Interrupted(f"Stopped; the shards of {folder} that are whole are kept") from None
    _tell_end(console, manifest, folder)
    return manifest


def _check(config: Compress, top_k: int | None, draws: int | None) -> None:
    """Refuses what is clear before anything is read."""
    found = []
    if config.teacher.model is None:
        found.append(
            "teacher.model must name the model to ask; one that `ragjax compress` trained is RUN/teacher"
        )
    if len(set(values(config.distill.temperature))) > 1:
        found.append(
            f"distill.temperature must be one number, as what is kept is of one; found "
            f"{config.distill.temperature}"
        )
    if config.distill.top_k:
        found.append(
            f"distill.top_k must be 0, found {config.distill.top_k}: what is kept is chosen by --top-k"
        )
    if config.distill.inner:
        asking = ", ".join(f"distill.{name}" for name in config.distill.inner)
        found.append(f"{asking} look inside a running teacher, which no cache can stand in for")
    if draws is not None and top_k is not None:
        found.append("one of top_k and draws must be chosen, found both")
    found += [
        f"{name} must be at least 1, found {count}"
        for name, count in (("top_k", top_k), ("draws", draws))
        if count is not None and count < 1
    ]
    others = [f"distill.{name}" for name in config.distill.divergences if name != "forward_kl"]
    if draws is not None and others:
        found.append(f"draws give forward_kl alone, found {', '.join(others)}: keep the likeliest by top_k")
    check_alike(config.data.train, config.data.validation)
    if found:
        raise InputError(f"Cannot cache the teacher:\n{listing(found)}")


def _check_sizes(held: Held, positions: int) -> None:
    if held.sequence_length > positions:
        raise InputError(
            f"data.sequence_length {held.sequence_length} exceeds the teacher's {positions} positions."
        )
    if held.kept.kind == "likeliest" and held.kept.count > held.vocab_size:
        raise InputError(
            f"top_k must not exceed the vocabulary's {held.vocab_size}, found {held.kept.count}."
        )


def _announce(console: Console, held: Held, folder: Path) -> None:
    kept = held.kept
    what = "likeliest of each distribution and the rest" if kept.kind == "likeliest" else "draws from each"
    size = _size(held.bytes_per_token * held.tokens)
    console.print(
        f"[bold]teacher[/bold]: {kept.count} {what}, {kept.dtype}, at temperature {kept.temperature:g}\n"
        f"  {held.sequences:,} of {held.windows:,} sequences of {held.sequence_length} tokens\n"
        f"  {held.bytes_per_token} bytes a token, {size} in all, in {escape(str(folder))}",
        soft_wrap=True,
    )


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def _tell_end(console: Console, manifest: Manifest, folder: Path) -> None:
    """Says what is there, and how it is used."""
    assert manifest.files is not None
    size = sum(size for size, _ in manifest.files.values())
    each = size / manifest.held.tokens
    console.print(
        f"[bold]cache[/bold] {escape(str(folder))}: {_size(size)}, {each:.1f} bytes a token\n"
        f"  train with it: --teacher.cache {escape(str(folder))} --data.fixed-cuts",
        soft_wrap=True,
    )
