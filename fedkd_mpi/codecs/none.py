"""Codec `none`: every tensor raw, the dense reference that all others are counted against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, raw, read_raw
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.config.sections import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Raw(Codec):
    """float32, 4 bytes an entry, nothing lost."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the raw records; the threshold plays no part."""
        return [raw(tensor) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError on a record of another encoding or length."""
        return [read_raw(record, layer, device) for record, layer in zip(records, self.layers, strict=True)]
