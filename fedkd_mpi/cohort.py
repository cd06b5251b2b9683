"""Who takes part in a round and which process hosts which client: pure functions that every process evaluates alike."""

from __future__ import annotations

from itertools import pairwise

from fedkd_mpi.streams import generator


def sample(seed: int, round_index: int, num_clients: int, cohort_size: int) -> list[int]:
    """Return the ids of the clients of a round, rising; drawn without replacement from the seed alone."""
    if cohort_size == num_clients:
        return list(range(num_clients))
    chosen = generator(seed, "cohort", round_index).choice(num_clients, cohort_size, replace=False)
    return sorted(int(client) for client in chosen)


def placement(num_clients: int, world_size: int) -> list[range]:
    """Return every process's clients: contiguous blocks over the client ranks, none on rank 0 unless it is alone."""
    if world_size == 1:
        return [range(num_clients)]
    workers = world_size - 1
    starts = [num_clients * worker // workers for worker in range(workers + 1)]
    return [range(0), *(range(first, last) for first, last in pairwise(starts))]


def shares(chunks: int, world_size: int) -> list[range]:
    """Return near-equal contiguous shares of numbered work for all processes, the server's included."""
    starts = [chunks * process // world_size for process in range(world_size + 1)]
    return [range(first, last) for first, last in pairwise(starts)]
