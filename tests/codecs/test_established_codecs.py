"""float16, quantize, topk, powersgd and fetchsgd: what their papers prove of them, and the bytes they take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import MATRICES, energy, random, with_spectrum

from fedkd_mpi.codecs import places
from fedkd_mpi.codecs.tags import POWER, QUANTIZED, RAW, SKETCH, SPARSE
from fedkd_mpi.codecs.wire import Record, WireError

SETTINGS = {"float16": {}, "quantize": {}, "topk": {"density": 0.1}, "powersgd": {"rank": 2}, "fetchsgd": {}}
SETTINGS |= {"eden": {"bits": 4}, "sign": {}, "ternary": {"error_feedback": "ef"}, "dadaquant": {}, "sz3": {}}
EVERY = [*SETTINGS, "rdsvd", "svd", "none"]


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=4).map(tuple), min_size=1, max_size=4),
    name=st.sampled_from(EVERY),
    scale=st.sampled_from([0.0, 1e-40, 1e-24, 1.0, 1e24]),
)
def test_any_list_of_tensors_survives(shapes: list[tuple[int, ...]], name: str, scale: float):
    update = [random(1, int(np.prod(shape)), scale, seed).reshape(shape) for seed, shape in enumerate(shapes)]
    clean = [tensor.clone() for tensor in update]
    codec, receiver = make(name, *update, **SETTINGS.get(name, {})), {}
    records, decoded = through(codec, *update)
    back = codec.receive(decoded, receiver, 1.0)
    assert all(torch.equal(tensor, before) for tensor, before in zip(update, clean, strict=True))
    assert [(t.shape, t.dtype) for t in back] == [(t.shape, torch.float32) for t in update]
    assert all(tensor.isfinite().all() for tensor in back)
    assert len(records) == len(update)
    if name != "fetchsgd":
        assert all(record.data.size <= 4 * tensor.numel() for record, tensor in zip(records, update, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_same_bytes_twice_and_fault_7_input_left_alone(name: str):
    update = [random(20, 30), random(1, 20).reshape(20)]
    clean = [tensor.clone() for tensor in update]
    codec = make(name, *update, **SETTINGS.get(name, {}))
    first, second = (encode(codec, *update) for _ in range(2))
    assert [record.data.tobytes() for record in first] == [record.data.tobytes() for record in second]
    assert all(torch.equal(tensor, before) for tensor, before in zip(update, clean, strict=True))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "fetchsgd"])
def test_fault_5_a_bias_of_length_three(name: str):
    update = [torch.tensor([1.0, -2.0, 3.0]), random(3, 3), random(3, 1)]
    _, decoded = through(make(name, *update, **SETTINGS.get(name, {})), *update)
    assert energy(update[0], decoded[0]) > 0.6


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_quantize_is_unbiased(bits: int):
    update = random(16, 20)
    codec = make("quantize", update, bits=bits)
    decoded = [through(codec, update, seed=seed)[1][0] for seed in range(400)]
    step = float(update.abs().max()) / (2 ** (bits - 1) - 1)
    error = torch.stack(decoded).mean(0) - update
    assert float(error.abs().max()) < 5 * step * 0.5 / np.sqrt(400) + 1e-6
    assert float((decoded[0] - update).abs().max()) <= step * 1.001


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_quantize_bytes(bits: int):
    update = random(7, 9)
    assert encode(make("quantize", update, bits=bits), update)[0].data.size == 4 + -(-63 * bits // 8)


@pytest.mark.parametrize("name", MATRICES)
def test_float16_errs_by_half_a_bit_of_eleven(name: str):
    matrix = MATRICES[name]
    _, (decoded,) = through(make("float16", matrix), matrix)
    top = float(matrix.abs().max())
    if name != "denormal":
        assert float((decoded - matrix).abs().max()) <= top * 2**-11


@pytest.mark.parametrize("density", [0.05, 0.3])
@pytest.mark.parametrize("name", MATRICES)
def test_topk_is_a_contraction(name: str, density: float):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("topk", matrix, density=density), matrix)
    count = int(np.ceil(density * matrix.numel()))
    assert energy(matrix, decoded) >= count / matrix.numel() - 1e-9
    if record.encoding == SPARSE:
        assert int(decoded.count_nonzero()) <= count
        assert record.data.size <= 6 * count + 3  # the place of each is counted


def topk_magnitudes(matrix: torch.Tensor, density: float) -> np.ndarray:
    count = int(np.ceil(density * matrix.numel()))
    sizes = np.sort(matrix.double().abs().numpy().reshape(-1))[::-1][:count]
    return sizes[sizes > 0]  # zeros are not sent


@pytest.mark.parametrize("density", [0.05, 0.3])
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "denormal"])
def test_topk_of_one_bit_is_the_ternary_projection_of_stc(name: str, density: float):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("topk", matrix, density=density, bits=1), matrix)
    sizes, total = topk_magnitudes(matrix, density), float(matrix.double().square().sum())
    if record.encoding == SPARSE:
        assert energy(matrix, decoded) == pytest.approx(sizes.sum() ** 2 / len(sizes) / total, rel=1e-5)
        assert len(decoded.abs().unique()) <= 2
    assert energy(matrix, decoded) >= 1 / matrix.numel()


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "denormal"])
def test_topk_of_more_bits_loses_less_and_8_bits_nearly_nothing(name: str):
    matrix, kept = MATRICES[name], {}
    for bits in (1, 2, 8, 32):
        (record,), (decoded,) = through(make("topk", matrix, density=0.2, bits=bits), matrix)
        kept[bits] = energy(matrix, decoded)
        assert record.energy == pytest.approx(kept[bits], abs=1e-6)
        if bits == 8 and record.encoding == SPARSE:
            sent = decoded != 0
            sizes = topk_magnitudes(matrix, 0.2)
            assert float((decoded - matrix)[sent].abs().max()) <= (sizes[0] - sizes[-1]) / 254 * 1.001 + 1e-6 * sizes[0]
    assert kept[1] <= kept[2] + 1e-9
    assert kept[2] <= kept[8] + 1e-3
    assert kept[8] <= kept[32] + 1e-9


def test_two_magnitudes_are_the_best_two():
    tensor = torch.from_numpy(np.random.default_rng(3).standard_exponential(40).astype(np.float32))
    _, (decoded,) = through(make("topk", tensor, density=0.3, bits=2), tensor)
    sizes = np.sort(tensor.double().numpy())[::-1][:12]
    best = min(sizes[:cut].var() * cut + sizes[cut:].var() * (12 - cut) for cut in range(1, 12))
    assert float((decoded - tensor)[decoded != 0].double().square().sum()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(("density", "most"), [(0.01, 8.3), (0.05, 5.9), (0.2, 4.0)])
def test_a_place_takes_what_rice_codes_take(density: float, most: float):
    tensor = random(300, 400)
    record = encode(make("topk", tensor, density=density, bits=1), tensor)[0]
    count = int(density * 120_000)
    assert 8 * (record.data.size - 6) / count - 1 < most


@settings(max_examples=100, deadline=None)
@given(below=st.integers(1, 2**31), count=st.integers(0, 60), near=st.booleans(), seed=st.integers(0, 999))
def test_places_come_back_in_no_more_bytes_than_are_admitted(below: int, count: int, near: bool, seed: int):
    rng = np.random.default_rng(seed)
    room = min(below, 100) if near else below
    chosen = np.unique(rng.integers(room, size=count)) + (below - room)
    data = np.frombuffer(places.encode(chosen), np.uint8)
    np.testing.assert_array_equal(places.decode(data, chosen.size, below), chosen)
    if chosen.size:
        with pytest.raises(WireError, match="below"):
            places.decode(data, chosen.size, int(chosen[-1]))
        with pytest.raises(WireError, match="bytes"):
            places.decode(np.append(data, np.zeros(below // 8 + 64 if below < 2**20 else 2**19, np.uint8)), count, 100)


@pytest.mark.parametrize("name", MATRICES)
def test_powersgd_is_a_contraction_and_improves_on_a_constant_matrix(name: str):
    matrix, state = MATRICES[name], {}
    codec = make("powersgd", matrix, rank=1)
    kept = [energy(matrix, through(codec, matrix, state=state)[1][0]) for _ in range(4)]
    assert min(kept) >= -1e-6
    if name != "denormal":
        assert kept[-1] >= kept[0] - 1e-5


def test_powersgd_finds_a_low_rank_matrix_at_its_bytes():
    matrix = with_spectrum(np.array([3.0, 1.0]), 40, 60)
    (record,), (decoded,) = through(make("powersgd", matrix, rank=2), matrix)
    assert (record.encoding, record.data.size) == (POWER, 4 * 2 * (40 + 60))
    assert energy(matrix, decoded) > 1 - 1e-6


def test_fetchsgd_sketches_add_up():
    first, second = random(30, 40), random(30, 40, seed=1)
    codec = make("fetchsgd", first)
    sketches = [through(codec, update)[1][0] for update in (first, second, first + second)]
    torch.testing.assert_close(sketches[0] + sketches[1], sketches[2], rtol=1e-4, atol=1e-4)


def test_fetchsgd_finds_the_large_entries_and_sends_the_rest_later():
    update = 0.01 * random(30, 40)
    large = torch.from_numpy(np.random.default_rng(1).choice(1200, 12, replace=False))
    update.view(-1)[large] = 5.0
    codec, receiver = make("fetchsgd", update, sketch_share=1.0), {}
    records, decoded = through(codec, update)
    assert (records[0].encoding, records[0].data.size) == (SKETCH, 4 * 5 * 240)
    (first,) = codec.receive(decoded, receiver, 1.0)
    assert set(first.view(-1).nonzero().view(-1).tolist()) == set(large.tolist())
    np.testing.assert_allclose(first.view(-1)[large], 5, atol=0.1)
    assert float(receiver["sketch"].norm()) < 0.1 * float(decoded[0].norm())
    down, (again,) = through(codec.downlink(), first)  # the server's message
    assert (down[0].encoding, down[0].data.size) == (SPARSE, 1 + 13 + 4 * 12)  # 8 bits per place
    assert torch.equal(again, first)


def test_fetchsgd_unsketches_without_bias():
    vector = random(1, 300).reshape(300)
    estimates = []
    for size in (300, 301, 302, 303, 304, 305, 306, 307):  # other shapes, other hashes
        padded = torch.cat([vector, torch.zeros(size - 300)])
        codec = make("fetchsgd", padded, sketch_rows=1, sketch_share=0.3)
        estimates.append(codec.unsketch(codec.sketch(padded))[:300])
    error = torch.stack(estimates).mean() - vector.mean()
    assert abs(float(error)) < 0.2


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8])
def test_fetchsgd_estimates_the_median_of_its_rows_without_bias(rows: int):
    vector = 1 + 0.1 * random(1, 4000, seed=rows).reshape(4000)  # of one sign, so that a bias would show
    codec = make("fetchsgd", vector, sketch_rows=rows, sketch_share=1.0)
    table = codec.sketch(vector)
    pairs = zip(table.numpy(), codec.buckets, codec.signs, strict=True)
    said = np.stack([row[buckets.numpy()] * signs.numpy() for row, buckets, signs in pairs])
    estimate = codec.unsketch(table)
    np.testing.assert_allclose(estimate, np.median(said, axis=0), rtol=1e-6, atol=1e-6)
    error = estimate - vector
    assert abs(float(error.mean())) < 0.1 * float(error.std())


@pytest.mark.parametrize("nonzero", [0, 1, 12, 1200])
def test_fetchsgd_tells_its_legs_apart_by_who_sends_and_not_by_what(nonzero: int):
    update = torch.zeros(30, 40)
    update.view(-1)[:nonzero] = random(1, nonzero)
    codec = make("fetchsgd", update, sketch_rows=4)
    up, down = encode(codec, update), encode(codec.downlink(), update)
    assert [record.encoding for record in up] == [SKETCH]
    assert [record.encoding for record in down] == [SPARSE if nonzero < 800 else RAW]
    (first,) = codec.receive(codec.decode(up, "cpu"), {}, 1.0)
    assert int(first.count_nonzero()) <= min(nonzero * 4 * 4, 12)
    assert torch.equal(codec.downlink().decode(down, "cpu")[0], update)
    with pytest.raises(WireError, match="layer0"):
        codec.decode(down, "cpu")
    with pytest.raises(WireError, match="layer0"):
        codec.downlink().decode(up, "cpu")


@pytest.mark.parametrize(("density", "size", "count"), [(0.07, 100, 7), (0.01, 3, 1), (1.0, 9, 9), (0.501, 10, 6)])
def test_a_density_is_the_share_of_entries_that_it_says(density: float, size: int, count: int):
    update = random(1, size).reshape(size)
    _, (decoded,) = through(make("topk", update, density=density), update)
    assert int(decoded.count_nonzero()) == count
    equal = torch.full((size,), 2.0)
    assert int(through(make("topk", equal, density=density), equal)[1][0].count_nonzero()) == count


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("quantize", Record(QUANTIZED, -1, np.r_[np.array([np.nan], "<f4").view(np.uint8), np.zeros(20, np.uint8)])),
        ("quantize", Record(QUANTIZED, -1, np.r_[np.zeros(4, np.uint8), np.full(20, 128, np.uint8)])),  # -128 of 127
        ("quantize", Record(QUANTIZED, -1, np.zeros(9, np.uint8))),
        ("quantize", Record(99, -1, np.zeros(24, np.uint8))),
        ("float16", Record(8, -1, np.zeros(9, np.uint8))),
        ("float16", Record(9, 1, np.zeros(20, np.uint8))),
        ("topk", Record(SPARSE, -1, np.zeros(7, np.uint8))),  # no entries, but more bytes
        ("topk", Record(SPARSE, -1, np.r_[2, np.zeros(9)].astype(np.uint8))),  # gaps without an end
        ("topk", Record(SPARSE, -1, np.full(6, 255, np.uint8))),  # a number without an end
        ("topk", Record(SPARSE, -1, np.r_[1, 0b00100_000, 0b00001_111, np.zeros(4)].astype(np.uint8))),  # place 79
        ("powersgd", Record(POWER, 3, np.zeros(4 * 3 * 9, np.uint8))),
        ("powersgd", Record(POWER, 1, np.zeros(4, np.uint8))),
        ("fetchsgd", Record(SKETCH, -1, np.zeros(4, np.uint8))),
        ("fetchsgd", Record(RAW, -1, np.zeros(4, np.uint8))),
    ],
)
def test_record_that_does_not_fit_names_its_layer(name: str, record: Record):
    with pytest.raises(WireError, match="layer0"):
        make(name, torch.zeros(4, 5), **SETTINGS[name]).decode([record], "cpu")
