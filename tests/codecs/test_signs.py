"""Codecs sign and ternary: the contraction of EF-SignSGD, the best ternary approximation, TernGrad's unbiasedness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import MATRICES, energy, random

from fedkd_mpi.codecs.tags import RAW, SIGN, TERNARY
from fedkd_mpi.codecs.wire import Record, WireError

NAMES = [name for name in MATRICES if name not in ("denormal", "single")]


def kept_by_the_largest(matrix: torch.Tensor) -> np.ndarray:
    """Return the share of the energy that the best magnitude keeps of the k largest entries, for every k."""
    sizes = np.sort(matrix.double().abs().numpy().reshape(-1))[::-1]
    return np.cumsum(sizes) ** 2 / np.arange(1, sizes.size + 1) / np.square(sizes).sum()


@pytest.mark.parametrize("name", NAMES)
def test_sign_is_the_contraction_of_its_paper(name: str):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("sign", matrix, error_feedback="ef"), matrix)
    kept = kept_by_the_largest(matrix)[-1]
    assert (record.encoding, record.data.size) == (SIGN, 4 + -(-matrix.numel() // 8))
    assert energy(matrix, decoded) == pytest.approx(kept, abs=1e-6)
    assert kept >= 1 / matrix.numel() - 1e-12
    assert record.energy == pytest.approx(kept, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ternary_with_feedback_is_the_best_of_all_ternaries(name: str):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("ternary", matrix, error_feedback="ef"), matrix)
    if record.encoding == TERNARY:
        assert len(decoded.abs().unique()) <= 2
        assert record.energy == pytest.approx(energy(matrix, decoded), abs=1e-6)
    assert energy(matrix, decoded) >= kept_by_the_largest(matrix).max() - 1e-6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=7))
def test_no_ternary_of_a_short_vector_is_better(numbers: list[int]):
    tensor = torch.tensor([float(number) for number in numbers]).repeat(20)  # long enough not to be sent raw
    _, (decoded,) = through(make("ternary", tensor, error_feedback="ef"), tensor)
    patterns = np.array(np.meshgrid(*[[-1, 0, 1]] * len(numbers))).reshape(len(numbers), -1)
    inner, squares = np.array(numbers) @ patterns, np.maximum(np.square(patterns).sum(0), 1)
    best = np.square(numbers).sum() - (inner**2 / squares).max()
    assert float((decoded - tensor).double().square().sum()) / 20 == pytest.approx(best, abs=1e-4)


def test_ternary_without_feedback_is_unbiased():
    tensor, draws = random(16, 20), 400
    codec = make("ternary", tensor)
    mean = torch.stack([through(codec, tensor, seed=seed)[1][0] for seed in range(draws)]).mean(0)
    top = float(tensor.abs().max())
    assert float((mean - tensor).abs().max()) < 5 * top * 0.5 / np.sqrt(draws)
    (decoded,) = through(codec, tensor)[1]
    assert set(decoded.abs().unique().tolist()) == {0.0, top}


def test_ternary_takes_what_its_symbols_are_worth():
    tensor = random(300, 400)
    record = encode(make("ternary", tensor, error_feedback="ef"), tensor)[0]
    sent = float((through(make("ternary", tensor, error_feedback="ef"), tensor)[1][0] != 0).float().mean())
    entropy = -sent * np.log2(sent / 2) - (1 - sent) * np.log2(1 - sent)
    assert entropy < 8 * record.data.size / tensor.numel() < 1.03 * entropy
    assert record.energy > 0.80  # of a normal tensor: 0.81, where a sign alone keeps 0.637


@pytest.mark.parametrize("codec", ["sign", "ternary"])
def test_zeros_take_no_bytes_and_what_is_short_goes_raw(codec: str):
    tensors = [torch.zeros(30, 40), torch.zeros(()), torch.tensor(-3.0), torch.empty(0, 4)]
    records, decoded = through(make(codec, *tensors), *tensors)
    assert [record.data.size for record in records] == [0, 0, 4, 0]
    assert records[2].encoding == RAW
    assert all(torch.equal(tensor, back) for tensor, back in zip(tensors, decoded, strict=True))


@pytest.mark.parametrize("magnitude", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("codec", ["sign", "ternary"])
def test_a_magnitude_that_cannot_be_is_refused(codec: str, magnitude: float):
    tensor = random(9, 9)
    (record,) = encode(make(codec, tensor), tensor)
    data = record.data.copy()
    data[:4] = np.array([magnitude], "<f4").view(np.uint8)
    with pytest.raises(WireError, match="layer0: invalid magnitude"):
        make(codec, tensor).decode([Record(record.encoding, -1, data)], "cpu")
