"""Small matrices factorised in stacks, against float64; tests/linalg/test_low_rank.py has what holds for all."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import energy, random, smallest_ranks, with_spectrum
from mpirun import run

from fedkd_mpi.linalg.batched import factorize, proven
from fedkd_mpi.linalg.low_rank import exact

THRESHOLDS = (0.3, 0.9, 0.95, 0.98, 0.999)


def test_bits_do_not_depend_on_the_threads_of_the_blas_of_numpy():
    # two processes of one run may see different numbers of cores, and numpy does not heed torch's number of threads
    worker = Path(__file__).parents[1] / "helpers" / "worker_factors.py"
    printed = {run([sys.executable, worker], env={"OPENBLAS_NUM_THREADS": str(threads)}).stdout for threads in (1, 4)}
    assert len(printed) == 1
    assert printed.pop().startswith("[")


@settings(max_examples=80, deadline=None)
@given(
    short=st.integers(2, 127),
    long=st.integers(2, 150),
    values=st.lists(st.sampled_from([1.0, 1.0, 0.7, 0.5, 0.2, 0.1, 0.03]), min_size=1, max_size=40),
    tail=st.floats(0, 0.2),
    threshold=st.sampled_from(THRESHOLDS),
    near=st.sampled_from([None, None, 1e-4, 1e-6, 1e-8, -1e-8, -1e-6, -1e-4]),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_small_matrices_have_the_smallest_rank_whatever_their_spectrum(
    short: int,
    long: int,
    values: list[float],
    tail: float,
    threshold: float,
    near: float | None,
    transposed: bool,
    seed: int,
):
    # repeated values, flat tails, and cumulative energies that are hardly above or below the threshold
    sizes = sorted((short, long))
    sigma = np.r_[np.sort(values)[::-1], np.full(sizes[0], tail / np.sqrt(sizes[0]))][: sizes[0]]
    if near is not None:
        cumulative = np.cumsum(sigma**2) / np.sum(sigma**2)
        threshold = min(float(cumulative[(cumulative <= threshold).sum()]) + near, 1.0)
    matrix = with_spectrum(sigma, *sizes, seed)
    matrix = matrix.T.contiguous() if transposed else matrix
    factors = exact(matrix, threshold)
    assert factors.rank in smallest_ranks(matrix, threshold, tie=1e-7)
    assert energy(matrix, factors.left.double() @ factors.right.double()) > threshold - 1e-6
    if threshold < 0.9999:  # else there may be directions without energy
        assert torch.dist(factors.right @ factors.right.T, torch.eye(factors.rank)) < 3e-3


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(17, 60),
    decay=st.floats(0.5, 1.0),
    lowest=st.floats(0, 0.1),
    steps=st.integers(0, 3),
    hidden=st.integers(0, 3),
    threshold=st.floats(0.1, 0.995),
    seed=st.integers(0, 2**16),
)
def test_what_is_proven_of_a_block_is_true(
    size: int, decay: float, lowest: float, steps: int, hidden: int, threshold: float, seed: int
):
    rng = np.random.default_rng(seed)
    values = decay ** np.arange(size) + lowest
    axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
    symmetric = (axes * values) @ axes.T
    block = rng.standard_normal((size, 16))
    block -= axes[:, :hidden] @ (axes[:, :hidden].T @ block)  # it does not see the largest of all
    block = np.linalg.qr(np.linalg.matrix_power(symmetric, steps) @ block)[0]
    ritz, turn = (part[..., ::-1] for part in np.linalg.eigh(block.T @ symmetric @ block))
    errors = np.square(symmetric @ block @ turn - block @ turn * ritz).sum(0)
    total, squares = values.sum(), np.square(values).sum()
    rank, kept = proven(total, squares, ritz.tolist(), errors.tolist(), threshold)
    if rank:
        assert rank == (np.cumsum(values) <= threshold * total).sum() + 1
        assert kept == pytest.approx(ritz[:rank].sum() / total)


@pytest.mark.parametrize("strength", [3.0, 1.0, 0.5, 0.1])
def test_a_direction_that_the_block_of_a_small_matrix_does_not_see_is_not_missed(strength: float):
    # the block starts from sums of every 16th row of the Gram matrix, in which this left vector cancels out
    unseen = torch.cat([torch.ones(16), -torch.ones(16)]).repeat(2)[:, None] / 8
    rest = with_spectrum(0.6 ** np.arange(12), 64, 100)
    rest -= unseen @ (unseen.T @ rest)
    matrix = rest + strength * unseen @ torch.nn.functional.normalize(random(1, 100))
    for threshold in THRESHOLDS:
        assert exact(matrix, threshold).rank in smallest_ranks(matrix, threshold, tie=1e-7)


def test_a_falling_spectrum_of_a_small_matrix_needs_no_other_way_and_a_flat_one_does():
    falling, flat = (with_spectrum(decay ** np.arange(64), 64, 128) for decay in (0.8, 1.0))
    found = factorize([falling, flat, falling.T, random(10, 64), torch.zeros(10, 64)], 0.95)
    assert [factors is not None for factors in found] == [True, False, True, True, False]
