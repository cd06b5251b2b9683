"""What a codec drops is not lost: it is added to the next update (ef), or only differences are coded (ef21)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, Sum
from fedkd_mpi.codecs.wire import Record


class ErrorFeedback(Codec):
    """The sender adds the residual of its last message: update + residual before = decoded + residual after.

    Seide et al. 2014; Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with memory". The residual is the sender's
    state ("residual.<layer>"), on both legs; a client that sits out a round keeps its own.
    """

    def __init__(self, inner: Codec):
        self.inner, self.layers, self.paper_rank = inner, inner.layers, inner.paper_rank

    def at(self, round_index: int) -> Codec:
        """Return this around the inner codec of a round."""
        return ErrorFeedback(self.inner.at(round_index))

    def downlink(self) -> Codec:
        """Return this around the inner codec of the server's messages."""
        return ErrorFeedback(self.inner.downlink())

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the inner codec's records of update + residual; their energy is a share of that sum's."""
        names = [f"residual.{layer.name}" for layer in self.layers]
        wanted = [tensor + state[name] if name in state else tensor for tensor, name in zip(update, names, strict=True)]
        records = self.inner.encode(wanted, threshold, state, rng)
        decoded = self.inner.decode(records, str(update[0].device) if update else "cpu")
        for name, whole, sent in zip(names, wanted, decoded, strict=True):
            state[name] = whole - sent
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the inner codec's tensors."""
        return self.inner.decode(records, device)

    def sum(self, device: str) -> Sum:
        """Return the inner codec's."""
        return self.inner.sum(device)


class Ef21(Codec):
    """Both sides keep an estimate of the sender's update; the message corrects it (EF21, Richtarik et al. 2021).

    The estimate is state ("estimate.<layer>") of each sender, and of the receiver for the mean of all senders, which a
    part of them moves by its share (EF21-PP, Fatkhullin et al. 2021): who sits out counts with its last estimate. The
    downlink's estimate is of that mean (EF21-BC, there). The weights must be equal, and a sender's update
    should change little from round to round; non-IID deltas of few local steps do not.
    """

    def __init__(self, inner: Codec):
        self.inner, self.layers, self.paper_rank = inner, inner.layers, inner.paper_rank
        self.receiver_numbers = sum(layer.numel for layer in self.layers)

    def at(self, round_index: int) -> Codec:
        """Return this around the inner codec of a round."""
        return Ef21(self.inner.at(round_index))

    def downlink(self) -> Codec:
        """Return this around the inner codec of the server's messages."""
        return Ef21(self.inner.downlink())

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the inner codec's records of update - estimate; their energy is a share of that difference's."""
        estimates = self._estimates(state, update)
        change = [tensor - estimate for tensor, estimate in zip(update, estimates, strict=True)]
        records = self.inner.encode(change, threshold, state, rng)
        self._move(state, estimates, self.inner.decode(records, str(update[0].device) if update else "cpu"), 1.0)
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the correction."""
        return self.inner.decode(records, device)

    def sum(self, device: str) -> Sum:
        """Return the inner codec's."""
        return self.inner.sum(device)

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
