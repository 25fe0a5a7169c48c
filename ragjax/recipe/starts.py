"""What the trainings of a run start from: new models, and those that are there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import jax
from rich.markup import escape

from ragjax.config import Architecture, Compress, Data
from ragjax.data import documents, save_tokenizer, train_tokenizer, training_split
from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.folder import load
from ragjax.interchange.tokenizer import check_vocabulary, load_tokenizer
from ragjax.model import Model
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.rules import place, shardings
from ragjax.recipe.open_run import OpenRun
from ragjax.sparsity.depth import choose_layers, keep_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def new_model(shape: Architecture, data: Data, run: OpenRun, seed: int) -> Model:
    """A random model over the tokenizer of a run."""
    tokenizer = run_tokenizer(data, run)
    ends = {"bos_token": tokenizer.bos_token_id, "eos_token": tokenizer.eos_token_id}
    config = replace(new_shape(shape, len(tokenizer)), **ends)
    return Model(config, _random_params(config, seed, run.place.mesh), tokenizer)


def new_shape(shape: Architecture, vocab_size: int) -> DecoderConfig:
    """The GPT of a few figures."""
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


def run_tokenizer(data: Data, run: OpenRun) -> PreTrainedTokenizerBase:
    """The tokenizer the config names, or one trained on its text, kept in the run folder."""
    if data.tokenizer is not None:
        return load_tokenizer(data.tokenizer)
    kept = run.folder.model("tokenizer")

    def make() -> None:
        if kept.is_dir():
            return
        run.console.print(
            f"[bold]tokenizer[/bold]: {data.vocab_size} tokens from {escape(str(data.train))}",
            highlight=False,
        )
        split = training_split(data.train, hold_out=data.validation is None)
        made = train_tokenizer(documents(data.train, split), data.vocab_size)
        with atomic_folder(kept) as folder:
            save_tokenizer(made, folder)

    from_writer(make)
    return load_tokenizer(str(kept))


def existing_model(model: str, data: Data, mesh: jax.sharding.Mesh) -> Model:
    """A model that is there, with the tokenizer the config names, or else its own."""
    loaded = load(model, mesh=mesh, floats=True)
    if data.tokenizer is None:
        return loaded
    tokenizer = load_tokenizer(data.tokenizer)
    check_vocabulary(tokenizer, loaded.config.vocab_size)
    return replace(loaded, tokenizer=tokenizer)


def sibling(
    field: str, name: str, data: Data, tokenizer: PreTrainedTokenizerBase | None, run: OpenRun
) -> Model:
    """A model that reads the teacher's tokens, with the teacher's tokenizer.

    Args:
      field: of the config, which names it.
      name: MODEL.
      data: of the config.
      tokenizer: the teacher's.
      run: where.

    Raises:
      InputError: it reads others.
    """
    model = existing_model(name, data, run.place.mesh)
    if model.tokenizer is not None and tokenizer is not None:
        own, others = model.tokenizer.get_vocab(), tokenizer.get_vocab()
        if own != others:
            token = min(own.items() ^ others.items(), key=lambda item: item[1])[0]
            raise InputError(
                f"{field} {name} and the teacher must number their tokens alike, found "
                f"{own.get(token, 'none')} and {others.get(token, 'none')} for {token!r}: choose models of "
                "one family, or set data.tokenizer."
            )
    return replace(model, tokenizer=tokenizer)


def student_start(config: Compress, teacher: Model, run: OpenRun) -> Model:
    """What the student is before its training: layers of the teacher or of another model, or their shape."""
    given, keeps = config.student.model, config.student.keeps
    start = sibling("student.model", given, config.data, teacher.tokenizer, run) if given else teacher
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


def random_start(model: Model, seed: int, mesh: jax.sharding.Mesh) -> Model:
    """A random model of the same shape."""
    return replace(model, params=_random_params(model.config, seed, mesh), history=())


def _random_params(config: DecoderConfig, seed: int, mesh: jax.sharding.Mesh) -> Params:
    """New parameters, each made on the devices that hold it."""
    make = partial(init_params, config, seed)
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))()
