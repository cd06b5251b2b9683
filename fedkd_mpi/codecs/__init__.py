"""Codecs: they encode an update as the records of a message and decode it; one file per codec, one common interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.codecs.tags import RAW
from fedkd_mpi.codecs.wire import Record as Record
from fedkd_mpi.codecs.wire import WireError
from fedkd_mpi.common.remembered import Memory
from fedkd_mpi.config.codecs import CODECS as CODECS
from fedkd_mpi.models.layer import Layer as Layer

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


class Codec:
    """Encodes an update as records and decodes records; created once per process as Codec(compression, layers).

    Encoding and decoding are deterministic. Data that a codec keeps between rounds are in `state`, a dictionary of
    tensors that belongs to one sender (or one receiver) and is checkpointed with it. The codec object itself keeps no
    state.
    """

    layers: Sequence[Layer]
    paper_rank = False  # whether its records contain the rank at which the paper would send a layer
    follows_loss = False  # whether follow() returns another codec
    receiver_numbers = 0  # float32 numbers of the downlink that receive() keeps between rounds

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return one record per layer of the update.

        `update` are finite float32 tensors in the layers' shapes, which are not modified. `threshold` is the energy
        threshold T. `state` is the state of the sender. `rng` is the random stream of this sender and round, for codecs
        with random rounding.
        """
        raise NotImplementedError

    def encode_each(
        self,
        updates: Sequence[Sequence[Tensor]],
        threshold: float,
        states: Sequence[State],
        rngs: Iterable[np.random.Generator],
    ) -> Iterator[list[Record]]:
        """Yield the records of encode() for each of several senders; a codec may compute the same bits faster."""
        for update, state, rng in zip(updates, states, rngs, strict=True):
            yield self.encode(update, threshold, state, rng)

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return float32 tensors that can be averaged over senders.

        They have the layers' shapes unless the codec overrides receive(). Raises WireError naming the layer if a record
        is invalid for it.
        """
        raise NotImplementedError

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the update, in the layers' shapes, that a decoded message or the mean of several messages represents.

        `state` is the state of the receiver, one for the uplink and one for the downlink, the same on every receiving
        process. `share` is the fraction of all senders in the mean (1 on the downlink).
        """
        return list(decoded)

    def sender_memory(self) -> Memory:
        """Return what encode() leaves in a sender's `state`: a checkpoint that holds something else is refused.

        A codec that does not say may leave anything.
        """
        return Memory({}, complete=False)

    def receiver_memory(self) -> Memory:
        """Return what receive() leaves in the receiver's `state`, likewise."""
        return Memory({}, complete=False)

    def at(self, round_index: int) -> Codec:
        """Return the codec with the settings of a round (0-based)."""
        return self

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these mean training losses, the same on every process.

        It is called before each round if `follows_loss` is set.
        """
        return self

    def downlink(self) -> Codec:
        """Return the codec of the server's messages, which may differ from that of the clients' messages."""
        return self

    def sum(self, device: str) -> Sum:
        """Return an empty sum of decoded messages."""
        return Sum(self, device)


class BuiltIn(Codec):
    """A codec of this package: it says what it remembers, which is nothing unless a subclass says more."""

    def sender_memory(self) -> Memory:
        """Return what encode() leaves in a sender's `state`."""
        return Memory({})

    def receiver_memory(self) -> Memory:
        """Return what receive() leaves in the receiver's `state`."""
        return Memory({})


class Sum:
    """Adds decoded messages in the given order, in the memory of one message; a codec may have a faster subclass."""

    def __init__(self, codec: Codec, device: str):
        self.codec, self.device = codec, device
        self.totals: list[Tensor] = []

    def add(self, records: Sequence[Record], weight: float) -> None:
        """Add `weight` times a message; raises WireError naming the layer if a record is invalid for it."""
        import torch

        decoded = self.codec.decode(records, self.device)
        self.totals = self.totals or [torch.zeros_like(tensor) for tensor in decoded]
        for total, tensor in zip(self.totals, decoded, strict=True):
            total.add_(tensor, alpha=weight)

    def take(self) -> list[Tensor]:
        """Return the sum; empty if nothing was added."""
        return self.totals


def raw(tensor: Tensor) -> Record:
    """Return the record of an uncompressed tensor; its data are a copy."""
    return Record(RAW, -1, floats(tensor).copy(), 1.0)


def floats(tensor: Tensor) -> np.ndarray:
    """Return the tensor's entries in row-major order as float32 bytes, uint8 [4 * entries]; a view if possible."""
    if tensor.is_cuda:
        from fedkd_mpi.codecs.staging import to_host

        tensor = to_host(tensor)
    return np.ascontiguousarray(tensor.detach().numpy().reshape(-1), "<f4").view(np.uint8)


def require(record: Record, layer: Layer, codec: str, *encodings: int) -> None:
    """Raise WireError naming the layer if a record's encoding is none of `encodings` or its rank is not -1."""
    if record.encoding not in encodings:
        raise WireError(f"layer {layer.name}: encoding {record.encoding} is unknown to codec {codec}")
    if record.rank != -1:
        raise WireError(f"layer {layer.name}: rank {record.rank}, but encoding {record.encoding} has no rank")


def read_raw(record: Record, layer: Layer, device: str = "cpu") -> Tensor:
    """Return the tensor of a record of raw(); raises WireError naming the layer if the record is invalid."""
    require(record, layer, "none", RAW)
    return read_floats(record, layer, layer.numel, device).reshape(layer.shape)


def read_floats(record: Record, layer: Layer, count: int, device: str = "cpu") -> Tensor:
    """Return a copy of the `count` float32 entries of a record; raises WireError if the record has another length."""
    import torch

    from fedkd_mpi.codecs.staging import to_device

    if record.data.size != 4 * count:
        raise WireError(f"layer {layer.name}: {record.data.size} bytes instead of {4 * count}")
    numbers = torch.empty(count)  # torch's memory is aligned, numpy's need not be
    numbers.numpy().view(np.uint8)[:] = record.data
    return to_device(numbers, device)
