"""A message: the header and payload of one update in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fedkd_mpi.codecs import wire
from fedkd_mpi.codecs.wire import HEADER_BYTES, SERVER, SKIPPED, UPDATE, Header, Record, WireError
from fedkd_mpi.errors import RunFault


class Receipt(NamedTuple):
    """The size of a received message for the log: bytes in total, and (rank, bytes) per layer if it has records.

    `encryption` are the bytes that encryption has added, in the total.
    """

    bytes: int
    layers: list[tuple[int, int]]
    encryption: int = 0


@dataclass(frozen=True)
class Message:
    """A header followed by a payload, in one uint8 array.

    `encryption_bytes` are those by which a message that came encrypted was longer.
    """

    whole: np.ndarray
    encryption_bytes: int = 0

    @property
    def header(self) -> np.ndarray:
        """uint8 [HEADER_BYTES]."""
        return self.whole[:HEADER_BYTES]

    @property
    def payload(self) -> np.ndarray:
        """uint8 [payload bytes]."""
        return self.whole[HEADER_BYTES:]

    @cached_property
    def parsed(self) -> Header:
        """The fields of the header; raises WireError if it is invalid."""
        return wire.unpack_header(self.header)

    def records(self, layers: int) -> list[Record]:
        """Return the records of an update, an empty list for a skipped one.

        Raises RunFault naming the sender if the message is damaged.
        """
        header = self.parsed
        if header.kind == SKIPPED:
            return []
        try:
            return wire.unpack(header, self.payload, layers)
        except WireError as error:
            client = None if header.sender == SERVER else header.sender
            raise RunFault(f"damaged message: {error}", round=header.round, client=client) from None

    def receipt(self, records: Sequence[Record]) -> Receipt:
        """Return the size of this message, as it travelled, for the log; `records` are its records."""
        layers = [(record.rank, record.data.size) for record in records]
        return Receipt(self.whole.size + self.encryption_bytes, layers, self.encryption_bytes)


def make_message(round_index: int, sender: int, samples: int, records: Sequence[Record] | None) -> Message:
    """Return the message of an update, or of a skipped update if records is None."""
    message = Message(wire.pack(records or [], room=HEADER_BYTES))
    kind = SKIPPED if records is None else UPDATE
    message.header[:] = wire.pack_header(kind, round_index, sender, len(records or []), samples, message.payload)
    return message
