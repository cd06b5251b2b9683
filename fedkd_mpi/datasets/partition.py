"""Partition of samples among clients: each partitioner assigns every sample to exactly one owner."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.datasets.published_partition import balanced_dirichlet, random_shares
from fedkd_mpi.errors import UserError, one_line

# A partitioner is called as (labels, num_clients, rng, alpha=, classes_per_client=, groups=, min_samples=) and returns
# the owner of every sample, int64 [n] in 0..num_clients-1.
Partitioner = Callable[..., np.ndarray]
PARTITIONERS = {
    "iid": "fedkd_mpi.datasets.partition:iid",
    "dirichlet": "fedkd_mpi.datasets.partition:dirichlet",
    "pathological": "fedkd_mpi.datasets.partition:pathological",
    "natural": "fedkd_mpi.datasets.partition:natural",
}

DRAWS = 100
SUGGESTED_DRAWS = 10
SUGGESTED_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)


def partition(
    kind: str,
    labels: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float | None = None,
    classes_per_client: int | None = None,
    balanced: bool | None = None,
    unbalanced: bool | None = None,
    groups: np.ndarray | None = None,
    min_samples: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """Return the samples of every client: sorted, disjoint int64 indices into `labels` that cover all samples.

    `labels` is [n], one class per sample (iid and natural use only its length), `groups` int64 [n] is the natural owner
    of each sample, `kind` is a key of PARTITIONERS or a dotted path. The same state of `rng` gives the same partition.
    `balanced` and `unbalanced` choose the variants of published_partition. A user's partitioner gets `options` too.
    Raises UserError with feasible values if a client would have fewer than `min_samples` samples.
    """
    labels = np.asarray(labels)
    if num_clients < 1:
        raise UserError(f"num_clients={num_clients} must be at least 1")
    min_samples = max(min_samples, 1)
    if num_clients * min_samples > len(labels):
        raise UserError(
            f"num_clients={num_clients} with partition.min_samples={min_samples} needs {num_clients * min_samples} "
            f"samples, but there are {len(labels)}: at most {len(labels) // min_samples} clients"
        )
    partitioner: Partitioner = resolve(
        kind, PARTITIONERS, "partition.kind", function_of("labels", "num_clients", "rng")
    )
    given: dict[str, Any] = {"groups": groups, "min_samples": min_samples}
    if ":" in kind:
        given |= {"options": dict(options or {})}
    else:
        given |= {"alpha": alpha, "classes_per_client": classes_per_client}
        given |= {"balanced": balanced, "unbalanced": unbalanced}
    try:
        owner = np.asarray(partitioner(labels, num_clients, rng, **given))
    except UserError:
        raise
    except Exception as error:
        if ":" not in kind:
            raise
        raise UserError(f"partition.kind={kind}: {one_line(error)}") from error
    whole = owner.shape == labels.shape[:1] and np.issubdtype(owner.dtype, np.integer)
    if not whole or owner.min() < 0 or owner.max() >= num_clients:
        raise UserError(
            f"partition.kind={kind} must give each of the {len(labels)} samples a client below {num_clients}"
        )
    sizes = np.bincount(owner, minlength=num_clients)
    if sizes.min() < min_samples:
        lower = f"set that to at most {sizes.min()} or " if sizes.min() > 1 else ""
        raise UserError(
            f"partition.kind={kind} leaves client {sizes.argmin()} with {sizes.min()} samples, fewer than "
            f"partition.min_samples={min_samples}: {lower}lower num_clients={num_clients}"
        )
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(sizes)[:-1])


def split(
    indices: np.ndarray,
    labels: np.ndarray,
    test_fraction: float,
    rng: np.random.Generator,
    documents: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples of one client as (train, test), both sorted, and non-empty for two or more samples.

    `indices` refer to `labels` [n] of the whole data set. The split is stratified: the share of each class in the test
    set is rounded down or up. With `documents` int64 [n], the samples of a document are all in the training set or all
    in the test set. Raises UserError if test_fraction is not in (0, 1), or if all samples are of one document.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"partition.test_fraction={test_fraction} must lie between 0 and 1")
    count = len(indices)
    held_out = min(max(round(test_fraction * count), 1), count - 1)
    if documents is not None:
        is_test = _whole_documents(documents[indices], held_out, rng)
        return np.sort(indices[~is_test]), np.sort(indices[is_test])
    shuffled = rng.permutation(indices)
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    # Evenly spaced picks along the classes in integers: exactly held_out picks from a random start.
    is_test = (np.arange(count) * held_out + rng.integers(count)) % count < held_out
    return np.sort(by_class[~is_test]), np.sort(by_class[is_test])


def _whole_documents(documents: np.ndarray, held_out: int, rng: np.random.Generator) -> np.ndarray:
    names, document, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise UserError("all samples of a client are of one document: none is left to test on; set fewer num_clients")
    order = rng.permutation(len(names))
    count = np.searchsorted(np.cumsum(sizes[order]), held_out) + 1
    return np.isin(document, order[: min(count, len(names) - 1)])


def iid(labels: np.ndarray, num_clients: int, rng: np.random.Generator, **_: object) -> np.ndarray:
    """Return owners drawn independently of labels; the numbers of samples of clients differ by at most one."""
    return rng.permutation(np.arange(len(labels)) % num_clients)


def dirichlet(
    labels: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    alpha: float | None,
    min_samples: int,
    balanced: bool | None = None,
    **_: object,
) -> np.ndarray:
    """Return owners; each class is divided among the clients by shares from a symmetric Dirichlet(alpha).

    Shares are drawn again until the smallest client has `min_samples`. After DRAWS draws, UserError is raised with
    values that are feasible for this `rng`. Source: Yurochkin et al. 2019, arXiv:1905.12022.
    """
    if alpha is None or not 0 < alpha < math.inf:
        raise UserError(f"partition.alpha={alpha} must be a positive, finite number")
    members = _members(labels)
    if balanced:
        return balanced_dirichlet(members, num_clients, alpha, min_samples, rng)
    sizes = np.array([len(samples) for samples in members])
    untouched = copy.deepcopy(rng)
    counts, smallest = _draw(sizes, num_clients, alpha, min_samples, rng, DRAWS)
    if smallest < min_samples:
        raise UserError(
            f"partition.alpha={alpha:g} left one of num_clients={num_clients} with fewer than "
            f"partition.min_samples={min_samples} of {len(labels)} samples in each of {DRAWS} draws; feasible here: "
            + _feasible(sizes, num_clients, alpha, min_samples, smallest, untouched)
        )
    owner = np.empty(len(labels), np.int64)
    for samples, count in zip(members, counts, strict=True):
        owner[rng.permutation(samples)] = np.repeat(np.arange(num_clients), count)
    return owner


def pathological(
    labels: np.ndarray,
    num_clients: int,
    rng: np.random.Generator,
    *,
    classes_per_client: int | None,
    min_samples: int,
    unbalanced: bool | None = None,
    **_: object,
) -> np.ndarray:
    """Return owners such that every client has exactly `classes_per_client` classes and every sample is used.

    As the shards of McMahan et al. 2017 (arXiv:1602.05629), section 3, except that each shard has one class and the
    shards of a client have distinct classes. Raises UserError with the feasible range.
    """
    members = _members(labels)
    sizes = np.array([len(samples) for samples in members])
    most_holders = np.minimum(sizes, num_clients)
    low, high = math.ceil(len(sizes) / num_clients), int(most_holders.sum()) // num_clients
    if classes_per_client is None or not low <= classes_per_client <= high:
        feasible = f"feasible: {low}..{high}" if low <= high else "nothing else is feasible: change num_clients"
        raise UserError(
            f"partition.classes_per_client={classes_per_client} cannot divide {len(sizes)} classes among "
            f"num_clients={num_clients}; {feasible}"
        )
    # The class with the largest shards is divided further until there are enough shards for all clients.
    holders = np.ones(len(sizes), np.int64)
    for _shard in range(num_clients * classes_per_client - len(sizes)):
        holders[np.argmax(np.where(holders < most_holders, sizes / holders, 0))] += 1
    holds = np.zeros((len(sizes), num_clients), bool)
    for left, client in zip(range(num_clients, 0, -1), rng.permutation(num_clients), strict=True):
        # Weighted sampling without replacement (Efraimidis and Spirakis 2006); a class with as many shards as
        # clients left must be taken now, which keeps the rest feasible.
        order = np.divide(
            rng.standard_exponential(len(sizes)), holders, out=np.full(len(sizes), np.inf), where=holders > 0
        )
        order[holders == left] = -1
        taken = np.argsort(order, kind="stable")[:classes_per_client]
        holders[taken] -= 1
        holds[taken, client] = True
    owner = np.empty(len(labels), np.int64)
    for samples, row in zip(members, holds, strict=True):
        own = rng.permutation(np.flatnonzero(row))
        if unbalanced:
            least = math.ceil(min_samples / classes_per_client)
            owner[rng.permutation(samples)] = np.repeat(own, random_shares(len(samples), len(own), least, rng))
        else:
            owner[rng.permutation(samples)] = np.resize(own, len(samples))
    return owner


def natural(
    labels: np.ndarray, num_clients: int, rng: np.random.Generator, *, groups: np.ndarray | None, **_: object
) -> np.ndarray:
    """Return the natural owners of the data: one group per client, or nearly equal runs of consecutive groups.

    Raises UserError if the data have no groups, or fewer groups than clients.
    """
    if groups is None:
        raise UserError("partition.kind=natural needs data whose samples have owners; this data set has none")
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < num_clients:
        raise UserError(
            f"partition.kind=natural: num_clients={num_clients} but the data have {len(names)} groups; "
            f"set num_clients to {len(names)} (one group per client) or fewer (several groups per client)"
        )
    return group.astype(np.int64) * num_clients // len(names)


def _members(labels: np.ndarray) -> list[np.ndarray]:
    if labels.ndim != 1:
        raise UserError("this partition.kind needs data with one class per sample; use iid or natural")
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _draw(
    sizes: np.ndarray, num_clients: int, alpha: float, min_samples: int, rng: np.random.Generator, draws: int
) -> tuple[np.ndarray, int]:
    # Returns the last counts [class, client] and the largest minimum over clients of all draws.
    best = 0
    for _attempt in range(draws):
        counts = _dirichlet_counts(sizes, num_clients, alpha, rng)
        best = max(best, int(counts.sum(axis=0).min()))
        if best >= min_samples:
            break
    return counts, best


def _feasible(
    sizes: np.ndarray, num_clients: int, alpha: float, min_samples: int, smallest: int, rng: np.random.Generator
) -> str:
    def works(clients: int, concentration: float) -> bool:
        _, reached = _draw(sizes, clients, concentration, min_samples, copy.deepcopy(rng), SUGGESTED_DRAWS)
        return reached >= min_samples

    # A client needs two samples: one for training and one for the test.
    ways = [f"partition.min_samples={smallest}"] if smallest > 1 else []
    enough = next((other for other in SUGGESTED_ALPHAS if other > alpha and works(num_clients, other)), None)
    if enough is not None:
        ways.append(f"partition.alpha={enough:g}")
    fewer = num_clients // 2
    while fewer > 1 and not works(fewer, alpha):
        fewer //= 2
    return " or ".join([*ways, f"num_clients={fewer}"])


def _dirichlet_counts(sizes: np.ndarray, num_clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    # Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms, so that a tiny alpha gives one owner and not 0/0 (Marsaglia and
    # Tsang 2000); below 1e-300 even the logarithm overflows, and the shares are one-hot long before.
    alpha = max(alpha, 1e-300)
    shape = (len(sizes), num_clients)
    log_gamma = np.log(rng.standard_gamma(alpha + 1, shape)) - rng.standard_exponential(shape) / alpha
    shares = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    # Rounding from a random start gives each client its share in expectation; the sum is exact.
    edges = np.floor(np.cumsum(shares, axis=1) * sizes[:, np.newaxis] + rng.random((len(sizes), 1))).astype(np.int64)
    edges = np.minimum(edges, sizes[:, np.newaxis])
    edges[:, -1] = sizes
    return np.diff(edges, prepend=0, axis=1)
