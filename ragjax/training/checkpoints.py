"""Checkpoints that can be trusted: saved in the background, proven by a manifest, checked before use."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from ragjax.config_file import differences
from ragjax.errors import InputError, listing
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.hosts import is_writer
from ragjax.training.folder_lock import FolderLock
from ragjax.training.manifest import (
    NAME,
    ManifestError,
    damages,
    describe_leaves,
    leaf_names,
    misfits,
    read_manifest,
    write_manifest,
)

_TEMPORARY = ".orbax-checkpoint-tmp"
_UNSOUND = ".unsound"


class _Saving(NamedTuple):
    step: int
    loss: float | None
    sealed: Future


class Checkpoints:
    """The checkpoints of one training: the latest, and the best by validation loss.

    A step counts once its manifest is written: size and SHA-256 of every file, the names, shapes and
    types of the arrays, and the run's fingerprint. A step without one was interrupted; when the folder
    is opened it is renamed to STEP.unsound. One process writes to a folder at a time. With several
    hosts the folder is shared by all, and all call every method at the same point of the program.

    Args:
      folder: where the steps lie; made where it is missing.
      keep: checkpoints kept: the latest, and the best of this many less one. One more is on disk while
        it is being written.
      fingerprint: JSON values that identify the run; a folder written under others is not read.
      warn: told of every step that cannot be used.

    Raises:
      InputError: another process uses the folder.

    Example:
      >>> import tempfile, jax
      >>> state = {"w": jax.numpy.arange(3.0)}
      >>> template = jax.eval_shape(lambda: state)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(Path(folder), keep=2, fingerprint={"seed": 0}) as checkpoints:
      ...         checkpoints.save(7, state, loss=1.5)
      ...         checkpoints.restore(template)
      (7, {'w': Array([0., 1., 2.], dtype=float32)})
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        fingerprint: dict[str, Any],
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self._folder = Path(folder).resolve()
        self._keep = keep
        # As it will be read back: tuples become lists.
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._warn = warn
        self._lock: FolderLock | None = None
        self._losses: dict[int, float | None] = dict(from_writer(self._open))
        # Orbax keeps everything: it would delete old steps before the new one has its manifest.
        self._manager = ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions())
        self._sealer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._saving: _Saving | None = None

    @property
    def losses(self) -> dict[int, float | None]:
        """The steps that are saved, with their validation losses."""
        return dict(self._losses)

    def save(self, step: int, state: Any, *, loss: float | None = None) -> None:
        """Starts to save `state`; returns when its arrays are copied or held, so that it may be donated.

        A save before this one is finished first. A step that is saved already is left as it is.

        Args:
          step: number of the step.
          state: a tree of arrays.
          loss: validation loss at the step, where it was measured.

        Raises:
          OSError: the save before this one could not be written.
        """
        self.wait()
        if step in self._losses:
            return
        loss = float(loss) if loss is not None and math.isfinite(loss) else None
        leaves = dict(zip(leaf_names(state), jax.tree.leaves(state), strict=True))
        self._manager.save(step, args=ocp.args.StandardSave(leaves), force=True)
        # The files are read back and hashed behind the training loop's back, in a thread that starts when
        # Orbax has renamed the finished step; hashlib lets go of the GIL. `losses` learns of the step in
        # `wait`, when the manifest is written, and only then are older steps deleted.
        seal = partial(self._seal, step, describe_leaves(state), loss)
        self._saving = _Saving(step, loss, self._sealer.submit(seal))

    def restore(self, template: Any, *, step: int | None = None) -> tuple[int, Any] | None:
        """Reads the latest sound step, walking back past damaged ones, which are renamed to STEP.unsound.

        Args:
          template: a tree of `jax.ShapeDtypeStruct` with the shardings wanted; the mesh may be another
            than the one that was saved from.
          step: a certain step, to be read rather than to go on from; none: the latest.

        Returns:
          The step and its state, or None where nothing is saved.

        Raises:
          InputError: the checkpoints belong to another run, do not fit the template, or are all damaged.
        """
        self.wait()
        wanted = describe_leaves(template)
        unsound: dict[int, str] = {}
        for found in sorted(self._losses, reverse=True) if step is None else [step]:
            damage = from_writer(partial(self._examine, found, wanted))
            if damage:
                unsound[found] = "; ".join(damage[:3]) + ("; ..." if len(damage) > 3 else "")
                continue
            if unsound:
                self._set_aside(unsound)
            return found, self._read(found, template)
        if unsound:
            told = [f"step {found}: {damage}" for found, damage in unsound.items()]
            raise InputError(
                f"No sound checkpoint is left in {self._folder}:\n{listing(told)}\n"
                "Bring these files back from a copy, or start over: delete the folder, or choose another "
                "--workdir."
            )
        return None

    def wait(self) -> None:
        """Waits until the last save is complete, manifest and all, and deletes the steps it supersedes.

        Raises:
          OSError: it could not be written; what was saved before it is untouched.
        """
        if self._saving is None:
            return
        (step, loss, sealed), self._saving = self._saving, None
        error = sealed.exception()
        reason = from_writer(partial(_reason, error)) or _reason(error)
        if reason is not None:
            self._discard(step)
            raise OSError(*reason[:-1], self._failure(step, reason[-1])) from error
        self._losses[step] = loss
        for old in _superseded(self._losses, self._keep):
            self._manager.delete(old)
            del self._losses[old]

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            self._manager.close()
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> list[tuple[int, float | None]]:
        """Locks the folder, clears what a crash left in it, and lists its steps."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self._folder)
        steps = []
        for entry in sorted(self._folder.iterdir()):
            if _TEMPORARY in entry.name:
                shutil.rmtree(entry)
            elif entry.is_dir() and entry.name.isdecimal():
                if (entry / NAME).exists():
                    steps.append((int(entry.name), _loss(entry)))
                elif any(entry.iterdir()):
                    self._put_away(int(entry.name), f"{NAME} is missing: the save was cut off")
                else:
                    entry.rmdir()
        return steps

    def _seal(self, step: int, leaves: dict[str, str], loss: float | None) -> None:
        self._manager.wait_until_finished()
        if is_writer():
            write_manifest(self._folder / str(step), leaves=leaves, fingerprint=self._fingerprint, loss=loss)

    def _examine(self, step: int, wanted: dict[str, str]) -> list[str]:
        """What is damaged about a step; refuses one that is of another run or has other arrays."""
        folder = self._folder / str(step)
        try:
            manifest = read_manifest(folder)
        except ManifestError as error:
            return [str(error)]
        changed = differences(manifest.fingerprint, self._fingerprint)
        if changed:
            told = [f"{name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items()]
            raise InputError(
                f"The checkpoints in {self._folder} are of another run:\n{listing(told)}\n"
                "Set these back to go on with it, or choose another --workdir."
            )
        if damage := damages(folder, manifest):
            return damage
        if told := misfits(manifest.leaves, wanted):
            raise InputError(
                f"The checkpoint of step {step} in {self._folder} has other arrays than this run:\n"
                f"{listing(told, limit=100)}\n"
                "Go on with the settings and the version that wrote it, or choose another --workdir."
            )
        return []

    def _read(self, step: int, template: Any) -> Any:
        named = dict(zip(leaf_names(template), jax.tree.leaves(template), strict=True))
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(named))
        return jax.tree.unflatten(jax.tree.structure(template), [restored[name] for name in named])

    def _set_aside(self, unsound: dict[int, str]) -> None:
        def put_away() -> None:
            for step, damage in unsound.items():
                self._put_away(step, damage)

        from_writer(put_away)
        self._manager.reload()
        for step in unsound:
            del self._losses[step]

    def _put_away(self, step: int, damage: str) -> None:
        away = self._folder / f"{step}{_UNSOUND}"
        shutil.rmtree(away, ignore_errors=True)
        os.rename(self._folder / str(step), away)
        self._warn(f"The checkpoint of step {step} cannot be used and is now {away}: {damage}.")

    def _discard(self, step: int) -> None:
        """Forgets a save that failed, and frees the space it took."""
        with suppress(Exception):
            self._manager.wait_until_finished()
        if is_writer():
            for entry in [self._folder / str(step), *self._folder.glob(f"{step}{_TEMPORARY}*")]:
                shutil.rmtree(entry, ignore_errors=True)
        self._manager.reload()

    def _failure(self, step: int, reason: str) -> str:
        older = f"step {max(self._losses)} is untouched" if self._losses else "there is none before it"
        return (
            f"The checkpoint of step {step} could not be written to {self._folder} ({older}): {reason}. "
            "Make room or give access there, and run the same command again"
        )


def _superseded(losses: dict[int, float | None], keep: int) -> list[int]:
    """The steps that are neither the latest nor among the best `keep` - 1 of the others."""
    _, *others = sorted(losses, reverse=True)
    # A stable sort: among equals, and among steps without a loss, which come last, the later is better.
    known = {step: math.inf if loss is None else loss for step, loss in losses.items()}
    return sorted(others, key=known.__getitem__)[keep - 1 :]


def _loss(folder: Path) -> float | None:
    try:
        return read_manifest(folder).loss
    except ManifestError:
        return None


def _reason(error: BaseException | None) -> list | None:
    """An error as the arguments of an OSError, in JSON values."""
    if error is None:
        return None
    return [error.errno, str(error)] if isinstance(error, OSError) and error.errno else [str(error)]
