"""One training from a model to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.markup import escape

from ragjax.config import Distill, FakeQuantize, OnPolicy, Sparsity, Train
from ragjax.config.on_policy import misfits
from ragjax.data.batches import Batches
from ragjax.data.corpus import Corpus
from ragjax.data.pair_rows import described, longest_prompt
from ragjax.distillation.inner import inner_problems
from ragjax.distillation.objective import Objective
from ragjax.distillation.projections import with_projections, without_projections
from ragjax.errors import InputError
from ragjax.generation.prompts import end_tokens
from ragjax.model import Model
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.checksum import checksum
from ragjax.parallel.hosts import is_writer, to_host
from ragjax.parallel.mesh import batch_shards
from ragjax.parallel.rules import check_divisible, place
from ragjax.quantization.latent import held_to_grid, trained_scheme
from ragjax.sparsity import masks_from_zeros, sparsify, sparsity_figures
from ragjax.teacher_cache import TeacherCache
from ragjax.training.checkpoints import Checkpoints
from ragjax.training.feed import batch_on_mesh
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Training
from ragjax.training.metrics import MetricsLog, Progress
from ragjax.training.on_policy import OwnWriting
from ragjax.training.optimizer import learning_rate, make_optimizer
from ragjax.training.state import init_state
from ragjax.training.step import make_step

PLAIN = Distill(forward_kl=0.0, cross_entropy=1.0, hidden_mse=0.0)
"""Learning from the text alone."""

_VALIDATION_TOKENS = 16_384
_PRUNED = 0.01
"""Share of exact zeros above which a model was pruned; a dense one has next to none."""


@dataclass(frozen=True)
class Texts:
    """What is read while training: tokens to learn from, tokens held out, and how they are cut."""

    train: Corpus
    validation: Corpus
    sequence_length: int
    isolate_documents: bool = False
    fixed_cuts: bool = False
    pack_pairs: bool = False

    def batches(self, batch_size: int, *, seed: int = 0, known: TeacherCache | None = None) -> Batches:
        """The batches to learn from.

        Args:
          batch_size: sequences in a batch, over all hosts.
          seed: chooses the orders and the cuts.
          known: what is known of a teacher's distributions there; none: nothing.
        """
        return Batches(
            corpus=self.train, batch_size=batch_size, sequence_length=self.sequence_length, seed=seed,
            isolate_documents=self.isolate_documents, fixed_cuts=self.fixed_cuts, pack_pairs=self.pack_pairs,
            known=known,
        )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a training runs and what it leaves: devices, folder, terminal, and the wish to stop."""

    mesh: jax.sharding.Mesh
    folder: Path
    """The run folder: `metrics.jsonl` and `checkpoints/STAGE` are in it."""
    console: Console
    interrupts: Interrupts

    def warn(self, message: str) -> None:
        """Shows a warning on the terminal."""
        self.console.print(f"[yellow]warning[/yellow] {escape(message)}", soft_wrap=True)


