"""Named arrays side by side in one block of memory, and whether a node has room for it; knows nothing of MPI."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError

ALIGNMENT = 64  # bytes: a cache line, and enough for every vector unit
FOLDER = Path("/dev/shm")  # where both Open MPI and MPICH put their shared windows ...
RESERVE = 16 * 2**20  # bytes: ... and their messages
Entry = Sequence[Any]  # name, dtype, shape, offset in bytes: JSON-able


def lay_out(arrays: Mapping[str, np.ndarray]) -> tuple[list[Entry], int]:
    """Return the place of every array in one block, 64-byte aligned, and the block's bytes."""
    entries, end = [], 0
    for name, array in arrays.items():
        entries.append((name, array.dtype.str, array.shape, end))
        end += padded(array.nbytes)
    return entries, end


def padded(size: int) -> int:
    """Return where what follows so many bytes may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def views(entries: Sequence[Entry], block: Any) -> dict[str, np.ndarray]:
    """Return the arrays that `entries` places in the block, without a copy."""
    return {name: np.ndarray(tuple(shape), dtype, block, at) for name, dtype, shape, at in entries}


def flat_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of a contiguous array, as a view; raises ValueError on another."""
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous arrays can be handed to MPI")
    return array.reshape(-1).view(np.uint8)


def check_room(size: int, hostname: str) -> None:
    """Raise UserError where this node cannot hold `size` bytes of shared memory.

    Asked beforehand: a full tmpfs shows itself as a bus error at the first write, not when the window is made.
    """
    if not FOLDER.is_dir():
        return
    free = shutil.disk_usage(FOLDER).free
    if size + RESERVE > free:
        raise UserError(
            f"the data need {size / 1e6:.0f} MB of shared memory, {FOLDER} on {hostname} has {free / 1e6:.0f} MB free: "
            f"enlarge it (docker run --shm-size=..., mount -o remount,size=... {FOLDER})"
        )
