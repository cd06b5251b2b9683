"""The memory of this machine and of this process, and the refusal of what would not fit before it is allocated."""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.errors import UserError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, cgroup 2 and 1


def memory() -> int:
    """Return the bytes of memory of this node, or of the container where that has fewer."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it says "max"
            found = min(found, int(Path(path).read_text()))
    return found


def peak_memory() -> int:
    """Return the bytes of memory that this process had at its fullest.

    Linux's getrusage counts the memory of the process that started this one, which may be much larger.
    """
    with suppress(OSError):  # another system has no /proc
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raise UserError if `what` needs more bytes than this machine has; `remedy` is the advice in the message."""
    there = memory()
    if needed > there:
        raise UserError(
            f"{what}: that is {bytes_text(needed)} of memory, more than this machine's {bytes_text(there)}: {remedy}"
        )