def fit(
    start: Model,
    *,
    stage: str,
    train: Train,
    texts: Texts,
    place_: Place,
    seed: int,
    sparsity: Sparsity | None = None,
    quantize: FakeQuantize | None = None,
    distill: Distill = PLAIN,
    teachers: Sequence[Model] = (),
    shares: Sequence[float] = (),
    cache: TeacherCache | None = None,
    on_policy: OnPolicy | None = None,
) -> Model:
    """Trains `start`, going on from its latest checkpoint where there is one.

    Args:
      start: the model before the first step.
      stage: name of the training in metrics and checkpoints.
      train: how long, how fast, in what numbers.
      texts: what it reads.
      place_: where it runs.
      seed: of batches, dropout and random scores.
      sparsity: which weights go meanwhile; none: none.
      quantize: to how few bits the weights are rounded meanwhile; none: they are not.
      distill: the losses.
      teachers: the models those losses look at; inside of it they look at the first.
      shares: what each teacher counts, as parts of their sum; none: all alike.
      cache: what it says of the text, in place of the teacher itself; checked before.
      on_policy: what it writes itself to learn from; none: nothing. The first teacher may write with it.

    Returns:
      The model after the last step, its parameters on the host, with exact zeros where it was pruned.

    Raises:
      InputError: the model, the texts and the mesh do not fit together.
      Interrupted: someone asked to stop; the state is saved.
      Diverged: too many steps in a row were not finite.
    """
    sparsity, quantize, mesh = sparsity or Sparsity(), quantize or FakeQuantize(), place_.mesh
    check_training(
        start.config, train=train, sparsity=sparsity, distill=distill, mesh=mesh,
        sequence_length=texts.sequence_length, teachers=[each.config for each in teachers], cache=cache,
        on_policy=on_policy, quantize=quantize,
    )  # fmt: skip
    objective = Objective(
        student=start.config,
        teachers=tuple(each.config for each in teachers),
        weights=distill,
        shares=tuple(share / sum(shares) for share in shares),
        dtype=jnp.dtype(train.dtype),
        remat=train.remat,
        shards=batch_shards(mesh),
        steps=train.steps,
    )
    begin = with_projections(
        start.params, start.config, teachers[0].config if teachers else None, distill, seed=seed
    )
    masks = None
    if not sparsity.target and sparsity_figures(start.params, start.config).sparsity_prunable > _PRUNED:
        # A model that was pruned before stays pruned, whatever it is trained on.
        masks = masks_from_zeros(begin)
    optimizer = sparsify(make_optimizer(train), sparsity, total_steps=train.steps, seed=seed, masks=masks)
    optimizer = held_to_grid(optimizer, trained_scheme(quantize))
    batches = texts.batches(train.batch_size, seed=seed, known=cache)
    of_pairs = texts.train.completions is not None
    if of_pairs:
        pairs = described(texts.train, texts.sequence_length, pack=texts.pack_pairs)
        place_.console.print(f"  {pairs}", soft_wrap=True)
    with jax.set_mesh(mesh):
        frozen = tuple(place(each.params, mesh) for each in teachers) if objective.needs_teacher else ()
    fingerprint = {
        "stage": stage, "seed": seed, "model": asdict(start.config), "train": _without_habits(train),
        "sparsity": asdict(sparsity), "distill": asdict(distill), "shares": list(shares),
        "sequence_length": texts.sequence_length, "tokens": len(texts.train.tokens),
        "fixed_cuts": texts.fixed_cuts, "pack_pairs": texts.pack_pairs,
        "teacher_cache": cache.manifest.identity if cache else None,
    }  # fmt: skip
    # Left out where unused, so that checkpoints of before they were told are still gone on from.
    if quantize.scheme != "none":
        fingerprint["quantize"] = asdict(quantize)
    if texts.isolate_documents:
        fingerprint["isolate_documents"] = True
    if frozen:
        fingerprint["checksums of the teachers"] = [checksum(each) for each in frozen]
    writing = None
    if on_policy is not None and on_policy.asked:
        fingerprint["on_policy"] = asdict(on_policy)
        if on_policy.rise:
            fingerprint["evaluate_every"] = train.evaluate_every
        longest = longest_prompt(texts.train, texts.sequence_length) if of_pairs else on_policy.prompt_tokens
        writing = OwnWriting(
            on_policy, student=start.config, teacher=teachers[0].config, train=train,
            sequence_length=texts.sequence_length, longest_prompt=longest, own_prompts=of_pairs,
            isolated=texts.pack_pairs if of_pairs else texts.isolate_documents,
            ends=end_tokens(start), seed=seed, mesh=mesh,
        )  # fmt: skip
    with (
        jax.set_mesh(mesh),
        Checkpoints(
            place_.folder / "checkpoints" / stage, keep=train.keep, fingerprint=fingerprint, warn=place_.warn
        ) as saved,
    ):
        training = Training(
            stage=stage,
            train=train,
            step=make_step(objective, optimizer, clip=train.clip, seed=seed),
            schedule=learning_rate(train),
            batches=batches,
            validate=make_validation(start.config, texts, train, mesh),
            mesh=mesh,
            log=MetricsLog(place_.folder / "metrics.jsonl", writes=is_writer()),
            progress=Progress(stage, train.steps, place_.console),
            checkpoints=saved,
            interrupts=place_.interrupts,
            writing=writing,
        )
        state = init_state(begin, optimizer, mesh)
        if writing is not None:
            state = state._replace(memory=writing.memory())
        state = training.run(state, frozen)
        params = without_projections(state.params)
        reached = sparsity_figures(params, start.config, sparsity.prunable).sparsity_prunable
        params = to_host(params)
    if reached < sparsity.target - 0.001:
        place_.warn(
            f"{stage}: {reached:.1%} of the prunable weights are zero, not {sparsity.target:.1%}: "
            "every step from sparsity.stop on was skipped. Set it earlier."
        )
    return replace(start, params=params)


