"""Codec sz3: the bound of every entry, and what is said where its library is missing."""

from __future__ import annotations

import sys

import pytest
import torch
from codec_tools import make, through
from matrices import MATRICES, energy, random, with_spectrum

from fedkd_mpi.codecs.tags import RAW, SZ3
from fedkd_mpi.errors import UserError


@pytest.mark.parametrize("bound", [0.001, 0.01, 0.1, 0.4])
@pytest.mark.parametrize("name", MATRICES)
def test_no_entry_errs_by_more_than_its_share_of_the_range(name: str, bound: float):
    matrix = MATRICES[name]
    (record,), (decoded,) = through(make("sz3", matrix, error_bound=bound), matrix)
    most = bound * float(matrix.double().max() - matrix.double().min())
    rounding = 2e-6 * float(matrix.double().abs().max()) + 2**-149
    assert float((decoded.double() - matrix.double()).abs().max()) <= most + rounding
    assert record.data.size <= 4 * matrix.numel()
    if name != "denormal":
        assert record.energy == pytest.approx(energy(matrix, decoded), abs=1e-6)


def test_a_rougher_bound_takes_fewer_bytes_and_small_tensors_go_raw():
    tensors = [random(100, 120), random(1, 9), torch.tensor(2.0), torch.empty(3, 0), torch.zeros(40, 40)]
    sizes = {}
    for bound in (0.001, 0.01, 0.1, 0.3):
        records, decoded = through(make("sz3", *tensors, error_bound=bound), *tensors)
        assert [record.encoding for record in records] == [SZ3, RAW, RAW, RAW, SZ3]
        assert records[4].data.size == 0
        assert all(torch.equal(t, back) for t, back in zip(tensors[1:], decoded[1:], strict=True))
        sizes[bound] = records[0].data.size
    assert sizes[0.001] > 1.5 * sizes[0.01] > 1.5 * 1.5 * sizes[0.1] > 1.5**3 * sizes[0.3]


def test_a_smooth_tensor_takes_fewer_bytes_than_a_rough_one_of_the_same_range():
    rough, smooth = random(100, 100), with_spectrum([1.0], 100, 100).sort(0).values.sort(1).values
    sizes = [through(make("sz3", tensor), tensor)[0][0].data.size for tensor in (rough, smooth)]
    assert sizes[1] < sizes[0] / 2


def test_without_its_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pysz", None)
    with pytest.raises(UserError, match=r"codec=sz3 needs the package pysz .*: pip install 'fedkd-mpi\[codecs\]'"):
        make("sz3", random(3, 3))
