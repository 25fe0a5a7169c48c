"""The verb `plan`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from json import dumps
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from ragjax.cli.run_command import read_config_command
from ragjax.config import Compress


@dataclass(frozen=True)
class _PlanCommand:
    """Compile the student's step for TPU chips that are not there, and tell what it takes of each.

    Any field of the config can be set here. Needs libtpu (pip install 'ragjax[tpu]') and no TPU; nothing is
    downloaded: GPT-2s and OPTs are known by name, other models are folders.
    """

    config: Annotated[Compress, arg(name="")]
    topology: str | None = None
    """Slice of chips v4, v5e, v5p or v6e, such as v5e:4x4; none: shapes alone, on chips of no kind."""
    shapes: FlagCreatePairsOff[bool] = False
    """Do not compile: what follows from shapes alone, activations not among it, and without libtpu."""
    json: FlagCreatePairsOff[bool] = False
    """Print one JSON object."""


def run(given: list[str]) -> None:
    """Does `ragjax plan`, given the words that follow it."""
    command, _ = read_config_command("plan", given, _PlanCommand, Compress)
    # A machine that has chips need not lend them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ragjax.planning import plan, print_plan

    found = plan(command.config, command.topology, compile=not command.shapes)
    if command.json:
        print(dumps(found.to_dict()))
    else:
        print_plan(found)
