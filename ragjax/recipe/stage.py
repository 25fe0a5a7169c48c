"""One training of a run: its model is saved with a line of history."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from ragjax.config import Compress, Distill, FakeQuantize, OnPolicy, Pretrain, Sparsity, Train
from ragjax.duration import duration
from ragjax.interchange.folder import save
from ragjax.model import Model
from ragjax.parallel.agreement import from_writer
from ragjax.recipe.open_run import OpenRun
from ragjax.teacher_cache import TeacherCache
from ragjax.training.fit import Texts, fit
from ragjax.training.metrics import MetricsLog


@dataclass(frozen=True)
class Work:
    """What is done to a model in one training."""

    train: Train
    sparsity: Sparsity
    distill: Distill
    on_policy: OnPolicy = field(default_factory=OnPolicy)
    quantize: FakeQuantize = field(default_factory=FakeQuantize)


def train_stage(
    run: OpenRun,
    stage: str,
    start: Model,
    work: Work,
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
        "tokens": round(work.train.steps * texts.batches(work.train.batch_size).tokens_per_batch),
        "train": asdict(work.train),
        "sparsity": asdict(work.sparsity),
        "losses": asdict(work.distill),
        **({"on_policy": asdict(work.on_policy)} if work.on_policy.asked else {}),
        **({"quantize": asdict(work.quantize)} if work.quantize.scheme != "none" else {}),
        "seconds": round(seconds, 1),
    }
    finished = replace(model, history=(*model.history, done))
    from_writer(lambda: str(save(finished, run.folder.model(stage))))
    run.console.print(
        f"  saved {run.folder.model(stage)} after {duration(seconds)}", highlight=False, markup=False
    )
