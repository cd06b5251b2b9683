"""Codec submatrix: nothing lost, only what is zero in whole rows or columns left out, damaged records named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkd_mpi.codecs import Codec, factory
from fedkd_mpi.codecs.tags import RAW, SUBMATRIX
from fedkd_mpi.codecs.wire import Record, WireError
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


def make(*shapes: tuple[int, ...]) -> Codec:
    layers = [Layer(f"l{index}", shape, len(shape) > 1) for index, shape in enumerate(shapes)]
    return factory.build(CompressionConfig(codec="submatrix"), layers)


def send(tensor: torch.Tensor) -> tuple[Record, torch.Tensor]:
    codec = make(tuple(tensor.shape))
    (record,) = codec.encode([tensor], 0.95, {}, np.random.default_rng(0))
    (decoded,) = codec.decode([record], "cpu")
    return record, decoded


@pytest.mark.parametrize("shape", [(), (1,), (7,), (9, 20), (4, 3, 5, 5), (1, 30), (30, 1)])
@pytest.mark.parametrize("zeros", ["all", "none", "rows", "columns", "both"])
def test_every_tensor_comes_back_bit_for_bit(shape, zeros):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if zeros == "all":
        tensor.zero_()
    if shape and zeros in ("rows", "both"):
        tensor[::2] = 0
    if len(shape) > 1 and zeros in ("columns", "both"):
        tensor[:, 1::2] = 0
    record, decoded = send(tensor)
    assert torch.equal(decoded, tensor)
    assert record.data.size <= 4 * tensor.numel()


def test_bytes_are_two_maps_and_the_entries_that_stay():
    tensor = torch.zeros(16, 24)
    tensor[[1, 5]] = torch.nn.functional.pad(torch.ones(2, 3), (4, 17))
    assert send(tensor)[0].data.size == 16 // 8 + 24 // 8 + 4 * 2 * 3
    assert send(torch.ones(16, 24))[0].encoding == RAW


@pytest.mark.parametrize(("encoding", "size"), [(99, 8), (SUBMATRIX, 1), (SUBMATRIX, 9), (RAW, 4)])
def test_a_damaged_record_names_its_layer(encoding, size):
    with pytest.raises(WireError, match="l0"):
        make((8, 8)).decode([Record(encoding, -1, np.full(size, 255, np.uint8))], "cpu")
