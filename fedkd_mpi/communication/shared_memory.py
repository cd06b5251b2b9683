"""Layout of named arrays in one block of memory, and a check that the node has room for it; independent of MPI."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError

ALIGNMENT = 64  # bytes of a cache line; enough for every vector unit
FOLDER = Path("/dev/shm")  # Open MPI and MPICH create their shared windows here
RESERVE = 16 * 2**20  # bytes that remain free in FOLDER for the messages of MPI
Entry = Sequence[Any]  # name, dtype, shape, offset in bytes; JSON-serialisable


def block_layout(arrays: Mapping[str, np.ndarray]) -> tuple[list[Entry], int]:
    """Return the entry of every array in one block, with aligned offsets, and the size of the block in bytes."""
    entries: list[Entry] = []
    end = 0
    for name, array in arrays.items():
        entries.append((name, array.dtype.str, array.shape, end))
        end += padded(array.nbytes)
    return entries, end


def padded(size: int) -> int:
    """Round a size in bytes up to the next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def views(entries: Sequence[Entry], block: Any) -> dict[str, np.ndarray]:
    """Return the arrays of `entries` as views of the block, without copying."""
    return {name: np.ndarray(tuple(shape), dtype, block, at) for name, dtype, shape, at in entries}


def flat_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of an array as a uint8 view; raises ValueError if the array is not C-contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous arrays can be handed to MPI")
    return array.reshape(-1).view(np.uint8)


def check_room(size: int, hostname: str) -> None:
    """Raise UserError if this node has no room for `size` bytes of shared memory.

    This is checked before the window is created, because a full tmpfs causes a bus error only at the first write.
    """
    if not FOLDER.is_dir():
        return
    free = shutil.disk_usage(FOLDER).free
    if size + RESERVE > free:
        raise UserError(
            f"the data need {size / 1e6:.0f} MB of shared memory, {FOLDER} on {hostname} has {free / 1e6:.0f} MB free: "
            f"enlarge it (docker run --shm-size=..., mount -o remount,size=... {FOLDER})"
        )
