"""The verb `serve`."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import arg

from ragjax.cli.arguments import ModelName
from ragjax.cli.engine import Engine, load_for
from ragjax.config import Decoding, Mesh, Serve
from ragjax.errors import InputError, listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jax

    from ragjax.generation.slots import Slots
    from ragjax.model import Model
    from ragjax.onnx_model import OnnxModel
    from ragjax.serving import Service

_KEY_VARIABLE = "RAGJAX_API_KEY"
_SHORTEST_KEY = 16


@dataclass(frozen=True)
class _ServeCommand:
    """Answer over HTTP as OpenAI's API does, with a page to try it, until SIGTERM or Ctrl-C."""

    model: ModelName
    options: Annotated[Serve, arg(name="")] = field(default_factory=Serve)
    draft: str | None = None
    """MODEL, faster and of the same vocabulary, such as the first one's student: it proposes tokens for the
    first, whose answers stay its own. It is served beside it as well: each answers by its own name, and the
    page runs both on a prompt and compares them."""
    speculate: bool = True
    """Let DRAFT propose tokens for the first model; else the two are only served beside each other, and may
    have different vocabularies. In onnxruntime models write alone."""
    draft_tokens: int = 4
    """Tokens DRAFT proposes at once, at most; how many pays is measured, and followed as texts go on."""
    mesh: Mesh = field(default_factory=lambda: Mesh(data=1))
    """Devices that share the work; the rest stand by."""
    engine: Engine | None = None
    """What runs the models: jax, or onnx: onnxruntime, on CPU. None: jax, or onnx for what `ragjax export
    --format onnx` wrote, which it alone runs."""
    threads: int | None = None
    """With onnx: threads of each model. None: as many as there are cores."""


def run(given: list[str]) -> None:
    """Does `ragjax serve`, given the words that follow it."""
    command = tyro.cli(_ServeCommand, args=given, prog="ragjax serve")
    key = _checked_key(command.options)
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.parallel.working_mesh import working_mesh
    from ragjax.serving import Service, bind, serve, url_of

    bound = bind(command.options.host, command.options.port)
    keep_compiled_programs()
    service = Service(command.options, key)
    seconds = _fill(service, command, working_mesh(command.mesh))
    _quiet_log()
    serve(service, bound, lambda: print(_table(service, command, url_of(bound), seconds), flush=True))


def _checked_key(options: Serve) -> str | None:
    """The token that clients must send, and a refusal of all that cannot be used."""
    problems = [
        f"{name} is not installed: pip install 'ragjax[serve]'"
        for name in ("fastapi", "uvicorn")
        if find_spec(name) is None
    ]
    key = os.environ.get(_KEY_VARIABLE)
    if options.api_key_file is not None:
        try:
            key = options.api_key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"--api-key-file {options.api_key_file} cannot be read as text: {error}")
    key = None if key is None else key.strip()
    if key is not None and (len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable()):
        problems.append(
            f"the key must have at least {_SHORTEST_KEY} printable ASCII characters: "
            'python -c "import secrets; print(secrets.token_urlsafe())" makes one'
        )
    if key is None and not options.only_here:
        problems.append(
            f"--host {options.host} lets others in: give a key as well, by --api-key-file or {_KEY_VARIABLE}"
        )
    if problems:
        raise InputError(f"Cannot serve:\n{listing(problems)}")
    return key


def _fill(service: Service, command: _ServeCommand, mesh: jax.sharding.Mesh | None) -> float:
    """Loads the models, compiles what they need, and tells the seconds that compiling took."""
    from ragjax.generation.prompts import tokenizer_of
    from ragjax.serving import names_of

    given, options = [each for each in (command.model, command.draft) if each is not None], command.options
    asked = Decoding(cache_dtype=options.cache_dtype, draft_tokens=command.draft_tokens)
    models = [
        load_for(command.engine, each, threads=command.threads, options=asked, draft=None, mesh=mesh)
        for each in given
    ]
    for model in models:
        tokenizer_of(model)
    names, drafts, seconds = names_of(given), (_draft_of(models, command), None), 0.0
    for name, model, draft in zip(names, models, drafts, strict=False):
        begun = time.perf_counter()
        slots = _slots(model, draft, command, mesh)
        slots.warm()
        seconds += time.perf_counter() - begun
        service.add(name, model, slots, draft=None if draft is None else names[1])
    return seconds


def _draft_of(models: Sequence[Model | OnnxModel], command: _ServeCommand) -> Model | None:
    """The model that drafts for the first, if there is one; refuses one that cannot."""
    from ragjax.generation.drafted import draft_problems
    from ragjax.model import Model

    if len(models) < 2 or not command.speculate:
        return None
    model, draft = models
    if not (isinstance(model, Model) and isinstance(draft, Model)):
        return None
    problems = draft_problems(model, draft, _room(model, draft, command.options))
    if problems:
        raise InputError(
            f"{command.draft} cannot draft for {command.model}:\n{listing(problems)}\n"
            "--no-speculate serves them beside each other."
        )
    return draft


def _room(model: Model | OnnxModel, draft: Model | None, options: Serve) -> int:
    positions = [each.config.positions for each in (model, draft) if each is not None]
    return options.room or min(1024, *positions)


def _slots(
    model: Model | OnnxModel, draft: Model | None, command: _ServeCommand, mesh: jax.sharding.Mesh | None
) -> Slots:
    from ragjax.generation.model_slots import ModelSlots
    from ragjax.generation.onnx import OnnxSlots
    from ragjax.onnx_model import OnnxModel

    options = command.options
    room = _room(model, draft, options)
    if isinstance(model, OnnxModel):
        return OnnxSlots(model, count=options.slots, room=room)
    return ModelSlots(
        model, draft=draft, draft_tokens=command.draft_tokens, count=options.slots, room=room,
        cache_dtype=options.cache_dtype, mesh=mesh,
    )  # fmt: skip


def _quiet_log() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("ragjax.serving").setLevel(logging.INFO)


def _drafts(service: Service, command: _ServeCommand) -> str:
    """Whether the first model reads drafts of the second, and else why not."""
    first, second = service.models.values()
    if first.draft:
        return f"{second.name} proposes up to {command.draft_tokens} tokens at once, {first.name} decides"
    return "none: " + ("in onnxruntime a model writes alone" if command.speculate else "--no-speculate")


def _table(service: Service, command: _ServeCommand, url: str, seconds: float) -> str:
    options = service.limits
    rows = {
        "page": f"{url}/" + (" (asks for the key)" if service.api_key else ""),
        "API": f"{url}/v1" + (" (Authorization: Bearer KEY)" if service.api_key else ""),
    }
    for place, served in enumerate(service.models.values()):
        room = f"{served.slots.count} slots of {served.slots.room} tokens"
        chats = ", chats" if served.chats else ""
        label = "model" if place == 0 else "beside it"
        rows[label] = f"{served.name}: {served.model.parameters:,} parameters, {room}{chats}"
    if len(service.models) > 1:
        rows["drafts"] = _drafts(service, command)
    rows["limits"] = (
        f"{options.queue} texts wait, {options.timeout:g} s a request, {options.max_body:,} bytes"
    )
    rows["compiled"] = f"{seconds:.1f} s"
    lines = [f"{name:<10} {value}" for name, value in rows.items()]
    return "\n".join([*lines, "ready      Ctrl-C or SIGTERM finishes what runs, then stops"])
