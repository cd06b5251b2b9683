"""Recording of signals from the start of a process on, before a run can handle them.

The module imports almost nothing, so that it is active before the other imports.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
heard: list[int] = []  # received signals, in order
listening = False  # whether this process is a command of this package, which listens from its start on


def listen() -> None:
    """Record the signals from now on; a second SIGINT ends the process."""
    global listening
    listening = True
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


def pass_on() -> None:
    """Leave all recorded signals, and those that come from now on, to the program that replaces this one.

    Signals that wait for this thread stay with the process, and so does the mask, until that program calls listen().
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in heard:
        signal.pthread_kill(threading.get_ident(), number)


def _note(number: int, _: FrameType | None) -> None:
    if number == signal.SIGINT and number in heard:
        os._exit(128 + number)
    heard.append(number)
