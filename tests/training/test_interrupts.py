"""A signal asks once, and insists the second time."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ragjax.training.interrupts import EXIT_INTERRUPTED, Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_says_so(number, capfd):
    with Interrupts() as interrupts:
        assert not interrupts.requested()
        os.kill(os.getpid(), number)
        assert interrupts.requested()
        assert interrupts.requested()
    assert "saved" in capfd.readouterr().err


def test_the_second_ctrl_c_stops_at_once(capfd):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.requested()
    assert capfd.readouterr().err.count("again") == 1


def test_a_second_sigterm_lets_the_save_finish(capfd):
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.requested()
    assert capfd.readouterr().err.count("again") == 1


def test_the_handlers_from_before_are_put_back():
    def mine(*_):
        pass

    before = {number: signal.signal(number, mine) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(ZeroDivisionError), Interrupts():
            entered = [signal.getsignal(number) for number in before]
            raise ZeroDivisionError
        assert mine not in entered
        assert [signal.getsignal(number) for number in before] == [mine, mine]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_no_handler_is_installed():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work():
        with Interrupts() as interrupts:
            found.append((interrupts.requested(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


LOOP = """
import sys, time
from ragjax.training.interrupts import EXIT_INTERRUPTED, Interrupts

with Interrupts() as interrupts:
    print("ready", flush=True)
    while not interrupts.requested():
        time.sleep(0.01)
print("saved", flush=True)
sys.exit(EXIT_INTERRUPTED)
"""


def test_a_process_asked_to_stop_saves_and_exits_with_the_code():
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, process.returncode) == ("saved\n", EXIT_INTERRUPTED)
    assert "Ctrl-C" in err
