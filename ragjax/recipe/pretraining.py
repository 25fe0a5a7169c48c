"""One model trained, from scratch or on from one that exists."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ragjax.config import Pretrain
from ragjax.interchange.folder import load
from ragjax.model import Model
from ragjax.recipe.open_run import opened
from ragjax.recipe.stage import Work, train_stage
from ragjax.recipe.starts import existing_model, new_model
from ragjax.recipe.texts import open_texts
from ragjax.training.fit import PLAIN


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
    with opened(config, workdir, console) as run:
        if not run.done("model"):
            start = (
                existing_model(config.model, config.data, run.place.mesh)
                if config.model
                else new_model(config.architecture, config.data, run, config.seed)
            )
            texts = open_texts(config.data, start.tokenizer)
            work = Work(config.train, config.sparsity, PLAIN, quantize=config.quantize)
            train_stage(run, "model", start, work, texts, config)
        run.console.print(f"\n[bold]model[/bold] {escape(str(run.folder.model('model')))}")
        return load(str(run.folder.model("model")), mesh=run.place.mesh)
