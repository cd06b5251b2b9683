"""A log whose lock another process holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpirun import PATIENCE, clean_environment

WORKER = Path(__file__).with_name("worker_lock.py")


@contextmanager
def locked(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give the process that holds the lock, and gives it back when its standard input is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, WORKER, log], env=clean_environment(), **pipes)
    try:
        assert process.stdout.readline() == b"locked\n"
        yield process
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()
