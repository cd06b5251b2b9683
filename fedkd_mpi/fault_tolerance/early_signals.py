"""Recording of signals from the start of a process on, before a run can handle them.

The module imports almost nothing, so that it is active before the other imports.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
heard: list[int] = []  # received signals, in order


def listen() -> None:
    """Record the signals from now on; a second SIGINT ends the process."""
    for number in obeyed():
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the mask may be inherited from a launcher that blocks signals


def obeyed() -> list[int]:
    """Return the signals that request a stop: all of SIGNALS, except SIGHUP if nohup has made the process ignore it."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def let_go() -> None:
    """Restore the default handlers and send the recorded signals again; for commands that are not runs."""
    for number in obeyed():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in heard:
        os.kill(os.getpid(), number)


def _note(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and number in heard:
        os._exit(128 + number)
    heard.append(number)
