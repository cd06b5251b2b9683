"""The sum of a round's updates with noise: differential privacy where the server adds it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, Sum
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.models.layer import Layer
from fedkd_mpi.privacy.mechanism import Mechanism


class PrivateSum(Sum):
    """Adds decoded messages in float64, each clipped to norm C again: then no message changes the sum by more."""

    def __init__(self, codec: Codec, device: str, mechanism: Mechanism, layers: Sequence[Layer], cohort: int):
        super().__init__(codec, device)
        self.mechanism, self.cohort = mechanism, cohort
        self.totals = [torch.zeros(layer.shape, dtype=torch.float64, device=device) for layer in layers]

    def add(self, records: Sequence[Record], weight: float) -> None:
        decoded = self.codec.decode(records, self.device)
        try:
            bounded = self.mechanism.bounded(decoded)
        except ValueError as error:
            raise WireError(str(error)) from None
        for total, tensor in zip(self.totals, bounded, strict=True):
            total.add_(tensor)

    def mean(self, round_index: int) -> list[Tensor]:
        """Return the sum with the round's noise, divided by the size of the cohort, whoever has sent an update."""
        self.mechanism.add_noise(self.totals, round_index)
        return [total.div_(self.cohort).float() for total in self.totals]
