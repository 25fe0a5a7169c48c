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
    """MODEL served beside the first, such as its student: the page runs both on a prompt and compares them.
    Each answers by its own name."""
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
    serve(service, bound, lambda: print(_table(service, url_of(bound), seconds), flush=True))


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
    asked = Decoding(cache_dtype=options.cache_dtype)
    models = [
        load_for(command.engine, each, threads=command.threads, options=asked, draft=None, mesh=mesh)
        for each in given
    ]
    seconds = 0.0
    for name, model in zip(names_of(given), models, strict=True):
        tokenizer_of(model)
        room = options.room or min(1024, model.config.positions)
        slots = _slots(model, options, room, mesh)
        begun = time.perf_counter()
        slots.warm()
        seconds += time.perf_counter() - begun
        service.add(name, model, slots)
    return seconds


def _slots(model: Model | OnnxModel, options: Serve, room: int, mesh: jax.sharding.Mesh | None) -> Slots:
    from ragjax.generation.model_slots import ModelSlots
    from ragjax.generation.onnx import OnnxSlots
    from ragjax.onnx_model import OnnxModel

    if isinstance(model, OnnxModel):
        return OnnxSlots(model, count=options.slots, room=room)
    return ModelSlots(model, count=options.slots, room=room, cache_dtype=options.cache_dtype, mesh=mesh)


def _quiet_log() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("ragjax.serving").setLevel(logging.INFO)


def _table(service: Service, url: str, seconds: float) -> str:
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
    rows["limits"] = (
        f"{options.queue} texts wait, {options.timeout:g} s a request, {options.max_body:,} bytes"
    )
    rows["compiled"] = f"{seconds:.1f} s"
    lines = [f"{name:<10} {value}" for name, value in rows.items()]
    return "\n".join([*lines, "ready      Ctrl-C or SIGTERM finishes what runs, then stops"])
