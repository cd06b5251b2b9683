"""A codec with a memory, for tests: it sends rounded updates and keeps of each sender what the rounding left over.

It sleeps FEDKD_TEST_SLEEP seconds an update, for runs that must last.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.codecs import Codec, State, raw, read_floats
from fedkd_mpi.codecs.wire import Record
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


class Rounding(Codec):
    """Error feedback by hand."""

    def __init__(self, compression: CompressionConfig, layers: Sequence[Layer]):
        self.layers = layers

    def encode(
        self, update: Sequence[Tensor], threshold: float, state: State, rng: np.random.Generator
    ) -> list[Record]:
        """Send multiples of 1/1024 and remember the rest."""
        records = []
        time.sleep(float(os.environ.get("FEDKD_TEST_SLEEP", "0")))
        for layer, tensor in zip(self.layers, update, strict=True):
            whole = tensor + state.get(layer.name, torch.zeros_like(tensor))
            sent = torch.round(whole * 1024) / 1024
            state[layer.name] = whole - sent
            records.append(raw(sent))
        return records

    def decode(self, records: Sequence[Record], device: str) -> list[Tensor]:
        """Return the numbers as they came."""
        pairs = zip(records, self.layers, strict=True)
        return [read_floats(record, layer, layer.numel).reshape(layer.shape).to(device) for record, layer in pairs]
