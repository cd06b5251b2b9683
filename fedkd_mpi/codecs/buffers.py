"""Buffers of the student (BatchNorm statistics) in a message: raw float32 records after those of the codec.

Buffers are sent as values, not as changes. A mean of variances is a valid variance, whereas a codec, a residual or the
server's learning rate could make a sum of changes negative. Where buffers are all that a method exchanges (means per
class), rows and columns of zeros, as of classes that a sender does not have, are left out without loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedkd_mpi.codecs import raw, read_raw, submatrix
from fedkd_mpi.codecs.tags import SUBMATRIX
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor


def encode(buffers: Sequence[Tensor], *, alone: bool = False) -> list[Record]:
    """Return one record per buffer: raw, or where buffers `alone` are exchanged without rows and columns of zeros."""
    return [submatrix.encode(buffer) if alone else raw(buffer) for buffer in buffers]


def decode(records: Sequence[Record], layers: Sequence[Layer], device: str) -> list[Tensor]:
    """Return the buffers in the layers' shapes; raises WireError naming the layer if a record is invalid."""
    pairs = zip(records, layers, strict=True)
    return [
        submatrix.decode(record, layer).to(device) if record.encoding == SUBMATRIX else read_raw(record, layer, device)
        for record, layer in pairs
    ]


class BufferMean:
    """The weighted mean of the senders' buffers in float64: the mean of equal values has their bits."""

    def __init__(self, layers: Sequence[Layer], device: str):
        self._layers, self._device = layers, device
        self._totals: list[Tensor] = []
        self._weights = 0.0

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add `weight` times a sender's buffers; raises WireError naming the layer if a record is invalid."""
        scaled = [buffer.double() * weight for buffer in decode(records, self._layers, self._device)]
        self._totals = (
            [total + part for total, part in zip(self._totals, scaled, strict=True)] if self._totals else scaled
        )
        self._weights += weight

    def take(self) -> list[Tensor]:
        """Return the mean in float32; an empty list if there are no buffers or nothing was added."""
        return [(total / self._weights).float() for total in self._totals]
