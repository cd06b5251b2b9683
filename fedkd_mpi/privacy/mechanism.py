"""The Gaussian mechanism on updates: each is clipped to norm C, and noise of standard deviation z C is added.

Where the server adds the noise, it adds it once to the sum of the clipped updates. Where clients do, each adds it to
its own (local differential privacy).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkd_mpi.common.random_streams import generator

PURPOSE = "differential privacy"
ROUNDING = 1 - 2**-22  # a float32 factor and float32 products may each exceed the exact ones by a quarter of this


def norm_of(tensors: Sequence[Tensor]) -> float:
    """Return the 2-norm of all entries together, in float64."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@dataclass(frozen=True)
class Mechanism:
    """The settings of a run: C, z, whether clients add the noise, and the seed of its streams."""

    clip_norm: float
    noise_multiplier: float
    at_clients: bool
    seed: int

    def on_update(self, update: Tensor, numbers: Sequence[Tensor], round_index: int, client: int) -> float:
        """Clip a client's update in place, add its noise if clients do, and return its norm before.

        `numbers` are the views of `update` (flat) that are sent; between them are zeros.
        """
        norm = norm_of([update])
        if norm > self.clip_norm:
            update.mul_(ROUNDING * self.clip_norm / norm)
        if self.at_clients:
            self.add_noise(numbers, round_index, client)
        return norm

    def bounded(self, decoded: Sequence[Tensor]) -> list[Tensor]:
        """Return a decoded message in float64, clipped: with residuals and losses it may be longer than the update.

        Raises ValueError if its norm is not finite.
        """
        norm = norm_of(decoded)
        if not math.isfinite(norm):
            raise ValueError("the decoded update is not finite")
        share = min(1.0, self.clip_norm / norm) if norm else 1.0
        return [tensor.double().mul_(share) for tensor in decoded]

    def add_noise(self, numbers: Sequence[Tensor], *key: int) -> None:
        """Add independent N(0, (z C)^2) to every entry, from the stream of (round) or (round, client)."""
        rng, deviation = generator(self.seed, PURPOSE, *key), self.noise_multiplier * self.clip_norm
        for tensor in numbers:
            noise = torch.from_numpy(deviation * rng.standard_normal(tuple(tensor.shape)))
            tensor.add_(noise.to(tensor.device, tensor.dtype))

    def noise_to_signal(self, numbers: int, cohort: int) -> float:
        """Return the norm of the noise in the mean of a cohort's updates, as a multiple of C: the largest mean."""
        return self.noise_multiplier * math.sqrt(numbers) / (math.sqrt(cohort) if self.at_clients else cohort)
