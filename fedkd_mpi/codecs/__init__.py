"""Codecs: how an update becomes the records of a message and back; one file per method behind one small protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.codecs.tags import RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.models.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

CODECS = {
    "svd": "fedkd_mpi.codecs.svd:Svd",
    "none": "fedkd_mpi.codecs.none:Raw",
    "rdsvd": "fedkd_mpi.codecs.rdsvd:RateDistortionSvd",
    "float16": "fedkd_mpi.codecs.quantize:Float16",
    "quantize": "fedkd_mpi.codecs.quantize:Quantize",
    "topk": "fedkd_mpi.codecs.topk:TopK",
    "powersgd": "fedkd_mpi.codecs.powersgd:PowerSgd",
    "fetchsgd": "fedkd_mpi.codecs.fetchsgd:FetchSgd",
    "submatrix": "fedkd_mpi.codecs.submatrix:Submatrix",
}

State = dict[str, "Tensor"]


class Codec:
    """Turns an update into records and back; built once per process as Codec(compression, layers).

    All directions are deterministic. What a codec must remember from round to round is in `state`, a dictionary of
    tensors that belongs to one sender (or to one receiver) and is checkpointed with it; the codec itself remembers
    nothing.
    """

    layers: Sequence[Layer]
    paper_rank = False  # whether its records say at which rank the paper would send a layer
    receiver_numbers = 0  # float32 numbers that receive() keeps of the downlink from round to round

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return one record per layer of the update (finite float32 tensors in the layers' shapes, left as they are).

        `state` is the sender's; `rng` is the stream of this sender and round, for codecs that round at random.
        """
        raise NotImplementedError

    def encode_each(
        self,
        updates: Sequence[Sequence[Tensor]],
        threshold: float,
        states: Sequence[State],
        rngs: Iterable[np.random.Generator],
    ) -> Iterator[list[Record]]:
        """Yield what encode() returns for each of several senders; a codec may know a faster way to the same bits."""
        for update, state, rng in zip(updates, states, rngs, strict=True):
            yield self.encode(update, threshold, state, rng)

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return float32 tensors, in the layers' shapes where receive() is the default; means may be taken of them.

        Raises WireError, naming the layer, if a record does not fit.
        """
        raise NotImplementedError

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the update, in the layers' shapes, that a decoded message, or the mean of several, stands for.

        `state` is the receiver's, one per leg, the same on every process that receives; `share` is the part of all
        senders that the mean is of (1 on the downlink).
        """
        return list(decoded)

    def at(self, round_index: int) -> Codec:
        """Return the codec as it encodes in a round (0-based)."""
        return self

    def downlink(self) -> Codec:
        """Return the codec of the server's messages, where these are of another kind than its clients'."""
        return self

    def sum(self, device: str) -> Sum:
        """Return an empty sum of decoded messages."""
        return Sum(self, device)


class Sum:
    """Adds decoded messages up in the order they are given, in the memory of one: a codec may know a faster way."""

    def __init__(self, codec: Codec, device: str):
        self.codec, self.device = codec, device
        self.totals: list[Tensor] = []

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add weight times a message; raises WireError, naming the layer, if a record does not fit."""
        import torch

        decoded = self.codec.decode(records, self.device)
        self.totals = self.totals or [torch.zeros_like(tensor) for tensor in decoded]
        for total, tensor in zip(self.totals, decoded, strict=True):
            total.add_(tensor, alpha=weight)

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        return self.totals


def raw(tensor: Tensor) -> Record:
    """Return the record of an uncompressed tensor, which does not follow the tensor's memory."""
    return Record(RAW, -1, floats(tensor).copy(), 1.0)


def floats(tensor: Tensor) -> np.ndarray:
    """Return the tensor's entries one after another as float32 bytes, uint8 [4 * entries]; a view where it can be."""
    if tensor.is_cuda:
        from fedkd_mpi.codecs.staging import to_host

        tensor = to_host(tensor)
    return np.ascontiguousarray(tensor.detach().numpy().reshape(-1), "<f4").view(np.uint8)


def require(record: Record, layer: Layer, codec: str, *encodings: int) -> None:
    """Raise WireError, naming the layer, on an encoding that is not the codec's, or on a rank where none belongs."""
    if record.encoding not in encodings:
        raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec {codec}")
    if record.rank != -1:
        raise WireError(f"layer {layer.name}: rank {record.rank}, and encoding {record.encoding} has none")


def read_raw(record: Record, layer: Layer, device: str = "cpu") -> Tensor:
    """Return the tensor of a record of raw(); raises WireError, naming the layer, if it does not fit."""
    require(record, layer, "none", RAW)
    return read_floats(record, layer, layer.numel, device).reshape(layer.shape)


def read_floats(record: Record, layer: Layer, count: int, device: str = "cpu") -> Tensor:
    """Return a copy of the `count` float32 entries of a record; raises WireError if its length differs."""
    import torch

    from fedkd_mpi.codecs.staging import to_device

    if record.data.size != 4 * count:
        raise WireError(f"layer {layer.name}: {record.data.size} bytes where {4 * count} belong")
    numbers = torch.empty(count)  # torch's memory is aligned, numpy's is not
    numbers.numpy().view(np.uint8)[:] = record.data
    return to_device(numbers, device)
