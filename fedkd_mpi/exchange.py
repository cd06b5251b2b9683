"""Messages between processes: fixed-size headers first, waited for asleep, then payloads at full speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedkd_mpi import wire
from fedkd_mpi.errors import RunFault
from fedkd_mpi.stopwatch import Stopwatch
from fedkd_mpi.wire import SERVER, SKIPPED, UPDATE
from fedkd_mpi.world import World

__all__ = ["SERVER", "SKIPPED", "UPDATE", "Message", "downlink", "make_message", "uplink"]


@dataclass(frozen=True)
class Message:
    """A header and a payload, as uint8 arrays."""

    header: np.ndarray
    payload: np.ndarray

    @property
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


def make_message(round_index: int, sender: int, samples: int, records: Sequence[wire.Record] | None) -> Message:
    """Return the message of an update, or of a skipped one where records is None."""
    payload = wire.pack(records or [])
    kind = SKIPPED if records is None else UPDATE
    return Message(wire.pack_header(kind, round_index, sender, len(records or []), samples, payload), payload)


def uplink(
    world: World, watch: Stopwatch, messages: Sequence[Message], per_rank: Sequence[int]
) -> list[Message] | None:
    """Gather the clients' messages on the server, in client order; None elsewhere.

    `per_rank` is the number of messages of every process, known to all from the cohort.
    """
    own = _joined([message.header for message in messages])
    with watch("wait"):
        headers = world.gather(own, [count * wire.HEADER_BYTES for count in per_rank], payload=True, sleeping=True)
    sizes: list[int] = []
    counts = np.zeros(world.world_size, np.int64)
    if headers is not None:
        headers = headers.reshape(-1, wire.HEADER_BYTES)
        sizes = [wire.unpack_header(header).payload_bytes for header in headers]
        remaining = iter(sizes)
        counts[:] = [sum(next(remaining) for _ in range(count)) for count in per_rank]
    with watch("gather"):
        world.broadcast(counts)  # with these, all know into how many calls the payloads go
        payloads = world.gather(_joined([message.payload for message in messages]), counts.tolist(), payload=True)
    if headers is None or payloads is None:
        return None
    return [Message(*pair) for pair in zip(headers, _split(payloads, sizes), strict=True)]


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


def _split(buffer: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    at = 0
    for size in sizes:
        yield buffer[at : at + size]
        at += size
