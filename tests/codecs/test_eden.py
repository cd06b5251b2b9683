"""Codec eden: the rotation, the levels, and what Vargaftik et al. 2021 and 2022 prove of both together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from matrices import energy, random

from fedkd_mpi.codecs.eden import normal_levels
from fedkd_mpi.codecs.rotation import SIDE, Rotation
from fedkd_mpi.codecs.tags import EDEN
from fedkd_mpi.codecs.wire import Record, WireError

# Max 1960, "Quantizing for minimum distortion", table I: positive levels and squared error.
PUBLISHED = {
    1: ([0.7980], 0.3634),
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}
ERRORS = {0: 1.0} | {bits: error for bits, (_, error) in PUBLISHED.items()}


def error_of(bits: float) -> float:
    low = int(bits)
    return ERRORS[low] + (bits - low) * (ERRORS[min(low + 1, 4)] - ERRORS[low])


@pytest.mark.parametrize("bits", PUBLISHED)
def test_the_levels_are_those_of_the_literature(bits: int):
    levels = normal_levels(bits)
    np.testing.assert_allclose(levels[len(levels) // 2 :], PUBLISHED[bits][0], atol=6e-4)
    np.testing.assert_array_equal(levels, -levels[::-1])


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 100, 576, SIDE - 1, SIDE, SIDE + 1, 2 * SIDE, 3 * SIDE + 77])
def test_a_rotation_is_orthogonal_and_has_as_many_entries_as_the_vector(count: int):
    rotation, other = Rotation(count, 7), Rotation(count, 8)
    vectors = [np.random.default_rng(seed).standard_normal(count).astype(np.float32) for seed in range(2)]
    turned = [np.concatenate([part.reshape(-1) for part in rotation.forward(vector)]) for vector in vectors]
    assert [part.shape for part in rotation.forward(vectors[0])] == rotation.shapes()
    assert turned[0].size == count
    np.testing.assert_allclose(turned[0] @ turned[1], vectors[0] @ vectors[1], atol=1e-5 * count)
    np.testing.assert_allclose(rotation.backward(rotation.forward(vectors[0])), vectors[0], atol=1e-5)
    if count > 10:
        elsewhere = np.concatenate([part.reshape(-1) for part in other.forward(vectors[0])])
        assert abs(np.corrcoef(turned[0], elsewhere)[0, 1]) < 0.5


def vector(kind: str, count: int) -> torch.Tensor:
    rng = np.random.default_rng(5)
    made = {
        "normal": rng.standard_normal(count),
        "heavy": rng.standard_cauchy(count),
        "one": np.eye(1, count, count - 1)[0],
        "pair": np.eye(1, count, 3)[0] + np.eye(1, count, count // 2)[0],
        "falling": 0.99 ** np.arange(count),
    }
    return torch.from_numpy(made[kind].astype(np.float32))


@pytest.mark.parametrize("bits", [0.4, 1, 2.5, 4])
@pytest.mark.parametrize("kind", ["normal", "heavy", "one", "pair", "falling"])
@pytest.mark.parametrize("count", [4096, 6000, 2 * SIDE + 999])
def test_the_error_is_within_the_bound_of_the_paper(bits: float, kind: str, count: int):
    tensor, error = vector(kind, count), error_of(bits)
    for feedback, bound in (("none", 1 / (1 - error) - 1), ("ef", error)):
        codec = make("eden", tensor, bits=bits, error_feedback=feedback)
        lost = []
        for seed in range(2 if count > SIDE else 4):
            (record,), (decoded,) = through(codec, tensor, seed=seed)
            lost.append(1 - energy(tensor, decoded))
            assert record.energy == pytest.approx(1 - lost[-1], abs=1e-4)
        assert np.mean(lost) < 1.08 * bound


@pytest.mark.parametrize(("bits", "count"), [(0.5, 512), (1, 700), (2.5, 512), (4, 700)])
def test_without_feedback_it_is_unbiased(bits: float, count: int):
    tensor, draws = vector("heavy", count).clamp(-9, 9), 200
    codec = make("eden", tensor, bits=bits)
    mean = torch.stack([through(codec, tensor, seed=seed)[1][0].double() for seed in range(draws)]).mean(0)
    expected = (1 / (1 - error_of(bits)) - 1) / draws  # of the squared error of the mean, if there is no bias
    assert 1 - energy(tensor, mean) < 1.3 * expected


@pytest.mark.parametrize("bits", [0.4, 1, 2.5, 4])
@pytest.mark.parametrize("count", [33, 576, 3 * SIDE, 3 * SIDE + 5])
def test_padding_takes_no_bits(bits: float, count: int):
    tensor = random(1, count).reshape(count)
    (record,) = encode(make("eden", tensor, bits=bits), tensor)
    blocks = max(count // SIDE, 1)
    assert record.encoding == EDEN
    assert bits * count / 8 <= record.data.size - 2 - 4 * blocks <= bits * count / 8 + 2


def test_two_senders_rotate_differently_so_that_their_errors_average_out():
    tensor = random(40, 50)
    codec = make("eden", tensor)
    one, other = (through(codec, tensor, seed=seed)[1][0] - tensor for seed in range(2))
    assert abs(float((one * other).sum() / (one.norm() * other.norm()))) < 0.1


def test_a_tensor_of_zeros_takes_no_bytes():
    tensors = [torch.zeros(30, 40), torch.zeros(())]
    records, decoded = through(make("eden", *tensors), *tensors)
    assert [record.data.size for record in records] == [0, 0]
    assert all(torch.equal(tensor, back) for tensor, back in zip(tensors, decoded, strict=True))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_a_scale_that_cannot_be_is_refused(scale: float):
    tensor = random(4, 5)
    data = encode(make("eden", tensor), tensor)[0].data.copy()
    data[2:6] = np.array([scale], "<f4").view(np.uint8)
    with pytest.raises(WireError, match="layer0: a scale"):
        make("eden", tensor).decode([Record(EDEN, -1, data)], "cpu")
