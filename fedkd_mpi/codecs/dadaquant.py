"""Codec `dadaquant`: unbiased random rounding whose levels double when the training loss has stopped falling."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import BuiltIn, Codec, State, raw, read_raw, require, symbols
from fedkd_mpi.codecs.tags import DADAQUANT, RAW
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.linalg.layout import canonical
from fedkd_mpi.models.layer import Layer

HEAD = struct.Struct("<fH")
DECAY = 0.9  # of the running average of losses; a larger one sees a plateau later


class DAdaQuant(BuiltIn):
    """Entries are rounded to multiples of largest / q, q = 1, 2, 4, ..., up or down so that the mean is right.

    This is the adaptation over time of DAdaQuant (Hoenig, Zhao and Mullins 2022). q doubles, up to 2^(bits - 1), when
    the running average of the training loss is not below that of `patience` rounds before, at most once in so many
    rounds. Its adaptation to clients needs their weights and is left out. The integers are entropy-coded. With error
    feedback entries are rounded to the nearest multiple, because random rounding to few levels may add more error than
    the residual ever gives back. The threshold is not used.
    """

    follows_loss = True

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer], losses: Sequence[float] = ()):
        self.compression, self.layers = compression, layers
        self.levels = levels_after(losses, compression.patience or 5, 2 ** (int(compression.bits or 8) - 1))

    def follow(self, losses: Sequence[float]) -> Codec:
        """Return the codec of the round after those with these mean training losses."""
        return DAdaQuant(self.compression, self.layers, losses)

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Return the records; a tensor that is not larger raw is sent raw, and of one of zeros nothing."""
        return [self._encode(tensor, rng) for tensor in update]

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the tensors, whatever the levels of the sender; raises WireError if a record is invalid."""
        return [_decode(record, layer).to(device) for record, layer in zip(records, self.layers, strict=True)]

    def _encode(self, tensor: Tensor, rng: np.random.Generator) -> Record:
        values = canonical(tensor).cpu().numpy().reshape(-1)
        scale = np.abs(values).max(initial=0.0)
        if values.size and not scale:
            return Record(DADAQUANT, -1, np.empty(0, np.uint8), 1.0)
        exact = values.astype(np.float64) / np.float64(scale or 1.0) * self.levels
        chance = rng.random(values.size) if self.compression.error_feedback == "none" else 0.5
        integers = np.floor(exact + chance).clip(-self.levels, self.levels)
        coded = symbols.encode([integers.astype(np.int16)[None]])
        if HEAD.size + coded.size >= 4 * values.size:
            return raw(tensor)
        energy = 1 - np.square(exact - integers).sum() / np.square(exact).sum()
        data = np.concatenate([np.frombuffer(HEAD.pack(scale, self.levels), np.uint8), coded])
        return Record(DADAQUANT, -1, data, float(energy))


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


def _decode(record: Record, layer: Layer) -> Tensor:
    if record.encoding == RAW:
        return read_raw(record, layer)
    require(record, layer, "dadaquant", DADAQUANT)
    if not record.data.size and layer.numel:
        return torch.zeros(layer.shape)
    try:
        if not HEAD.size < record.data.size < 4 * layer.numel:  # larger records are sent raw instead
            raise WireError(f"{record.data.size} bytes, where the raw tensor has {4 * layer.numel}")
        scale, levels = HEAD.unpack(record.data[: HEAD.size].tobytes())
        if not (math.isfinite(scale) and scale >= 0 and levels):
            raise WireError(f"invalid scale {scale} of {levels} levels")
        (integers,) = symbols.decode(record.data[HEAD.size :], [(1, layer.numel)])
        if integers.size and int(np.abs(integers.astype(np.int32)).max()) > levels:
            raise WireError("a symbol is out of its range")
    except WireError as error:
        raise WireError(f"layer {layer.name}: {error}") from None
    return torch.from_numpy((integers.reshape(-1) / np.float64(levels) * scale).astype(np.float32)).reshape(layer.shape)
