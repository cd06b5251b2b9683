"""Segments that killed MPI jobs leave in shared memory: they are reported with a remedy but not removed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedkd_mpi.common.units import bytes_text

PATTERNS = ("sm_segment.*", "vader_segment.*", "mpich_shm_*", "fedkd-clients-*")  # Open MPI, MPICH, this package


def stale_segments(folder: Path) -> list[Path]:
    """Return the segments of this user in a folder that no running process of this user has open or mapped."""
    found = []
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            with suppress(OSError):
                if path.lstat().st_uid == os.geteuid() and path.is_file() and not path.is_symlink():
                    found.append(path)
    used = set(_used(str(folder))) if found else set()
    return sorted(path for path in found if str(path) not in used)


def told(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (problem, remedy) if segments are left in a folder."""
    if stale := stale_segments(folder):
        size = bytes_text(sum(path.stat().st_size for path in stale))
        names = " ".join(str(path) for path in stale[:3]) + (" ..." if stale[3:] else "")
        yield f"{len(stale)} segment(s) of jobs that have ended, {size}: {names}", f"rm {names}, while no job starts"


def _used(folder: str) -> Iterator[str]:
    """Yield the files of a folder that processes have mapped or open, if this user may inspect the processes."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for line in (process / "maps").read_text(errors="replace").splitlines():
                if folder in line:
                    yield line.split(maxsplit=5)[-1]
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    yield str(descriptor.readlink())
