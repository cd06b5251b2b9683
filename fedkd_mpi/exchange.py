"""Messages between processes: fixed-size headers first, waited for asleep, then payloads at full speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedkd_mpi import wire
from fedkd_mpi.cohort import arrival
from fedkd_mpi.errors import RunFault
from fedkd_mpi.stopwatch import Stopwatch
from fedkd_mpi.wire import SERVER, SKIPPED, UPDATE
from fedkd_mpi.world import World

__all__ = ["SERVER", "SKIPPED", "UPDATE", "Message", "Receipt", "downlink", "make_message", "uplink"]


WINDOW = 8 * 2**20  # bytes of payloads that the server holds at a time


class Receipt(NamedTuple):
    """What the log says of a message once it has been read: its length, and rank and bytes of each layer, if any."""

    bytes: int
    layers: list[tuple[int, int]]


@dataclass(frozen=True)
class Message:
    """A header and a payload, as uint8 arrays."""

    header: np.ndarray
    payload: np.ndarray

    @cached_property
    def parsed(self) -> wire.Header:
        """The header's fields."""
        return wire.unpack_header(self.header)

    def records(self, layers: int) -> list[wire.Record]:
        """Return the records of an update (none if skipped); raises RunFault naming the sender if it is damaged."""
        header = self.parsed
        if header.kind == SKIPPED:
            return []
        try:
            return wire.unpack(header, self.payload, layers)
        except wire.WireError as error:
            client = None if header.sender == SERVER else header.sender
            raise RunFault(f"damaged message: {error}", round=header.round, client=client) from None

    def receipt(self, records: Sequence[wire.Record]) -> Receipt:
        """Return what the log says of this message, whose records these are."""
        layers = [(record.rank, record.data.size) for record in records]
        return Receipt(self.header.size + self.payload.size, layers)


def make_message(round_index: int, sender: int, samples: int, records: Sequence[wire.Record] | None) -> Message:
    """Return the message of an update, or of a skipped one where records is None."""
    payload = wire.pack(records or [])
    kind = SKIPPED if records is None else UPDATE
    return Message(wire.pack_header(kind, round_index, sender, len(records or []), samples, payload), payload)


def uplink(world: World, watch: Stopwatch, messages: Sequence[Message], hosts: np.ndarray) -> Iterator[Message]:
    """Yield the clients' messages on the server, in client order, and nothing elsewhere; all processes run through it.

    `hosts` is the mpi rank of every client of the cohort, known to all; each process gives its own clients' messages in
    that order. The server holds the payloads of one window at a time: it reads those before it asks for more,
    however many clients there are.
    """
    own = _joined([message.header for message in messages])
    with watch("wait"):
        counts = wire.HEADER_BYTES * np.bincount(hosts, minlength=world.world_size)
        headers = world.gather(own, counts.tolist(), payload=True, sleeping=True)
    sizes = np.zeros(len(hosts), np.int64)
    if headers is not None:
        headers = headers.reshape(-1, wire.HEADER_BYTES)[arrival(hosts)]
        sizes[:] = [wire.unpack_header(header).payload_bytes for header in headers]
    with watch("gather"):
        world.broadcast(sizes)  # with these, all know what goes in which window
    places = np.flatnonzero(hosts == world.mpi_rank)  # of its own messages in the cohort
    for start, stop in windows(sizes):
        senders, lengths = hosts[start:stop], sizes[start:stop]
        counts = np.bincount(senders, lengths, world.world_size).astype(np.int64)
        mine = messages[np.searchsorted(places, start) : np.searchsorted(places, stop)]
        with watch("gather"):
            own = _joined([message.payload for message in mine])
            payloads = world.gather(own, counts.tolist(), payload=True, sleeping=start > 0)
        if headers is not None and payloads is not None:
            parts = np.split(payloads, lengths[senders.argsort(kind="stable")].cumsum()[:-1])
            for index, place in enumerate(arrival(senders), start):
                yield Message(headers[index], parts[place])
        payloads = parts = None  # this window's memory is for the next one


def windows(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of messages of at most WINDOW bytes together, or of one larger message."""
    start = 0
    while start < len(sizes):
        stop = start + max(int(np.searchsorted(np.cumsum(sizes[start:]), WINDOW, side="right")), 1)
        yield start, stop
        start = stop


def downlink(world: World, watch: Stopwatch, message: Message | None) -> Message:
    """Broadcast the server's message to every process."""
    header = message.header if message else np.empty(wire.HEADER_BYTES, np.uint8)
    with watch("wait"):
        world.broadcast(header, payload=True, sleeping=True)
    payload = message.payload if message else np.empty(wire.unpack_header(header).payload_bytes, np.uint8)
    with watch("broadcast"):
        world.broadcast(payload, payload=True, sleeping=False)
    return Message(header, payload)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)
