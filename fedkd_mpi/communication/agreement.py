"""Comparison of what the processes of a job were started with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from fedkd_mpi.common.console import say
from fedkd_mpi.communication.world import World
from fedkd_mpi.errors import LONGEST_PATH, UserError, shown

DIGEST_BYTES = 16


def agreed(world: World, started: Mapping[str, str], *, silent: bool = False) -> bool:
    """Return whether all processes were started with the same texts by key; otherwise MPI is finalized. Collective.

    Rank 0 prints the difference unless `silent`.
    """
    try:
        require_same(world, started, "start every process with the same command, files and packages")
    except UserError as error:
        refuse(world, error, silent=silent)
        return False
    return True


def require_same(world: World, own: Mapping[str, str], remedy: str) -> None:
    """Raise the same UserError on every process if `own`, texts by key, differs between processes. Collective.

    The message names the first different process and key, and ends with `remedy`.
    """
    text = json.dumps(own).encode()
    digests = world.allgather(np.frombuffer(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(), np.uint8))
    different = np.flatnonzero((digests != digests[0]).any(axis=1))
    if not len(different):
        return
    first = int(different[0])
    reference = json.loads(world.from_root(text.decode()))
    message = _describe(world, reference, own) if world.mpi_rank == first else None
    others = f" (and {len(different) - 1} more processes differ)" if len(different) > 1 else ""
    raise UserError(f"{world.first_message(message)}{others}: {remedy}")


def refuse(world: World, error: UserError, *, silent: bool = False) -> int:
    """Print a UserError on rank 0 unless `silent`, finalize MPI and return the exit code. Collective."""
    if world.is_root and not silent:
        say(f"fedkd_mpi: {error}", error=True)
    world.close()
    return 2


def _describe(world: World, reference: Mapping[str, str], own: Mapping[str, str]) -> str:
    """Return a text that names the first key in which this process differs from rank 0, with both values."""
    key = next(key for key in [*own, *reference] if own.get(key) != reference.get(key))
    here, there = (shown(texts.get(key, "nothing"), LONGEST_PATH) for texts in (own, reference))
    return (
        f"rank {world.mpi_rank} on {world.hostname} has {key}={here}, "
        f"but rank 0 on {world.hostnames[0]} has {key}={there}"
    )
