"""Codecs: how an update becomes the records of a message and back; one file per method behind one small protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedkd_mpi.registry import resolve
from fedkd_mpi.wire import Layer, Record, WireError

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.config import Compression

CODECS = {
    "svd": "fedkd_mpi.codecs.svd:Svd",
    "none": "fedkd_mpi.codecs.none:Raw",
    "rdsvd": "fedkd_mpi.codecs.rdsvd:RateDistortionSvd",
}
RAW = 0  # the encoding every codec may fall back on: float32, little endian


class Codec(Protocol):
    """Turns an update into records and back; built once per process as Codec(compression, layers).

    Both directions are deterministic. What a codec must remember of one sender from round to round it keeps in
    `state`, a dictionary of tensors that belongs to that sender and is checkpointed with it.
    """

    def encode(self, update: Sequence[Tensor], threshold: float, state: dict[str, Tensor]) -> list[Record]:
        """Return one record per layer of the update (finite float32 tensors in the layers' shapes)."""
        ...

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the float32 tensors of the records; raises WireError, naming the layer, if a record does not fit."""
        ...


def build(compression: Compression, layers: Sequence[Layer]) -> Codec:
    """Return the codec that compression.codec names; raises UserError if there is none."""
    return resolve(compression.codec, CODECS, "compression.codec")(compression, layers)


def raw(tensor: Tensor) -> Record:
    """Return the record of an uncompressed tensor."""
    return Record(RAW, -1, floats(tensor), 1.0)


def floats(*tensors: Tensor) -> np.ndarray:
    """Return the tensors' entries one after another as float32 bytes: uint8 [4 * entries]."""
    flat = [np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4").reshape(-1) for tensor in tensors]
    return np.concatenate(flat).view(np.uint8)  # a copy, also of one tensor: a record must not follow the live weights


def read_floats(record: Record, layer: Layer, count: int) -> Tensor:
    """Return a copy of the `count` float32 entries of a record; raises WireError if its length differs."""
    import torch

    if record.data.size != 4 * count:
        raise WireError(f"layer {layer.name}: {record.data.size} bytes where {4 * count} belong")
    return torch.from_numpy(np.frombuffer(record.data.tobytes(), "<f4").copy())


def paper_numbers(layer: Layer, rank: int) -> int:
    """Return the paper's count of numbers for a layer: PK + K^2 + KQ at rank K, all entries if raw (rank -1)."""
    rows, columns = layer.matrix_shape
    return layer.numel if rank < 0 else rank * (rows + columns + rank)
