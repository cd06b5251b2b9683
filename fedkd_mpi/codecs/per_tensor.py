"""What codecs share that send every tensor by itself, in one encoding, without factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, State, raw, read_raw, require
from fedkd_mpi.codecs.tags import RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer


class PerTensor(BuiltIn):
    """A codec of pack() and unpack(): a tensor that is not larger raw is sent raw, and of one of zeros nothing."""

    name: ClassVar[str]
    encoding: ClassVar[int]

    @abstractmethod
    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float] | None:
        """Return the data, uint8, of a tensor's entries and the share of their energy that is kept; None sends it raw.

        `values` are float32 [entries], not all of them zero.
        """

    @abstractmethod
    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries, float32 [count]; raises WireError if the data, uint8, are invalid for so many."""

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; the threshold is not used."""
        return [self._record(tensor, rng) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors; raises WireError naming the layer if an encoding or data are invalid for it."""
        return [self._tensor(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _record(self, tensor: Tensor, rng: np.random.Generator) -> Record:
        values = canonical(tensor).cpu().numpy().reshape(-1)
        if values.size and not values.any():
            return Record(self.encoding, -1, np.empty(0, np.uint8), 1.0)
        packed = self.pack(values, rng) if values.size else None
        if packed is None or packed[0].size >= 4 * values.size:
            return raw(tensor)
        return Record(self.encoding, -1, *packed)

    def _tensor(self, record: Record, layer: Layer) -> Tensor:
        if record.encoding == RAW:
            return read_raw(record, layer)
        require(record, layer, self.name, self.encoding)
        if not record.data.size and layer.numel:
            return torch.zeros(layer.shape)
        try:
            if record.data.size >= 4 * layer.numel:
                raise WireError(f"{record.data.size} bytes, where the raw tensor has {4 * layer.numel}")
            values = self.unpack(record.data, layer.numel)
        except WireError as error:
            raise WireError(f"layer {layer.name}: {error}") from None
        return torch.from_numpy(values).reshape(layer.shape)


def magnitude_of(data: np.ndarray) -> np.float32:
    """Return the float32 with which data begin; raises WireError if there is none, or it is negative or not finite."""
    if data.size < 4:
        raise WireError(f"{data.size} bytes, of which a magnitude takes 4")
    magnitude: np.float32 = np.frombuffer(data[:4].tobytes(), "<f4")[0]
    if not (np.isfinite(magnitude) and magnitude >= 0):
        raise WireError(f"invalid magnitude {magnitude}")
    return magnitude
