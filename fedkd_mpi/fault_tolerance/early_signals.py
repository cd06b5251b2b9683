"""Signals from the first moment of a process on: what comes before the run can obey it is remembered.

It imports next to nothing, to be ready before the rest is read.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
heard: list[int] = []  # in the order they came


def listen() -> None:
    """Note these signals from now on; a second SIGINT ends the process."""
    for number in obeyed():
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher that blocks one for itself may pass that on


def obeyed() -> list[int]:
    """Return the signals that ask to stop: all but a SIGHUP that nohup has this process ignore."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def let_go() -> None:
    """Give the signals their usual effects again, for a command that is no run; what was heard has its effect now."""
    for number in obeyed():
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number in heard:
        os.kill(os.getpid(), number)


def _note(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and number in heard:
        os._exit(128 + number)
    heard.append(number)
