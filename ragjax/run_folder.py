"""A run's folder: what lies where, and whether it belongs to the config at hand."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ragjax.config import to_dict
from ragjax.config_file import Run, differences
from ragjax.errors import InputError, listing

_FREE = (
    "evaluate.", "mesh.", "student.control", "student.scratch", "data.cache",
    "train.log_every", "train.checkpoint_every", "train.evaluate_every", "train.keep",
)  # fmt: skip
"""Fields (and groups) that may change between two calls with one folder: they alter no trained model."""


_WORK = ("tokenizer", "checkpoints", "teacher", "student", "control", "scratch", "model")
"""What a run makes that belongs to its config."""


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, which can itself be run."""
        return self.path / "config.json"

    @property
    def summary(self) -> Path:
        """Figures of every model."""
        return self.path / "summary.json"

    def model(self, stage: str) -> Path:
        """The Hugging Face folder a stage leaves."""
        return self.path / stage

    def has_model(self, stage: str) -> bool:
        """Whether the stage is done; its folder appears whole or not at all."""
        return (self.model(stage) / "ragjax.json").is_file()

    def read_json(self, name: str) -> Any:
        """The JSON object in the file `name`, or None where there is none that can be read."""
        file = self.path / name
        try:
            value = json.loads(file.read_text()) if file.is_file() else None
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def write_json(self, name: str, value: Any) -> None:
        """Writes the JSON file `name` whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(partial, self.path / name)


def check_same_run(folder: RunFolder, config: Run) -> None:
    """Refuses a folder that another config has trained in.

    Raises:
      InputError: names the fields that differ, with both values.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise InputError(f"A run folder was expected, {folder.path} is a file: choose another --workdir.")
    before = folder.read_json("config.json")
    if before is None:
        strangers = sorted(p.name for p in folder.path.iterdir()) if folder.path.is_dir() else []
        if strangers:
            raise InputError(
                f"{folder.path} is not empty and holds no config.json that can be read, found "
                f"{', '.join(strangers[:5])}: choose a new or empty --workdir."
            )
        return
    # A run that never got to work, perhaps for a misspelt field, binds nobody.
    if not any((folder.path / name).exists() for name in _WORK):
        return
    now = json.loads(json.dumps(to_dict(config)))
    changed = {
        name: values
        for name, values in differences(before, now).items()
        if not any(name.startswith(free) or name.endswith(f".{free}") for free in _FREE)
    }
    if changed:
        verb = "train" if before.get("kind") == "Pretrain" else "compress"
        lines = [f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items()]
        raise InputError(
            f"{folder.path} belongs to another config:\n{listing(lines)}\n"
            f"Choose another --workdir, or go on with `ragjax {verb} {folder.config}`."
        )


def versions(*others: str) -> dict[str, str]:
    """Python's version and those of the packages a result depends on, and of others where it does."""
    names = ("ragjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers")
    found = {"python": platform.python_version()}
    for name in (*names, *others):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """The commit of the working directory, with a + where it has changes; none outside a repository."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None


def processor_name() -> str:
    """The processor as /proc/cpuinfo or the platform names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
