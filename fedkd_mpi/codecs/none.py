"""Codec `none`: every tensor uncompressed, the dense reference for all other codecs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Raw(BuiltIn):
    """float32, 4 bytes per entry, lossless."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the raw records; the threshold is not used."""
        return [raw(tensor) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError if the encoding or length of a record is invalid."""
        return [read_raw(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]
