"""The codecs none and svd, with one regression test for each known fault that a codec can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from codec_tools import make, through
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import MATRICES, energy, random, smallest_ranks, with_spectrum

from fedkd_mpi.codecs import CODECS, factory
from fedkd_mpi.codecs.tags import LOW_RANK, RAW
from fedkd_mpi.codecs.wire import RECORD_BYTES, Record, WireError, pack
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.models.layer import Layer


@pytest.mark.parametrize("name", MATRICES)
def test_none_loses_nothing(name: str):
    matrix = MATRICES[name]
    records, (decoded,) = through(make("none", matrix), matrix)
    assert records[0].data.size == 4 * matrix.numel()
    assert torch.equal(decoded, matrix)


@pytest.mark.parametrize("threshold", [0.5, 0.95, 0.98, 0.999, 1.0])
@pytest.mark.parametrize("name", MATRICES)
def test_svd_keeps_the_energy_at_the_smallest_rank_or_goes_raw(name: str, threshold: float):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("svd", matrix), matrix, threshold=threshold)
    rows, columns = matrix.shape
    pays = [rank * (rows + columns) < rows * columns for rank in smallest_ranks(matrix, threshold)]
    if record.encoding == RAW:
        assert not all(pays)
        assert torch.equal(decoded, matrix)
    else:
        assert any(pays)
        assert record.rank in smallest_ranks(matrix, threshold)
        assert record.data.size == 4 * record.rank * (rows + columns) < 4 * matrix.numel()
        if name != "denormal":
            assert energy(matrix, decoded) > threshold - 1e-9
            assert record.energy == pytest.approx(energy(matrix, decoded), abs=1e-5)


shapes = st.lists(st.integers(1, 9), min_size=0, max_size=4).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(shapes, min_size=1, max_size=4),
    name=st.sampled_from(["svd", "none"]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e20]),
    threshold=st.floats(0.1, 1.0),
)
def test_any_list_of_tensors_survives(shapes: list[tuple[int, ...]], name: str, scale: float, threshold: float):
    update = [random(1, int(np.prod(shape)), scale, seed).reshape(shape) for seed, shape in enumerate(shapes)]
    records, decoded = through(make(name, *update), *update, threshold=threshold)
    assert pack(records).size <= sum(RECORD_BYTES + 4 * tensor.numel() for tensor in update)
    for tensor, back in zip(update, decoded, strict=True):
        assert (back.shape, back.dtype) == (tensor.shape, torch.float32)
        assert energy(tensor, back) > threshold - 1e-6


def test_a_warm_start_travels_in_the_senders_state_alone():
    first = with_spectrum(0.8 ** np.arange(60), 60, 90)
    codec, cold, state = make("svd", first, warm_start=True), make("svd", first), {}
    through(codec, first, state=state)
    assert set(state) == {"left.layer0"}
    second = first + random(60, 90, 1e-4)
    (record,), (decoded,) = through(codec, second, state=state)
    assert record.rank == through(cold, second)[0][0].rank
    assert energy(second, decoded) > 0.95
    through(codec, torch.zeros(60, 90), state=state)
    assert energy(second, through(codec, second, state=state)[1][0]) > 0.95  # nothing to start from


def test_zero_update_costs_record_heads_alone():
    update = torch.zeros(30, 40)
    (record,), (decoded,) = through(make("svd", update), update)
    assert (record.encoding, record.rank, record.data.size) == (LOW_RANK, 0, 0)
    assert torch.equal(decoded, update)


def test_unknown_codec_is_named_with_its_neighbour():
    with pytest.raises(UserError, match=r"compression\.codec=svdd.*svd"):
        make("svdd")


# -- messages that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        Record(99, 0, np.zeros(80, np.uint8)),
        Record(RAW, 0, np.zeros(76, np.uint8)),
        Record(LOW_RANK, -1, np.zeros(80, np.uint8)),
        Record(LOW_RANK, 2**31 - 1, np.zeros(80, np.uint8)),
        Record(LOW_RANK, 5, np.zeros(4 * 5 * 9, np.uint8)),
        Record(LOW_RANK, 1, np.zeros(4 * 8, np.uint8)),
    ],
)
def test_record_that_does_not_fit_names_its_layer(record: Record):
    with pytest.raises(WireError, match="layer0"):
        make("svd", torch.zeros(4, 5)).decode([record], "cpu")


def test_low_rank_record_for_a_bias_is_refused():
    with pytest.raises(WireError, match="layer0"):
        make("svd", torch.zeros(4)).decode([Record(LOW_RANK, 1, np.zeros(20, np.uint8))], "cpu")


# -- the faults of the public implementations -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "update",
    [torch.eye(20), random(2, 768), random(1, 64), random(64, 1), random(8, 8).reshape(8, 8, 1, 1)],
    ids=["flat", "head", "row", "column", "conv1x1"],
)
def test_fault_1_full_rank_is_tried(update: torch.Tensor):
    # a rank loop that never tests the full rank drops the whole update
    _, (decoded,) = through(make("svd", update), update, threshold=0.98)
    assert energy(update, decoded) > 0.98


@pytest.mark.parametrize("rank", [1, 3, 11])
def test_fault_2_any_rank_below_full_is_rebuilt(rank: int):
    # dot(dot(U, sigma as a vector), V) raises for K < P
    update = with_spectrum(0.9 ** np.arange(rank), 24, 36)
    (record,), (decoded,) = through(make("svd", update), update, threshold=0.9999)
    assert (record.encoding, record.rank) == (LOW_RANK, rank)
    np.testing.assert_allclose(decoded, update, atol=1e-5)


def test_fault_3_the_update_is_sent_and_not_the_parameters():
    before, step = random(48, 64, seed=1), with_spectrum(np.ones(2), 48, 64)
    after = before + step
    (record,), (decoded,) = through(make("svd", step), after - before)
    assert record.rank == 2
    assert record.data.size < after.numel() * 4 / 10
    np.testing.assert_allclose(before + decoded, after, atol=1e-5)
    (parameters,), _ = through(make("svd", after), after, threshold=0.98)
    assert parameters.encoding == RAW  # full rank: a message that would have grown


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_fault_4_convolutions_do_not_grow(kernel: int):
    # one SVD per kh x kw kernel sends kh (kh + kw) numbers for kh kw
    update = random(12, 6 * kernel * kernel).reshape(12, 6, kernel, kernel)
    (record,), (decoded,) = through(make("svd", update), update, threshold=0.98)
    assert record.data.size <= 4 * update.numel()
    assert energy(update, decoded) > 0.98


def test_fault_4_a_low_rank_convolution_shrinks():
    update = with_spectrum(np.ones(2), 12, 150).reshape(12, 6, 5, 5)
    (record,), _ = through(make("svd", update), update)
    assert (record.rank, record.data.size) == (2, 4 * 2 * (12 + 150))


@pytest.mark.parametrize("name", ["svd", "none"])
def test_fault_5_a_bias_of_length_three(name: str):
    # len(x) == 3 must not mean "is compressed"
    update = [torch.tensor([1.0, -2.0, 3.0]), random(3, 3), random(3, 1)]
    _, decoded = through(make(name, *update), *update, threshold=0.999)
    assert torch.equal(decoded[0], update[0])
    assert energy(update[1], decoded[1]) > 0.999


@pytest.mark.parametrize("name", ["svd", "none"])
def test_fault_7_each_client_sees_clean_arrays(name: str):
    # encoding or decoding in place hands the second client what the first has already cut
    shared = [random(20, 30), random(1, 20).reshape(20)]
    clean = [tensor.clone() for tensor in shared]
    codec = make(name, *shared)
    first, decoded = through(codec, *shared, threshold=0.5)
    for tensor in decoded:
        tensor.zero_()
    second, _ = through(codec, *shared, threshold=0.5)
    assert all(torch.equal(tensor, before) for tensor, before in zip(shared, clean, strict=True))
    assert [record.data.tobytes() for record in first] == [record.data.tobytes() for record in second]


def test_fault_7_records_are_no_views_of_the_update():
    update = random(4, 4)
    (record,) = make("none", update).encode([update], 0.95, {}, np.random.default_rng(0))
    sent = record.data.tobytes()
    update.zero_()
    assert record.data.tobytes() == sent


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_fault_8_an_update_that_is_not_finite_is_named(bad: float):
    # LAPACK's "did not converge" names no layer
    update = [random(6, 6), random(6, 9)]
    update[1][2, 3] = bad
    with pytest.raises(RunFault, match="not finite") as caught:
        make("svd", *update).encode(update, 0.95, {}, np.random.default_rng(0))
    assert caught.value.layer == "layer1"
    sound = [random(6, 6, 2), random(6, 9, 3)]
    coded = make("svd", *update).encode_each([sound, update], 0.95, [{}, {}], [np.random.default_rng(0)] * 2)
    assert len(next(coded)) == 2
    with pytest.raises(RunFault, match="not finite") as caught:  # in its turn, so that its sender can be named
        next(coded)
    assert caught.value.layer == "layer1"


@pytest.mark.parametrize(
    "options",
    [
        *({"codec": name} for name in CODECS),
        {"codec": "svd", "warm_start": True},
        {"codec": "svd", "error_feedback": "ef"},
        {"codec": "svd", "byte_budget": 30_000},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_what_a_sender_sends_does_not_depend_on_those_it_is_encoded_with(options: dict[str, Any]):
    # which clients share a process depends on the number of ranks
    shapes = [(64, 100), (100, 64), (7,), (10, 64), (128, 130), (8, 3, 3, 3), (300, 5)]
    senders = [
        [random(*shape[:1], int(np.prod(shape[1:])), seed + 31 * i).reshape(shape) for i, shape in enumerate(shapes)]
        for seed in range(5)
    ]
    senders[3][0].mul_(0.8 ** torch.arange(100.0))
    codec = factory.build(
        CompressionConfig(**options), [Layer(str(i), shape, len(shape) > 1) for i, shape in enumerate(shapes)]
    )
    together, alone = ([{} for _ in senders] for _ in range(2))
    for number in range(2):
        rngs = [np.random.default_rng([seed, number]) for seed in range(5)]
        messages = [pack(records) for records in codec.at(number).encode_each(senders, 0.95, together, rngs)]
        for seed, update in enumerate(senders):
            records = codec.at(number).encode(update, 0.95, alone[seed], np.random.default_rng([seed, number]))
            assert pack(records).tobytes() == messages[seed].tobytes()
            assert together[seed].keys() == alone[seed].keys()
            assert all(torch.equal(together[seed][key], alone[seed][key]) for key in alone[seed])
