"""Codec `dadaquant`: unbiased random rounding whose levels double when the training loss has stopped falling."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from fedkd_mpi.codecs import Codec, symbols
from fedkd_mpi.codecs.per_tensor import PerTensor, magnitude_of
from fedkd_mpi.codecs.tags import DADAQUANT
from fedkd_mpi.codecs.wire import WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<fH")
DECAY = 0.9  # of the running average of losses; a larger one sees a plateau later


class DAdaQuant(PerTensor):
    """Entries are rounded to multiples of largest / q, q = 1, 2, 4, ..., up or down so that the mean is right.

    This is the adaptation over time of DAdaQuant (Hoenig, Zhao and Mullins 2022). q doubles, up to 2^(bits - 1), when
    the running average of the training loss is not below that of `patience` rounds before, at most once in so many
    rounds. Its adaptation to clients needs their weights and is left out. The integers are entropy-coded. With error
    feedback entries are rounded to the nearest multiple, because random rounding to few levels may add more error than
    the residual ever gives back. The threshold is not used.
    """

    name, encoding = "dadaquant", DADAQUANT
    follows_loss = True

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer], losses: Sequence[float] = ()):
        self.compression, self.layers = compression, layers
        self.levels = levels_after(losses, compression.patience or 5, 2 ** (int(compression.bits or 8) - 1))

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these mean training losses."""
        return DAdaQuant(self.compression, self.layers, losses)

    def pack(self, values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return the scale, the levels and the coded multiples, and the share of the energy that is kept."""
        scale = np.abs(values).max()
        exact = values.astype(np.float64) / np.float64(scale) * self.levels
        chance = rng.random(values.size) if self.compression.error_feedback == "none" else 0.5
        integers = np.floor(exact + chance).clip(-self.levels, self.levels)
        energy = 1 - np.square(exact - integers).sum() / np.square(exact).sum()
        head = np.frombuffer(HEAD.pack(scale, self.levels), np.uint8)
        return np.concatenate([head, symbols.encode([integers.astype(np.int16)[None]])]), float(energy)

    def unpack(self, data: np.ndarray, count: int) -> np.ndarray:
        """Return the entries, whatever the sender's levels; raises WireError if one of the numbers is invalid."""
        scale = magnitude_of(data)
        if data.size < HEAD.size or not (levels := HEAD.unpack(data[: HEAD.size].tobytes())[1]):
            raise WireError("no levels")
        (integers,) = symbols.decode(data[HEAD.size :], [(1, count)])
        if integers.size and int(np.abs(integers.astype(np.int32)).max()) > levels:
            raise WireError("a symbol is out of its range")
        return (integers.reshape(-1) / np.float64(levels) * np.float64(scale)).astype(np.float32)


def levels_after(losses: Sequence[float], patience: int, most: int) -> int:
    """Return the positive levels q of the round after those with these losses; a NaN leaves the average as it is."""
    average, averages, levels = math.nan, [math.nan], [1]
    for done, loss in enumerate(losses, 1):
        if math.isfinite(loss):
            average = loss if math.isnan(average) else DECAY * average + (1 - DECAY) * loss
        averages.append(average)
        stalled = done > patience and averages[done] >= averages[done - patience]
        settled = levels[-1] == levels[max(done - patience, 0)]
        levels.append(min(2 * levels[-1], most) if stalled and settled else levels[-1])
    return levels[-1]
