"""Exchange of messages between clients and server: first their lengths, while processes sleep, then the messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fedkd_mpi.codecs.message import Message
from fedkd_mpi.codecs.wire import HEADER_BYTES, WireError
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication.world import NOTHING, World
from fedkd_mpi.errors import RunFault

WINDOW = 8 * 2**20  # bytes of messages that the server holds at one time


def arrival(rank_of_client: np.ndarray) -> np.ndarray:
    """Return the position of each client's contribution in data that were gathered rank by rank."""
    return rank_of_client.argsort(kind="stable").argsort()


def uplink(
    world: World,
    watch: Stopwatch,
    messages: Sequence[Message],
    rank_of_client: np.ndarray,
    clients: Sequence[int] | None = None,
) -> Iterator[Message]:
    """Yield the clients' messages on the server, in client order, and nothing on other ranks. Collective.

    `rank_of_client` is the MPI rank of every client of the cohort, the same on all processes, and `clients` are their
    numbers, which faults name. Each process passes the messages of its own clients in that order and must exhaust the
    iterator. The server holds one window of messages at a time: it reads them before it requests more. Raises RunFault
    naming the process, and the client, whose message is invalid.
    """
    with watch("wait"):
        lengths = _lengths(world, messages, rank_of_client)  # from these every process computes the same windows
    positions = np.flatnonzero(rank_of_client == world.mpi_rank)  # of this process's messages in the cohort
    for start, stop in windows(lengths):
        senders, sizes = rank_of_client[start:stop], lengths[start:stop]
        counts = np.bincount(senders, sizes, world.world_size).astype(np.int64)
        if start:
            with watch("wait"):
                world.broadcast_small()
        with watch("gather"):
            first, last = np.searchsorted(positions, [start, stop]).tolist()
            own = _joined(messages[first:last])
            arrived = world.gather(own, counts.tolist(), payload=True)
        parts: list[np.ndarray] = []
        if arrived is not None:
            parts = np.split(arrived, sizes[senders.argsort(kind="stable")].cumsum()[:-1])
            for index, position in enumerate(arrival(senders)):
                client = clients[start + index] if clients else None
                yield _checked(Message(parts[position]), senders[index], client)
        arrived, parts = None, []  # free this window's memory before the next one is received


def _lengths(world: World, messages: Sequence[Message], rank_of_client: np.ndarray) -> np.ndarray:
    """Return the length of every message of the cohort in bytes, in client order: int64 [clients]."""
    own = np.array([message.whole.size for message in messages], np.int64)
    counts = own.itemsize * np.bincount(rank_of_client, minlength=world.world_size)
    lengths = world.allgather_small(own, counts.tolist()).view(np.int64)[arrival(rank_of_client)]
    for mpi_rank, length in zip(rank_of_client, lengths, strict=True):
        if length < HEADER_BYTES:
            raise RunFault(f"damaged message: rank {mpi_rank} announces {length} bytes, less than a header")
    return lengths


def _checked(message: Message, mpi_rank: int, client: int | None = None) -> Message:
    try:
        _ = message.parsed
    except WireError as error:
        raise RunFault(f"damaged message of rank {mpi_rank}: {error}", client=client) from None
    return message


def windows(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each window: consecutive messages of at most WINDOW bytes in total, or one larger one.

    `sizes` are the bytes of every message.
    """
    start = 0
    while start < len(sizes):
        stop = start + max(int(np.searchsorted(np.cumsum(sizes[start:]), WINDOW, side="right")), 1)
        yield start, stop
        start = stop


def downlink(world: World, watch: Stopwatch, message: Message | None) -> Message:
    """Broadcast the server's message to every process and return it there. Collective.

    `message` is None on all ranks but 0. Call it after an uplink, which synchronises the processes.
    """
    length = np.array([message.whole.size if message else 0])
    with watch("wait"):
        world.broadcast_small(length)
    with watch("broadcast"):
        received = message or Message(np.empty(length[0], np.uint8))
        world.broadcast(received.whole, payload=True)
    return _checked(received, 0)


def _joined(messages: Sequence[Message]) -> np.ndarray:
    if len(messages) == 1:
        return messages[0].whole
    return np.concatenate([message.whole for message in messages]) if messages else NOTHING
