"""Epsilon of the Gaussian mechanism over the rounds of a run, under zero-out adjacency of one client.

Two runs are neighbours if all updates of one client are zero in one of them. A client's update has at most norm C in
what is released, and the noise has the standard deviation z C per number, so that k rounds with the client are one
Gaussian mechanism with mu = sqrt(k) / z (Dong, Roth and Su 2022, "Gaussian differential privacy", corollary 3.3).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedkd_mpi.errors import UserError

DIGITS = 5  # significant digits of a solved noise multiplier, which is rounded up, so that no bit of it is a library's


def log_delta(epsilon: float, mu: float) -> float:
    """Return the logarithm of the smallest delta at which a Gaussian mechanism is (epsilon, delta)-private.

    delta = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu) (Balle and Wang 2018, theorem 8).
    """
    from scipy.special import log_ndtr  # a requirement of scikit-learn

    larger = float(log_ndtr(mu / 2 - epsilon / mu))
    smaller = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return larger + math.log(-math.expm1(smaller - larger)) if smaller < larger else -math.inf


def epsilon_of(mu: float, delta: float) -> float:
    """Return the smallest epsilon at which a mechanism with mu is (epsilon, delta)-private."""
    wanted = math.log(delta)
    if mu == 0 or log_delta(0.0, mu) <= wanted:
        return 0.0
    high = 1.0
    while log_delta(high, mu) > wanted:
        high *= 2
    return _edges(0.0, high, lambda epsilon: log_delta(epsilon, mu) > wanted)[1]


def mu_of(epsilon: float, delta: float) -> float:
    """Return the largest mu at which a mechanism is (epsilon, delta)-private."""
    wanted, low, high = math.log(delta), 1.0, 1.0
    while log_delta(epsilon, low) > wanted:
        low /= 2
    while log_delta(epsilon, high) <= wanted:
        high *= 2
    return _edges(low, high, lambda mu: log_delta(epsilon, mu) <= wanted)[0]


def _edges(low: float, high: float, holds: Callable[[float], bool], share: float = 1e-15) -> tuple[float, float]:
    """Return the two numbers, no farther apart than this share, between which something ends to hold."""
    while high - low > share * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def most_frequent(cohorts: Iterable[Sequence[int]]) -> list[int]:
    """Return, after each round, in how many rounds the client has taken part that has done so most often."""
    counts: Counter[int] = Counter()
    most, found = 0, []
    for cohort in cohorts:
        counts.update(cohort)
        most = max(most, max((counts[client] for client in cohort), default=0))
        found.append(most)
    return found


class Sampling(NamedTuple):
    """Cohorts of one size that are drawn without replacement from all clients, and that nobody sees."""

    cohort: int
    clients: int


class Accountant:
    """Epsilon after every round of a run: a pure function of the cohorts, the noise multiplier z and delta.

    `counts` are those of most_frequent(). With `sampling` epsilon is the smaller one of two: that of the composition
    over `counts`, for which cohorts may be known, and that of sampling without replacement. Raises UserError if the
    latter needs a package that is missing.
    """

    def __init__(self, counts: Sequence[int], noise_multiplier: float, delta: float, sampling: Sampling | None = None):
        self.counts, self.noise_multiplier, self.delta, self.sampling = counts, noise_multiplier, delta, sampling
        if sampling:
            require_package()

    def epsilon(self, rounds: int) -> float:
        """Return epsilon of the first `rounds` rounds."""
        if rounds == 0:
            return 0.0
        known = epsilon_of(math.sqrt(self.counts[rounds - 1]) / self.noise_multiplier, self.delta)
        if not self.sampling:
            return known
        return min(known, sampled_epsilon(rounds, self.noise_multiplier, self.delta, self.sampling))

    def rounds_within(self, epsilon: float) -> int:
        """Return how many of the first rounds have at most this epsilon, which never falls from round to round."""
        low, high = 0, len(self.counts)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle - 1)
        return low


def solve(epsilon: float, counts: Sequence[int], delta: float, sampling: Sampling | None = None) -> float:
    """Return the smallest noise multiplier z at which all rounds of `counts` have at most this epsilon, rounded up."""
    rounds = len(counts)
    found = math.sqrt(counts[-1]) / mu_of(epsilon, delta)
    if sampling:
        require_package()
        low = found
        while sampled_epsilon(rounds, low, delta, sampling) <= epsilon:
            low /= 2
        if low < found:
            found = _edges(low, 2 * low, lambda z: sampled_epsilon(rounds, z, delta, sampling) > epsilon, 1e-5)[1]
    unit = 10.0 ** (math.floor(math.log10(found)) + 1 - DIGITS)
    for steps in itertools.count(math.ceil(found / unit)):
        z = float(f"{steps * unit:.{DIGITS}g}")
        if Accountant(counts, z, delta, sampling).epsilon(rounds) <= epsilon:
            break
    return z


def sampled_epsilon(rounds: int, noise_multiplier: float, delta: float, sampling: Sampling) -> float:
    """Return epsilon of rounds whose cohorts are drawn without replacement and unknown (Wang et al. 2019, theorem 27).

    The theorem is for one client replaced by another: the sum then changes by 2 C, so that half of z counts. It
    includes a client whose updates are zero, and thereby zero-out adjacency. No client may remember earlier rounds.
    """
    from dp_accounting.rdp import compute_epsilon

    orders, divergences = _of_one_round(noise_multiplier, sampling)
    return float(compute_epsilon(orders, rounds * divergences, delta)[0])


@lru_cache(maxsize=1)
def _of_one_round(noise_multiplier: float, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return orders and Renyi divergences of one round, which add up over rounds."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier / 2)
    event = dp_accounting.SampledWithoutReplacementDpEvent(sampling.clients, sampling.cohort, gaussian)
    accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE).compose(event)
    return np.array(accountant.orders), np.array(accountant.rdp)


def require_package() -> None:
    """Raise UserError if the package is missing that knows sampling without replacement."""
    try:
        import dp_accounting  # noqa: F401 - whether it is there
    except ImportError as error:
        raise UserError(
            f"privacy.secret_cohorts=true needs the package dp-accounting ({error}): pip install 'fedkd-mpi[privacy]',"
            " or set it to false"
        ) from None