def make_validation(
    config: DecoderConfig, texts: Texts, train: Train, mesh: jax.sharding.Mesh
) -> Callable[[Params], float]:
    """Builds the function from parameters to validation loss: nats a token over the same few batches."""
    rows = train.batch_size // train.accumulate
    count = max(1, _VALIDATION_TOKENS // (rows * texts.sequence_length))
    batches = Batches(
        corpus=texts.validation,
        batch_size=count * rows,
        sequence_length=texts.sequence_length,
        isolate_documents=texts.isolate_documents,
        pack_pairs=texts.pack_pairs,
    )
    batch = batch_on_mesh(batches, 0, mesh, accumulate=count)
    objective = Objective(
        student=config, teachers=(), weights=PLAIN, dtype=jnp.dtype(train.dtype), shards=batch_shards(mesh)
    )

    @jax.jit
    def mean(params, batch):
        nats = jax.lax.map(lambda part: objective(params, (), part, part.weights)[0], batch)
        return jnp.sum(nats) / jnp.sum(batch.weights)

    return lambda params: float(mean(params, batch))


def _without_habits(train: Train) -> dict:
    """The fields that change what is computed, not how often it is told or saved."""
    habits = ("log_every", "checkpoint_every", "evaluate_every", "keep")
    return {name: value for name, value in asdict(train).items() if name not in habits}


def check_training(
    config: DecoderConfig,
    *,
    train: Train,
    sparsity: Sparsity,
    distill: Distill,
    sequence_length: int,
    mesh: jax.sharding.Mesh,
    teachers: Sequence[DecoderConfig] = (),
    cache: TeacherCache | None = None,
    on_policy: OnPolicy | None = None,
    quantize: FakeQuantize | None = None,
) -> None:
    """Refuses a training whose parts do not fit together, from shapes alone.

    Args:
      config: the model to be trained; the rest as in `fit`.
      teachers: architectures of its teachers.
      cache: what is known of a teacher that does not run.
      on_policy: what the model writes itself to learn from.
      quantize: to how few bits its weights are rounded.

    Raises:
      InputError: says which parts, and what to change.
    """
    found = []
    first = next(iter(teachers), None)
    longest = min(each.positions for each in (config, *teachers))
    if sequence_length > longest:
        found.append(f"data.sequence_length {sequence_length} exceeds the model's {longest} positions")
    found += [
        f"teacher and student differ in vocabulary: {each.vocab_size} and {config.vocab_size} tokens"
        for each in teachers
        if each.vocab_size != config.vocab_size
    ]
    if first:
        found += inner_problems(config, first, distill)
    if cache and cache.manifest.held.vocab_size != config.vocab_size:
        found.append(
            f"the teacher's cache and the student differ in vocabulary: {cache.manifest.held.vocab_size} and "
            f"{config.vocab_size} tokens"
        )
    unanswered = distill.inner if cache else {**distill.divergences, **distill.inner}
    if first is None and unanswered:
        asking = ", ".join(f"distill.{name}" for name in unanswered)
        found.append(f"{asking} need a teacher, found none")
    if on_policy is not None:
        found += misfits(
            on_policy, distill=distill, sequence_length=sequence_length, train=train, cached=cache is not None
        )
    if distill.top_k >= config.vocab_size:
        found.append(
            f"distill.top_k must be below the vocabulary's {config.vocab_size}, found {distill.top_k}"
        )
    if found:
        raise InputError("Cannot train: " + "; ".join(found) + ".")
    check_divisible(config, mesh, batch_size=train.batch_size // train.accumulate)
    optimizer = sparsify(make_optimizer(train), sparsity, total_steps=train.steps, seed=0)
    optimizer = held_to_grid(optimizer, trained_scheme(quantize or FakeQuantize()))
    jax.eval_shape(
        lambda: optimizer.init(with_projections(init_params(config, 0), config, first, distill, seed=0))
    )
