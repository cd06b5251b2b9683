"""Build a codec for some tensors and send them through the wire format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fedkd_mpi.codecs import Codec, factory
from fedkd_mpi.codecs.wire import Record, pack, pack_header, unpack, unpack_header
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


def make(codec: str, *own: torch.Tensor, tensors: Sequence[torch.Tensor] = (), **compression: Any) -> Codec:
    """Return the codec for tensors like these, named layer0, layer1, ..."""
    tensors = own or tensors
    layers = [Layer(f"layer{index}", tuple(t.shape), t.dim() >= 2) for index, t in enumerate(tensors)]
    return factory.build(CompressionConfig(codec=codec, **compression), layers)


def encode(
    codec: Codec, *tensors: torch.Tensor, threshold: float = 0.95, state: Any = None, seed: int = 0
) -> list[Record]:
    """Return the records; `state` is a new one unless given."""
    return codec.encode(tensors, threshold, {} if state is None else state, np.random.default_rng(seed))


def through(
    codec: Codec, *tensors: torch.Tensor, threshold: float = 0.95, state: Any = None, seed: int = 0
) -> tuple[list[Record], list[torch.Tensor]]:
    """Encode, pack, unpack and decode."""
    records = encode(codec, *tensors, threshold=threshold, state=state, seed=seed)
    payload = pack(records)
    header = unpack_header(pack_header(0, 0, 0, len(records), 0, payload))
    return records, codec.decode(unpack(header, payload, len(tensors)), "cpu")
