"""The exact factorisation against a float64 SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import MATRICES, energy, random, smallest_ranks, with_spectrum

from fedkd_mpi.linalg.low_rank import exact, exact_each, fast
from fedkd_mpi.linalg.subspace import steep

THRESHOLDS = (0.3, 0.9, 0.95, 0.98, 0.999)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", MATRICES)
def test_rank_is_the_smallest_above_the_threshold(name: str, threshold: float):
    matrix = MATRICES[name]
    factors = exact(matrix, threshold)
    assert factors.rank in smallest_ranks(matrix, threshold)
    assert factors.left.shape == (matrix.shape[0], factors.rank)
    assert factors.right.shape == (factors.rank, matrix.shape[1])


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", [name for name in MATRICES if name != "denormal"])  # its sums have few bits left
def test_energy_kept_is_above_the_threshold_and_as_stated(name: str, threshold: float):
    matrix = MATRICES[name]
    factors = exact(matrix, threshold)
    kept = energy(matrix, factors.left.double() @ factors.right.double())
    assert kept > threshold - 1e-9
    assert kept == pytest.approx(factors.energy, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    decay=st.floats(0.3, 1.0),
    exponent=st.integers(-30, 30),
    threshold=st.floats(0.05, 0.999),
    seed=st.integers(0, 2**16),
)
def test_any_spectrum_and_scale(rows: int, columns: int, decay: float, exponent: int, threshold: float, seed: int):
    sigma = 10.0**exponent * decay ** np.arange(min(rows, columns))
    matrix = with_spectrum(sigma, rows, columns, seed)
    factors = exact(matrix, threshold)
    assert factors.rank in smallest_ranks(matrix, threshold, tie=1e-7)
    assert energy(matrix, factors.left.double() @ factors.right.double()) > threshold - 1e-6


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_together_the_matrices_have_the_ranks_and_energies_that_each_has_alone(threshold: float):
    falling = with_spectrum(0.8 ** np.arange(40), 40, 90, seed=1)
    together = [*MATRICES.values(), falling, falling.T, torch.zeros(40, 90), random(40, 90, 1e9), random(40, 90, 1e-9)]
    for matrix, factors in zip(together, exact_each(together, threshold), strict=True):
        alone = exact(matrix, threshold)
        assert factors.rank == alone.rank
        np.testing.assert_allclose(
            factors.left @ factors.right, alone.left @ alone.right, rtol=1e-3, atol=1e-5 * float(matrix.abs().max())
        )
        assert factors.energy == pytest.approx(alone.energy, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.lists(
        st.sampled_from([1, 2, 9, 10, 16, 17, 31, 32, 33, 50, 64, 100, 127, 128, 130]), min_size=2, max_size=3
    ),
    decays=st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0]), min_size=2, max_size=20),
    threshold=st.sampled_from((*THRESHOLDS, 1.0)),
    seed=st.integers(0, 2**16),
)
def test_the_bits_of_a_matrix_do_not_depend_on_those_it_is_factorised_with(
    sides: list[int], decays: list[float], threshold: float, seed: int
):
    # which clients share a process, and so whose updates are encoded together, depends on the number of ranks
    rng, matrices = np.random.default_rng(seed), []
    for i, decay in enumerate(decays):
        shape = rng.choice(sides, 2)
        scale = [1.0, 1.0, 1.0, 1e-12, 1e12, 0.0][rng.integers(6)]
        matrices.append(with_spectrum(scale * decay ** np.arange(min(shape)), *shape, seed + i))
    matrices = [matrix.T if i % 3 == 0 else matrix for i, matrix in enumerate(matrices)]
    alone = [exact(matrix.clone(), threshold) for matrix in matrices]
    for order in (np.arange(len(matrices)), rng.permutation(len(matrices))):
        for index, factors in zip(order, exact_each([matrices[i] for i in order], threshold), strict=True):
            assert torch.equal(factors.left, alone[index].left)
            assert torch.equal(factors.right, alone[index].right)
            assert factors.energy == alone[index].energy


def test_a_rank_at_the_threshold_is_decided_in_float64_in_a_stack_too():
    sigma = np.sqrt(np.array([0.95 + 2e-7, 0.03, 0.02 - 2e-7]))
    for matrix in exact_each([with_spectrum(sigma, 30, 50, seed) for seed in range(4)], 0.95):
        assert matrix.rank == 1


def test_left_carries_the_singular_values_in_falling_order():
    matrix = with_spectrum(np.array([5.0, 3.0, 2.0, 1.0]), 9, 12)
    factors = exact(matrix, 0.999)
    np.testing.assert_allclose(factors.left.norm(dim=0).numpy(), [5, 3, 2, 1], rtol=1e-5)
    np.testing.assert_allclose(factors.right @ factors.right.T, np.eye(4), atol=1e-5)


def test_rank_zero_belongs_to_the_zero_matrix_alone():
    factors = exact(torch.zeros(6, 9), 0.95)
    assert (factors.rank, factors.energy) == (0, 1.0)
    assert torch.equal(factors.left @ factors.right, torch.zeros(6, 9))
    assert exact(torch.full((6, 9), 1e-45), 0.95).rank == 1


def test_threshold_one_keeps_everything():
    matrix = random(7, 5)
    factors = exact(matrix, 1.0)
    assert factors.rank == 5
    np.testing.assert_allclose(factors.left @ factors.right, matrix, atol=1e-5)


def test_fault_1_full_rank_is_tried():
    # the public loop tests k = 0..n-1 and leaves K = 0 when all n are needed
    assert exact(torch.eye(20), 0.98).rank == 20
    assert exact(random(1, 50), 0.95).rank == 1
    assert exact(random(50, 1), 0.95).rank == 1


def test_input_is_left_alone():
    matrix = random(10, 6)
    before = matrix.clone()
    exact(matrix, 0.9)
    assert torch.equal(matrix, before)


def test_same_bits_twice():
    matrix = random(33, 47)
    first, second = exact(matrix, 0.95), exact(matrix.clone(), 0.95)
    assert torch.equal(first.left, second.left)
    assert torch.equal(first.right, second.right)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", MATRICES)
def test_a_warm_start_of_anything_keeps_the_energy(name: str, threshold: float):
    matrix = MATRICES[name]
    for start in (None, exact(matrix, threshold).left, random(matrix.shape[0], 3, 1e20), torch.zeros(len(matrix), 2)):
        factors = fast(matrix, threshold, start)
        kept = energy(matrix, factors.left.double() @ factors.right.double())
        assert name == "denormal" or kept > threshold - 1e-9
        assert factors.rank >= min(smallest_ranks(matrix, threshold))


@pytest.mark.parametrize("shape", [(64, 300), (300, 64), (128, 128), (400, 200)])
@pytest.mark.parametrize("directions", [6, 40])  # on the matrix itself, on its Gram matrix
def test_a_warm_start_finds_nearly_the_smallest_rank(shape: tuple[int, int], directions: int):
    before = with_spectrum(0.9 ** np.arange(directions), *shape, seed=1)
    matrix = before + with_spectrum(0.05 * 0.95 ** np.arange(50), *shape, seed=2)
    start = exact(before, 0.95).left
    factors, best = fast(matrix, 0.95, start), exact(matrix, 0.95)
    assert best.rank <= factors.rank <= 1.04 * best.rank + 1
    assert energy(matrix, factors.left.double() @ factors.right.double()) > 0.95
    assert factors.energy == pytest.approx(energy(matrix, factors.left.double() @ factors.right.double()), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    visible=st.integers(1, 20),
    hidden=st.integers(0, 3),
    decay=st.floats(0.4, 0.95),
    strength=st.floats(0.01, 1.0),
    threshold=st.sampled_from(THRESHOLDS),
    transposed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_directions_that_the_first_block_does_not_see_are_not_missed(
    visible: int, hidden: int, decay: float, strength: float, threshold: float, transposed: bool, seed: int
):
    # steep() starts from sums of columns 16 or 32 apart, in which these right vectors cancel out
    rng = np.random.default_rng(seed)
    rows, columns = 130, 256
    left = np.linalg.qr(rng.standard_normal((rows, visible + hidden + 40)))[0]
    right = rng.standard_normal((columns, left.shape[1]))
    signs = np.where(np.arange(columns) // 32 % 2, -1.0, 1.0)
    right[:, :hidden] = np.tile(right[:32, :hidden], (8, 1)) * signs[:, None]
    right = np.linalg.qr(right)[0]
    sigma = np.r_[np.full(hidden, strength), decay ** np.arange(visible), 0.01 * 0.9 ** np.arange(40)]
    matrix = torch.from_numpy(((left * sigma) @ right.T).astype(np.float32))
    matrix = matrix.T.contiguous() if transposed else matrix
    factors = exact(matrix, threshold)
    assert factors.rank in smallest_ranks(matrix, threshold, tie=1e-7)
    assert energy(matrix, factors.left.double() @ factors.right.double()) > threshold - 1e-6


def test_a_steep_spectrum_is_proven_without_its_gram_matrix():
    matrix = with_spectrum(np.r_[0.5 ** np.arange(6), 0.001 * 0.9 ** np.arange(60)], 200, 300)
    basis, energy_kept = steep(matrix, 0.98)[0]
    assert basis.shape == (200, min(smallest_ranks(matrix, 0.98)))
    assert 0.98 < energy_kept < 1


@pytest.mark.parametrize("decay", [0.96, 0.98, 1.0])
def test_a_spectrum_that_is_not_steep_is_left_to_others(decay: float):
    assert steep(with_spectrum(decay ** np.arange(100), 200, 300), 0.95)[0] is None
