"""Error feedback: the compression error is added to the next update (ef), or only differences are encoded (ef21)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, Sum
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.common.remembered import Kind, Memory
from fedkd_mpi.models.layer import Layer


class ErrorFeedback(Codec):
    """The sender adds the residual of its last message: update + old residual = decoded message + new residual.

    Seide et al. 2014; Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with memory". The residual is in the sender's
    state ("residual.<layer>"), on uplink and downlink. A client that is not sampled keeps its residual.
    """

    def __init__(self, inner: Codec):
        self.inner, self.layers, self.paper_rank = inner, inner.layers, inner.paper_rank
        self.follows_loss = inner.follows_loss

    def at(self, round_index: int) -> Codec:
        """Return the codec with the settings of a round (0-based)."""
        return ErrorFeedback(self.inner.at(round_index))

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these losses."""
        return ErrorFeedback(self.inner.follow(losses))

    def downlink(self) -> Codec:
        """Return the codec of the server's messages, with error feedback."""
        return ErrorFeedback(self.inner.downlink())

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the inner codec's records of update + residual; their energy is relative to this sum."""
        names = [f"residual.{layer.name}" for layer in self.layers]
        wanted = [tensor + state[name] if name in state else tensor for tensor, name in zip(update, names, strict=True)]
        records = self.inner.encode(wanted, threshold, state, rng)
        decoded = self.inner.decode(records, str(update[0].device) if update else "cpu")
        for name, whole, sent in zip(names, wanted, decoded, strict=True):
            state[name] = whole - sent
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors that the inner codec decodes."""
        return self.inner.decode(records, device)

    def sum(self, device: str) -> Sum:
        """Return the sum of the inner codec."""
        return self.inner.sum(device)

    def sender_memory(self) -> Memory:
        """Return the inner codec's with the residual of each layer."""
        return _with(self.inner.sender_memory(), "residual", self.layers)

    def receiver_memory(self) -> Memory:
        """Return the inner codec's."""
        return self.inner.receiver_memory()


class Ef21(Codec):
    """Sender and receiver keep an estimate of the sender's update; messages correct it (EF21, Richtarik et al. 2021).

    Each sender has its estimate in its state ("estimate.<layer>"); the receiver has the mean estimate of all senders.
    With partial participation, the sampled senders correct the mean in proportion to their share (EF21-PP, Fatkhullin
    et al. 2021); the others count with their last estimate. The downlink's estimate is of that mean (EF21-BC, ibid.).
    Aggregation weights must be equal. The method needs updates that change little between rounds, which updates of few
    local steps on non-IID data do not.
    """

    def __init__(self, inner: Codec):
        self.inner, self.layers, self.paper_rank = inner, inner.layers, inner.paper_rank
        self.follows_loss = inner.follows_loss
        self.receiver_numbers = sum(layer.numel for layer in self.layers)

    def at(self, round_index: int) -> Codec:
        """Return the codec with the settings of a round (0-based)."""
        return Ef21(self.inner.at(round_index))

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these losses."""
        return Ef21(self.inner.follow(losses))

    def downlink(self) -> Codec:
        """Return the codec of the server's messages, with EF21."""
        return Ef21(self.inner.downlink())

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the inner codec's records of update - estimate; their energy is relative to this difference."""
        estimates = self._estimates(state, update)
        change = [tensor - estimate for tensor, estimate in zip(update, estimates, strict=True)]
        records = self.inner.encode(change, threshold, state, rng)
        self._move(state, estimates, self.inner.decode(records, str(update[0].device) if update else "cpu"), 1.0)
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the correction of the estimate."""
        return self.inner.decode(records, device)

    def sum(self, device: str) -> Sum:
        """Return the sum of the inner codec."""
        return self.inner.sum(device)

    def sender_memory(self) -> Memory:
        """Return the inner codec's with an estimate of each layer."""
        return _with(self.inner.sender_memory(), "estimate", self.layers)

    def receiver_memory(self) -> Memory:
        """Return the inner codec's with an estimate of each layer."""
        return _with(self.inner.receiver_memory(), "estimate", self.layers)

    def receive(self, decoded: Sequence[Tensor], state: State, share: float) -> list[Tensor]:
        """Return the estimate of the mean update of all senders."""
        return self._move(state, self._estimates(state, decoded), decoded, share)

    def _estimates(self, state: State, like: Sequence[Tensor]) -> list[Tensor]:
        names = [f"estimate.{layer.name}" for layer in self.layers]
        return [state.get(name, torch.zeros_like(t)) for name, t in zip(names, like, strict=True)]

    def _move(self, state: State, estimates: Sequence[Tensor], by: Sequence[Tensor], share: float) -> list[Tensor]:
        moved = [estimate + share * change for estimate, change in zip(estimates, by, strict=True)]
        state.update({f"estimate.{layer.name}": tensor for layer, tensor in zip(self.layers, moved, strict=True)})
        return [tensor.clone() for tensor in moved]


def _with(memory: Memory, name: str, layers: Sequence[Layer]) -> Memory:
    own = {f"{name}.{layer.name}": Kind(tuple(layer.shape)) for layer in layers}
    return Memory({**memory.tensors, **own}, memory.complete)
