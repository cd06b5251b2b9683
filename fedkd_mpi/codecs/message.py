"""A message: the header and payload of one update, as one array that travels whole."""

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
    """What the log says of a message once it has been read: its length, and rank and bytes of each layer, if any."""

    bytes: int
    layers: list[tuple[int, int]]


@dataclass(frozen=True)
class Message:
    """A header and the payload behind it, in one uint8 array."""

    whole: np.ndarray

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
        """The header's fields; raises WireError if it is none."""
        return wire.unpack_header(self.header)

    def records(self, layers: int) -> list[Record]:
        """Return the records of an update (none if skipped); raises RunFault naming the sender if it is damaged."""
        header = self.parsed
        if header.kind == SKIPPED:
            return []
        try:
            return wire.unpack(header, self.payload, layers)
        except WireError as error:
            client = None if header.sender == SERVER else header.sender
            raise RunFault(f"damaged message: {error}", round=header.round, client=client) from None

    def receipt(self, records: Sequence[Record]) -> Receipt:
        """Return what the log says of this message, whose records these are."""
        layers = [(record.rank, record.data.size) for record in records]
        return Receipt(self.whole.size, layers)


def make_message(round_index: int, sender: int, samples: int, records: Sequence[Record] | None) -> Message:
    """Return the message of an update, or of a skipped one where records is None."""
    message = Message(wire.pack(records or [], room=HEADER_BYTES))
    kind = SKIPPED if records is None else UPDATE
    message.header[:] = wire.pack_header(kind, round_index, sender, len(records or []), samples, message.payload)
    return message
