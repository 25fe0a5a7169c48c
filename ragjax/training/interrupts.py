"""Ctrl-C and SIGTERM as a wish to stop: finish the step, save, end with a code that says so."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ragjax.parallel.agreement import AnyHost

EXIT_INTERRUPTED = 75
"""Exit code of a run that stopped on request and saved itself: EX_TEMPFAIL of sysexits.h, "try again".

The same command goes on where it stopped, so that a supervisor may restart on 75 alone. Not 130 or 143,
which shells give for processes that a signal killed: those saved nothing.
"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ASKED = b"\nStopping: what is at hand is finished and saved first. Press Ctrl-C again to stop at once.\n"


class Interrupts:
    """While it is entered, SIGINT and SIGTERM ask to stop instead of stopping.

    A second SIGINT raises KeyboardInterrupt. The handlers from before are put back at the end. Outside
    the main thread, where Python allows no handlers, it installs none and nothing is ever requested.

    All hosts stop after the same step: one host's signal reaches the others through a reduction on the
    devices, a step late (`ragjax.parallel.agreement.AnyHost`). JAX's preemption service would do it too,
    but it counts by step numbers, so that a notice between two stages, where numbers start over, is lost;
    and it hears no Ctrl-C. Its SIGTERM handler is replaced while this one is entered.

    Example:
      >>> import os, signal
      >>> with Interrupts() as interrupts:
      ...     before = interrupts.requested()
      ...     os.kill(os.getpid(), signal.SIGTERM)
      ...     (before, interrupts.requested())
      (False, True)
    """

    def __init__(self) -> None:
        self._asked = False
        self._any_host = AnyHost()
        self._before: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Whether to save and stop now; called once a step, on every host alike."""
        return self._any_host(self._asked)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, and cannot be set again from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._asked = True
        # Not print: the signal may have come in the middle of another write to the same stream.
        os.write(2, _ASKED)
