"""A run folder that is open for work, and closed to other runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ragjax.config import Compress, Pretrain, to_dict
from ragjax.data.uri import check_alike
from ragjax.errors import InputError
from ragjax.parallel import hosts
from ragjax.parallel.agreement import from_writer
from ragjax.parallel.compile_cache import keep_compiled_programs
from ragjax.parallel.mesh import make_mesh
from ragjax.run_folder import RunFolder, check_same_run
from ragjax.training.fit import Place
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted


@dataclass(frozen=True)
class OpenRun:
    """A run folder that is open for work."""

    folder: RunFolder
    place: Place

    @property
    def console(self) -> Console:
        return self.place.console

    def done(self, stage: str) -> bool:
        """Whether `stage` has left its model; says so.

        Raises:
          Interrupted: someone asked to stop.
        """
        self.stop_if_asked(stage)
        done = from_writer(lambda: self.folder.has_model(stage))
        if done:
            self.console.print(
                f"[bold]{stage}[/bold]: done, {escape(str(self.folder.model(stage)))}", highlight=False
            )
        return done

    def stop_if_asked(self, before: str) -> None:
        """Raises Interrupted where someone asked to stop while no step was running."""
        if self.place.interrupts.requested():
            raise Interrupted(f"Stopped before {before}; what was done is saved")


@contextmanager
def opened(config: Compress | Pretrain, workdir: str | Path, console: Console | None) -> Iterator[OpenRun]:
    """Opens a run folder, unless it is of another run; until the end a signal asks to stop.

    Raises:
      InputError: the mesh, the text or the folder cannot be used.
    """
    check_alike(config.data.train, config.data.validation)
    hosts.start()
    keep_compiled_programs()
    folder = RunFolder(Path(workdir))
    mesh = make_mesh(config.mesh)
    from_writer(partial(_claim, folder, config))
    console = console or Console(highlight=False)
    if not hosts.is_writer():
        console = Console(quiet=True)
    with Interrupts() as interrupts:
        yield OpenRun(folder, Place(mesh, folder.path, console, interrupts))


def _claim(folder: RunFolder, config: Compress | Pretrain) -> None:
    """Makes the run folder and writes the config into it, unless it belongs to another run."""
    check_same_run(folder, config)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_json("config.json", to_dict(config))
    except OSError as error:
        reason = f"{folder.path} cannot be written ({error.strerror})"
        raise InputError(f"{reason}: choose another --workdir.") from None
