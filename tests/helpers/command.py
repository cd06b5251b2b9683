"""The run command on a configuration that takes a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from plain_digits import PLAIN_DIGITS

TINY = ["num_clients=4", "rounds=3", "local.epochs=1", "teacher.hidden=[16]", "student.hidden=[8]", "device=cpu"]
COMMAND = ["-m", "fedkd_mpi.run", *TINY, PLAIN_DIGITS]


def one_after_another(*runs: Sequence[str | Path]) -> list[str | Path]:
    """Return a program for Python that runs the command several times, which takes less than several processes do."""
    commands = [[*COMMAND[2:], *map(str, arguments)] for arguments in runs]
    return [Path(__file__).with_name("worker_commands.py"), json.dumps(commands)]


Command = Callable[..., tuple[int, str, str]]


def assert_refused(result: tuple[int, str, str], words: str) -> None:
    """Check that the command ended with code 2 and said so in one line."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("fedkd_mpi: ")
    assert len(err.splitlines()) == 1
