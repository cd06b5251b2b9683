"""The partitions of published protocols: what can be seen of their rules in any result, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_partition import assert_divides, balanced, rng

from fedkd_mpi.datasets.partition import partition
from fedkd_mpi.errors import UserError

labels_arrays = st.lists(st.integers(0, 9), min_size=20, max_size=300).map(np.array)
few = settings(max_examples=60, deadline=None)


@few
@given(labels_arrays, st.integers(1, 10), st.floats(0.05, 100), st.integers(0, 2**32))
def test_who_holds_an_equal_share_gets_none_of_the_next_class(labels, num_clients, alpha, seed):
    arguments = {"alpha": alpha, "balanced": True, "min_samples": 2}
    try:
        parts = partition("dirichlet", labels, num_clients, rng(seed), **arguments)
    except UserError:
        with pytest.raises(UserError, match=r"in 1000 draws; set partition\.min_samples=2 lower or alpha higher"):
            partition("dirichlet", labels, num_clients, rng(seed), **arguments)
        return
    assert_divides(parts, labels, num_clients, 2)
    held = np.zeros(num_clients)
    for label in np.unique(labels):
        own = np.array([(labels[part] == label).sum() for part in parts])
        assert not own[held >= len(labels) / num_clients].any()
        held += own


def test_balanced_clients_are_closer_in_size_and_as_far_apart_in_classes():
    labels = balanced(500)
    spread, largest = {}, {}
    for kind in (None, True):
        drawn = [partition("dirichlet", labels, 20, rng(s), alpha=0.1, balanced=kind, min_samples=2) for s in range(8)]
        spread[kind] = np.mean([np.std([len(part) for part in parts]) for parts in drawn])
        largest[kind] = np.mean([np.bincount(labels[part]).max() / len(part) for parts in drawn for part in parts])
    assert spread[True] < 0.9 * spread[None]
    assert min(largest.values()) > 0.5


@few
@given(st.integers(20, 200), st.integers(2, 20), st.integers(1, 5), st.integers(0, 2**32))
def test_shares_of_a_class_are_random_and_each_client_has_its_classes(per_class, num_clients, classes, seed):
    labels = balanced(per_class)
    if num_clients * classes < 10:
        return
    arguments = {"classes_per_client": classes, "unbalanced": True, "min_samples": 2}
    parts = partition("pathological", labels, num_clients, rng(seed), **arguments)
    assert_divides(parts, labels, num_clients, 2)
    assert {len(np.unique(labels[part])) for part in parts} == {classes}
    for label in range(10):
        shares = sorted(n for part in parts if (n := int((labels[part] == label).sum())))
        equal = per_class // len(shares)
        assert all(max(equal // 10, 1) <= share <= equal for share in shares[:-1])


def test_sizes_are_unequal_and_repeat():
    labels = balanced(500)
    arguments = {"classes_per_client": 2, "unbalanced": True}
    one, other = (partition("pathological", labels, 20, rng(3), **arguments) for _ in range(2))
    assert all(map(np.array_equal, one, other))
    even = partition("pathological", labels, 20, rng(3), classes_per_client=2)
    assert np.std([len(part) for part in one]) > 10 * np.std([len(part) for part in even])


@pytest.mark.parametrize("min_samples", [2, 40])
def test_a_client_has_as_many_samples_as_it_must(min_samples: int):
    parts = partition(
        "pathological", balanced(500), 20, rng(), classes_per_client=2, unbalanced=True, min_samples=min_samples
    )
    assert min(map(len, parts)) >= min_samples
