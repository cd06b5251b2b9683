"""Variants of the partitions with which FedKD is quoted: those of PFLlib, HtFLlib and NIID-Bench.

They follow these programs' rules with this package's random streams, so their clients are alike but not the same.
"""

from __future__ import annotations

import numpy as np

from fedkd_mpi.errors import UserError

DRAWS = 1000  # smaller alphas need more than the plain Dirichlet partition
LEAST_SHARE = 10  # the smallest share of a class is a tenth of an equal one


def balanced_dirichlet(
    members: list[np.ndarray], num_clients: int, alpha: float, min_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return owners, int64 [n]: per class, Dirichlet(alpha) shares among clients that hold less than n / num_clients.

    `members` are the samples of each class. All is drawn again until every client has `min_samples`. Raises UserError
    after DRAWS draws. Source: Li et al. 2022 (NIID-Bench), arXiv:2102.02079.
    """
    total = sum(len(samples) for samples in members)
    smallest = 0
    for _ in range(DRAWS):
        owner, held = np.empty(total, np.int64), np.zeros(num_clients, np.int64)
        for samples in members:
            shares = rng.dirichlet(np.full(num_clients, alpha)) * (held < total / num_clients)
            up_to = np.cumsum(shares)
            if not up_to[-1] > 0:  # so small an alpha gives all to clients that get nothing
                break
            counts = np.diff((up_to / up_to[-1] * len(samples)).astype(np.int64), prepend=0)
            owner[rng.permutation(samples)] = np.repeat(np.arange(num_clients), counts)
            held += counts
        else:
            if held.min() >= min_samples:
                return owner
            smallest = max(smallest, int(held.min()))
    raise UserError(
        f"partition.alpha={alpha:g} with partition.balanced=true: the smallest of num_clients={num_clients} had at "
        f"most {smallest} samples in {DRAWS} draws; set partition.min_samples={min_samples} lower or alpha higher"
    )


def random_shares(count: int, holders: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sizes of the shares of a class with `count` samples, int64 [holders]; the last takes the rest.

    The others are uniform from a tenth of an equal share, or from `least` where that is more, up to an equal share.
    Source: PFLlib's pathological partition.
    """
    equal = count // holders
    sizes = rng.integers(min(max(equal // LEAST_SHARE, least, 1), equal), equal + 1, holders - 1)
    return np.append(sizes, count - sizes.sum())
