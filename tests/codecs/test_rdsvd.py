"""Codec rdsvd: the energy that is promised, checked densely from what was decoded, and bytes that say what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tools import encode, make, through
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matrices import MATRICES, energy, random, smallest_ranks, with_spectrum

from fedkd_mpi.codecs import rice, symbols
from fedkd_mpi.codecs.rate_distortion import LEFT_UNUSED
from fedkd_mpi.codecs.rdsvd import HEAD
from fedkd_mpi.codecs.tags import DENSE, FACTORS, POOLED, RAW
from fedkd_mpi.codecs.unfolding import fold, unfold, unfolded_shape, unfoldings
from fedkd_mpi.codecs.wire import RECORD_BYTES, Record, WireError, pack

int16_matrices = st.builds(
    lambda rows, columns, scale, seed: (
        np.random.default_rng(seed)
        .normal(0, scale, (rows, columns))
        .clip(-symbols.LARGEST, symbols.LARGEST)
        .astype(np.int16)
    ),
    st.integers(0, 40),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.3, 2.0, 40.0, 9000.0]),
    st.integers(0, 99),
)


@settings(max_examples=150, deadline=None)
@given(matrices=st.lists(int16_matrices, max_size=3))
def test_symbols_round_trip(matrices: list[np.ndarray]):
    shapes = [matrix.shape for matrix in matrices]
    for coded in (symbols.encode(matrices), np.frombuffer(bytes([symbols.RICE]) + rice.encode(matrices), np.uint8)):
        back = symbols.decode(coded, shapes)
        assert all(np.array_equal(matrix, other) for matrix, other in zip(matrices, back, strict=True))


@pytest.mark.parametrize("count", [300, 30000])  # one code, and the division by columns
def test_symbols_come_near_their_entropy(count: int):
    values = np.random.default_rng(0).normal(0, 1.5, (10, count)).round().astype(np.int16)
    _, counts = np.unique(values, return_counts=True)
    entropy = -(counts / values.size * np.log2(counts / values.size)).sum() * values.size / 8
    assert symbols.encode([values]).size < 1.06 * entropy + 60


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=60), rows=st.integers(0, 9), columns=st.integers(1, 9))
@example(junk=bytes(20), rows=2, columns=3)  # long enough, and not one symbol ends
def test_junk_in_place_of_symbols_is_refused_or_is_in_range(junk: bytes, rows: int, columns: int):
    for decode in (symbols.decode, rice.decode):
        try:
            (matrix,) = decode(np.frombuffer(junk, np.uint8), [(rows, columns)])
        except WireError:
            continue
        assert matrix.shape == (rows, columns)


def test_short_symbols_pay_for_no_table():
    values = np.random.default_rng(0).normal(0, 4, (1, 192)).round().astype(np.int16)
    bits = np.log2(4 * np.sqrt(2 * np.pi * np.e)) * values.size  # of a Gaussian, Cover and Thomas 8.4
    data = symbols.encode([values])
    assert data[0] == symbols.RICE
    assert 8 * data.size < 1.05 * bits + 24


@pytest.mark.parametrize("matrices", [[np.full((4, 50), 3, np.int16)], [np.arange(-900, 900, dtype=np.int16)[None]]])
def test_symbols_that_end_early_or_late_are_refused(matrices: list[np.ndarray]):
    data = symbols.encode(matrices)
    shapes = [matrix.shape for matrix in matrices]
    for wrong in (data[:-1], np.append(data, np.uint8(0))):
        with pytest.raises(WireError):
            symbols.decode(wrong, shapes)
    for rows, columns in shapes:
        for other in ((rows + 1, columns), (rows, columns - 1)):
            with pytest.raises(WireError):
                symbols.decode(data, [other])


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 2, 1, 7), (6, 4)])
def test_unfoldings_are_undone(shape: tuple[int, ...]):
    tensor = random(1, int(np.prod(shape))).reshape(shape)
    for unfolding in unfoldings(shape):
        matrix = unfold(tensor, unfolding)
        assert tuple(matrix.shape) == unfolded_shape(shape, unfolding)
        assert torch.equal(fold(matrix, unfolding, shape), tensor)


@pytest.mark.parametrize("threshold", [0.3, 0.8, 0.95, 0.98, 0.999, 0.99999])
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "denormal"])  # its own spacing is too coarse
def test_decoded_energy_is_above_the_threshold_and_as_stated(name: str, threshold: float):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("rdsvd", matrix), matrix, threshold=threshold)
    kept = energy(matrix, decoded)
    assert kept > threshold
    assert kept == pytest.approx(record.energy, abs=2e-3 * (1 - threshold) + 1e-9)
    assert record.data.size <= 4 * matrix.numel()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    decay=st.floats(0.5, 1.0),
    exponent=st.integers(-25, 25),
    threshold=st.floats(0.2, 0.9999),
    seed=st.integers(0, 999),
)
def test_any_spectrum_and_scale(rows: int, columns: int, decay: float, exponent: int, threshold: float, seed: int):
    matrix = with_spectrum(10.0**exponent * decay ** np.arange(min(rows, columns)), rows, columns, seed)
    (record,), (decoded,) = through(make("rdsvd", matrix), matrix, threshold=threshold)
    assert energy(matrix, decoded) > threshold
    assert record.data.size <= 4 * matrix.numel()


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.98])
@pytest.mark.parametrize("decay", [0.9, 0.97, 1.0])
def test_little_of_the_error_budget_is_left_unused(decay: float, threshold: float):
    matrix = with_spectrum(decay ** np.arange(96), 96, 200)
    (record,), (decoded,) = through(make("rdsvd", matrix), matrix, threshold=threshold)
    assert record.encoding in (FACTORS, DENSE)
    assert 1 - energy(matrix, decoded) >= (1 - LEFT_UNUSED) * (1 - threshold)


@pytest.mark.parametrize("threshold", [0.95, 0.98])
@pytest.mark.parametrize("decay", [0.8, 0.9, 0.97])
def test_a_seventh_of_the_papers_bytes(decay: float, threshold: float):
    matrix = with_spectrum(decay ** np.arange(128), 128, 256)
    (record,), _ = through(make("rdsvd", matrix), matrix, threshold=threshold)
    rank = smallest_ranks(matrix, threshold)[0]
    assert RECORD_BYTES + record.data.size < 4 * rank * (128 + 256 + rank) / 7


def test_flat_spectrum_goes_dense_and_small():
    matrix = random(120, 130)
    (record,), (decoded,) = through(make("rdsvd", matrix), matrix)
    assert record.encoding == DENSE
    assert record.data.size < 4 * matrix.numel() / 10
    assert energy(matrix, decoded) > 0.95


def test_zero_rows_of_an_embedding_cost_a_bit_each():
    update = torch.zeros(3000, 64)
    update[100:120] = random(20, 64)
    whole = encode(make("rdsvd", update), update)[0].data.size
    assert whole - encode(make("rdsvd", update[100:120]), update[100:120])[0].data.size == 3000 // 8
    _, (decoded,) = through(make("rdsvd", update), update)
    assert energy(update, decoded) > 0.95
    assert torch.equal(decoded[:100], torch.zeros(100, 64))


def test_convolution_takes_the_unfolding_of_low_rank():
    # one kernel pattern for all channels: rank 1 as (O I) x (kh kw) only, rank 3 as (O kh) x (I kw), full as O x rest
    update = torch.einsum("oi,hw->oihw", random(40, 30), random(3, 3))
    (record,), (decoded,) = through(make("rdsvd", update), update, threshold=0.999)
    assert energy(update, decoded) > 0.999
    plain = encode(make("rdsvd", update.reshape(40, 270)), update.reshape(40, 270), threshold=0.999)[0]
    assert record.data.size <= 1.02 * plain.data.size


def test_one_dimension_takes_sixteen_bits():
    bias = random(1, 100).reshape(100)
    (record,), (decoded,) = through(make("rdsvd", bias), bias)
    assert record.data.size == 202
    np.testing.assert_allclose(decoded, bias, rtol=2**-10, atol=1e-6)


def test_threshold_one_is_lossless():
    update = [random(9, 7), random(1, 5).reshape(5)]
    records, decoded = through(make("rdsvd", *update), *update, threshold=1.0)
    assert all(record.encoding == RAW for record in records)
    assert all(torch.equal(tensor, back) for tensor, back in zip(update, decoded, strict=True))


def test_model_scope_keeps_the_energy_of_the_whole_and_spends_less():
    update = [with_spectrum(0.9 ** np.arange(40), 40, 80), 1e-3 * random(40, 60), 0.3 * random(64, 64, seed=1)]
    total = sum(float(t.double().square().sum()) for t in update)
    sizes = {}
    for scope in ("tensor", "model"):
        records, decoded = through(make("rdsvd", *update, energy_scope=scope, error_feedback="ef"), *update)
        lost = sum(float((t.double() - d.double()).square().sum()) for t, d in zip(update, decoded, strict=True))
        assert lost / total <= 0.05
        sizes[scope] = pack(records).size
    assert sizes["model"] < sizes["tensor"]


# -- messages that do not fit ---------------------------------------------------------------------------------------


def head(unfolding: int = 0, exponent: int = 0, step: float = 1.0) -> bytes:
    return HEAD.pack(unfolding, exponent, step)


BODY = symbols.encode([np.ones((2, 4), np.int16), np.ones((2, 5), np.int16)]).tobytes()


@pytest.mark.parametrize(
    ("encoding", "rank", "data"),
    [
        (77, 0, b""),
        (FACTORS, 2, b"123"),
        (FACTORS, 3, head() + BODY),
        (FACTORS, -1, head() + BODY),
        (FACTORS, 2**31 - 1, head() + BODY),
        (FACTORS, 2, head() + BODY[:-1]),
        (FACTORS, 2, head(unfolding=1) + BODY),
        (FACTORS, 2, head(unfolding=128)),
        (FACTORS, 2, head(exponent=20000) + BODY),
        (FACTORS, 2, head(step=float("nan")) + BODY),
        (FACTORS, 2, head(step=-1.0) + BODY),
        (DENSE, -1, head() + BODY[:-2]),
        (8, -1, b"12" * 20),
        (9, 9, b"12" * 20),
        (10, -3, b"12" * 20),
    ],
)
def test_record_that_does_not_fit_names_its_layer(encoding: int, rank: int, data: bytes):
    codec = make("rdsvd", torch.zeros(4, 5))
    with pytest.raises(WireError, match="layer0"):
        codec.decode([Record(encoding, rank, np.frombuffer(data, np.uint8))], "cpu")


def test_the_intact_record_is_read():
    codec = make("rdsvd", torch.zeros(4, 5))
    (decoded,) = codec.decode([Record(FACTORS, 2, np.frombuffer(head() + BODY, np.uint8))], "cpu")
    np.testing.assert_allclose(decoded, 2 * np.ones((4, 5)) / np.sqrt(5), rtol=1e-6)


def test_matrix_encoding_of_a_bias_is_refused():
    with pytest.raises(WireError, match="layer0"):
        make("rdsvd", torch.zeros(4)).decode([Record(FACTORS, 1, np.frombuffer(head() + BODY, np.uint8))], "cpu")


def vectors(*scales: float) -> list[torch.Tensor]:
    return [
        random(1, size, scale, seed).reshape(size)
        for seed, (size, scale) in enumerate(zip((50, 7, 300), scales, strict=True))
    ]


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e20])
@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.98])
def test_with_error_feedback_vectors_go_together_and_hold_the_threshold(threshold: float, scale: float):
    first, *rest = vectors(scale, scale / 3, scale)
    update = [first, random(30, 40, scale), *rest]
    alone, _ = through(make("rdsvd", *update), *update, threshold=threshold)
    records, decoded = through(make("rdsvd", *update, error_feedback="ef"), *update, threshold=threshold)
    assert [record.encoding for record in records].count(POOLED) == 3
    assert sum(r.data.size for r in records) < sum(r.data.size for r in alone)
    joined, back = torch.cat([first, *rest]), torch.cat([decoded[i] for i in (0, 2, 3)])
    assert energy(joined, back) > threshold
    assert records[0].energy == pytest.approx(energy(joined, back), abs=1e-5)
    assert energy(update[1], decoded[1]) > threshold


def test_vectors_of_zeros_and_a_lossless_threshold_are_not_pooled():
    update = vectors(0.0, 0.0, 0.0)
    _, decoded = through(make("rdsvd", *update, error_feedback="ef"), *update)
    assert not any(tensor.any() for tensor in decoded)
    update = vectors(1.0, 2.0, 3.0)
    _, decoded = through(make("rdsvd", *update, error_feedback="ef"), *update, threshold=1.0)
    assert all(torch.equal(tensor, back) for tensor, back in zip(update, decoded, strict=True))


@pytest.mark.parametrize("fault", ["cut", "another", "mixed", "step", "alone"])
def test_pooled_vectors_that_do_not_fit_name_their_layer(fault: str):
    update = vectors(1.0, 2.0, 3.0)
    codec = make("rdsvd", *update, error_feedback="ef")
    first, second, third = encode(codec, *update)
    records = {
        "cut": [first._replace(data=first.data[:5]), second, third],
        "another": [first, second._replace(data=first.data), third],
        "mixed": [first, second, Record(RAW, -1, np.zeros(1200, np.uint8))],
        "step": [first._replace(data=np.concatenate([first.data[:2], np.zeros(4, np.uint8), first.data[6:]])), second],
        "alone": [Record(RAW, -1, np.zeros(200, np.uint8)), second, third],
    }[fault]
    with pytest.raises(WireError, match="layer"):
        codec.decode([*records, *[third] * (3 - len(records))], "cpu")
