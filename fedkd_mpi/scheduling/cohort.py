"""Sampling of cohorts and assignment of clients to processes: pure functions with the same result on every process."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapreplace
from itertools import pairwise

import numpy as np

from fedkd_mpi.common.random_streams import generator


def sample(seed: int, round_index: int, num_clients: int, cohort_size: int) -> list[int]:
    """Return the ids of the clients of a round in ascending order, drawn without replacement from (seed, round)."""
    if cohort_size == num_clients:
        return list(range(num_clients))
    chosen = generator(seed, "cohort", round_index).choice(num_clients, cohort_size, replace=False)
    return sorted(int(client) for client in chosen)


def families(work: Sequence[int], kinds: Sequence[int], size: int) -> np.ndarray:
    """Return the family index of each client: int64 [clients].

    A family has up to `size` clients of the same kind and of similar work. `work` and `kinds` are those of each client.
    All members belong to one process, which trains those of a cohort at once, for any number of processes.
    """
    order = sorted(range(len(work)), key=lambda client: (kinds[client], -work[client], client))
    found = np.zeros(len(work), np.int64)
    sizes: list[int] = []
    last = None
    for client in order:
        if not sizes or sizes[-1] == size or kinds[client] != last:
            sizes.append(0)
        sizes[-1] += 1
        last, found[client] = kinds[client], len(sizes) - 1
    return found


def placement(work: Sequence[int], world_size: int) -> np.ndarray:
    """Return the MPI rank of each client, given the work of each; rank 0 gets none unless it is the only process.

    Clients are assigned in descending order of work, each to the process with the least work so far (Graham 1969: at
    most a third above the optimum). Processes are numbered by their first client: with one client per process, client
    i is on rank i + 1.
    """
    rank_of_client = np.zeros(len(work), np.int64)
    if world_size == 1:
        return rank_of_client
    loads = [(0, 0, worker) for worker in range(world_size - 1)]  # a heap: the least loaded is first
    for client in sorted(range(len(work)), key=lambda client: -work[client]):
        load, count, worker = loads[0]
        heapreplace(loads, (load + work[client], count + 1, worker))
        rank_of_client[client] = worker
    _, first, which = np.unique(rank_of_client, return_index=True, return_inverse=True)
    return 1 + first.argsort().argsort()[which]


def shares(chunks: int, world_size: int) -> list[range]:
    """Return nearly equal contiguous shares of `chunks` numbered pieces of work, one per process, server included."""
    starts = [chunks * process // world_size for process in range(world_size + 1)]
    return [range(first, last) for first, last in pairwise(starts)]
