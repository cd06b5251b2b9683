"""The accountant against dp-accounting, and against the definition of differential privacy."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from fedkd_mpi.errors import UserError
from fedkd_mpi.privacy.accountant import (
    Accountant,
    Sampling,
    epsilon_of,
    log_delta,
    most_frequent,
    mu_of,
    sampled_epsilon,
    solve,
)

dp_accounting = pytest.importorskip("dp_accounting")

ROUNDS = [
    (1, 0.5, 1e-5),
    (40, 3.8, 1e-5),
    (1000, 50, 1e-6),
    (1, 1000, 1e-5),
    (4, 2, 1e-12),
    (9, 0.1, 1e-3),
    (1, 30, 0.4),
]


@pytest.mark.parametrize(("rounds", "noise", "delta"), ROUNDS)
def test_full_participation_is_dp_accountings_gaussian(rounds: int, noise: float, delta: float) -> None:
    accountant = Accountant(range(1, rounds + 1), noise, delta)
    expected = dp_accounting.get_epsilon_gaussian(noise / math.sqrt(rounds), delta)
    assert accountant.epsilon(rounds) == pytest.approx(expected, abs=1e-6)


def test_full_participation_is_dp_accountings_privacy_loss_distribution() -> None:
    """Whose own grid of losses makes it larger, by less than its step."""
    from dp_accounting.pld import PLDAccountant

    reference = PLDAccountant(value_discretization_interval=1e-4)
    reference.compose(dp_accounting.GaussianDpEvent(3.8), 40)
    found = Accountant(range(1, 41), 3.8, 1e-5).epsilon(40)
    assert found == pytest.approx(reference.get_epsilon(1e-5), abs=1e-6)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (0.7, 0.3), (3.0, 2.0), (20.0, 5.0)])
def test_delta_is_the_hockey_stick_divergence_of_two_gaussians(epsilon: float, mu: float) -> None:
    def excess(x: float) -> float:
        return max(0.0, float(norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x)))

    begin = epsilon / mu + mu / 2  # from where on the first density exceeds the other
    assert math.exp(log_delta(epsilon, mu)) == pytest.approx(quad(excess, begin, begin + 12)[0], rel=1e-7)


def test_far_tails_neither_overflow_nor_vanish() -> None:
    for mu in (1e-6, 1e-2, 1.0, 1e3, 1e6):
        for delta in (1e-300, 1e-12, 1e-2):
            epsilon = epsilon_of(mu, delta)
            assert math.isfinite(epsilon)
            assert epsilon == 0 or log_delta(epsilon, mu) == pytest.approx(math.log(delta), rel=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 1e-12])
@pytest.mark.parametrize("epsilon", [0.001, 0.5, 8, 100])
def test_mu_is_the_inverse_of_epsilon(epsilon: float, delta: float) -> None:
    assert epsilon_of(mu_of(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-9)


def test_rounds_in_which_the_most_frequent_client_took_part() -> None:
    assert most_frequent([[0, 1], [2, 3], [1, 2], [1, 4], [5, 6]]) == [1, 1, 2, 3, 3]


def test_known_cohorts_are_composed_over_the_most_frequent_clients_rounds() -> None:
    rng = np.random.default_rng(3)
    cohorts = [rng.choice(30, 5, replace=False).tolist() for _ in range(12)]
    accountant = Accountant(most_frequent(cohorts), 2.0, 1e-5)
    for rounds in (1, 5, 12):
        most = max(sum(client in cohort for cohort in cohorts[:rounds]) for client in range(30))
        expected = dp_accounting.get_epsilon_gaussian(2.0 / math.sqrt(most), 1e-5)
        assert accountant.epsilon(rounds) == pytest.approx(expected, abs=1e-6)
    assert accountant.epsilon(0) == 0


@pytest.mark.parametrize(("clients", "cohort", "noise"), [(1000, 200, 2.0), (1000, 10, 2.0)])
def test_secret_cohorts_count_at_half_the_noise_as_dp_accounting_has_it(
    clients: int, cohort: int, noise: float
) -> None:
    """Never below the smaller one of the two figures that dp-accounting has for the run."""
    from dp_accounting.rdp import RdpAccountant

    event = dp_accounting.SampledWithoutReplacementDpEvent(clients, cohort, dp_accounting.GaussianDpEvent(noise / 2))
    reference = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    amplified = reference.compose(event, 20).get_epsilon(1e-4)
    assert sampled_epsilon(20, noise, 1e-4, Sampling(cohort, clients)) == pytest.approx(amplified, rel=1e-9)
    rng = np.random.default_rng(0)
    counts = most_frequent(rng.choice(clients, cohort, replace=False).tolist() for _ in range(20))
    known = dp_accounting.get_epsilon_gaussian(noise / math.sqrt(counts[-1]), 1e-4)
    found = Accountant(counts, noise, 1e-4, Sampling(cohort, clients)).epsilon(20)
    assert found == pytest.approx(min(known, amplified), abs=1e-6)
    assert found >= min(known, amplified) - 1e-9
    assert (amplified < known) == (cohort == 10)  # both cases were seen


@pytest.mark.parametrize("sampling", [None, Sampling(10, 1000)])
def test_the_solved_noise_is_the_least_of_five_digits(sampling: Sampling | None) -> None:
    counts = [1, 1, 2, 2, 3]
    noise = solve(1.5, counts, 1e-5, sampling)
    assert float(f"{noise:.5g}") == noise
    assert Accountant(counts, noise, 1e-5, sampling).epsilon(5) <= 1.5
    assert Accountant(counts, noise * (1 - 3e-4), 1e-5, sampling).epsilon(5) > 1.5


def test_rounds_that_an_epsilon_allows() -> None:
    accountant = Accountant(range(1, 101), 4.0, 1e-5)
    for most in (0.0, 1e-9, 1.0, 3.0, 5.0, 1e3):
        allowed = [rounds for rounds in range(101) if accountant.epsilon(rounds) <= most]
        assert accountant.rounds_within(most) == allowed[-1]


def test_a_missing_package_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"privacy.secret_cohorts=true needs the package dp-accounting .*\[privacy\]"):
        Accountant([1], 1.0, 1e-5, Sampling(1, 2))
    assert Accountant([1], 1.0, 1e-5).epsilon(1) > 0
