"""The run command on a configuration that takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable

from plain_digits import PLAIN_DIGITS

TINY = ["num_clients=4", "rounds=3", "local.epochs=1", "teacher.hidden=[16]", "student.hidden=[8]", "device=cpu"]
COMMAND = ["-m", "fedkd_mpi.run", *TINY, PLAIN_DIGITS]

Command = Callable[..., tuple[int, str, str]]


def assert_refused(result: tuple[int, str, str], words: str) -> None:
    """Check that the command ended with code 2 and said so in one line."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("fedkd_mpi: ")
    assert len(err.splitlines()) == 1
