"""Who takes part and who hosts whom: pure functions, checked over their whole range."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.scheduling.cohort import families, placement, sample, shares

cohorts = st.integers(1, 40).flatmap(lambda clients: st.tuples(st.just(clients), st.integers(1, clients)))


@given(st.integers(0, 5), st.integers(0, 1000), cohorts)
def test_a_cohort_is_rising_distinct_and_of_its_size(seed: int, round_index: int, sizes: tuple[int, int]):
    clients, size = sizes
    chosen = sample(seed, round_index, clients, size)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == size
    assert all(type(client) is int and 0 <= client < clients for client in chosen)


def test_a_cohort_follows_from_seed_and_round_alone():
    rounds = [sample(1, index, 20, 5) for index in range(10)]
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    assert [sample(1, index, 20, 5) for index in reversed(range(10))] == rounds[::-1]
    assert len(set(map(tuple, rounds))) > 1
    assert [sample(2, index, 20, 5) for index in range(10)] != rounds


def test_every_client_is_drawn_equally_often():
    clients, size, rounds = 12, 3, 2000
    drawn = [sample(0, index, clients, size) for index in range(rounds)]
    counts = np.bincount(np.concatenate(drawn), minlength=clients)
    share = size / clients
    deviation = (counts - rounds * share) / np.sqrt(rounds * share * (1 - share))
    assert np.abs(deviation).max() < 4


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 40))
def test_no_process_has_more_than_the_mean_and_nearly_one_client(work: list[int], world_size: int):
    hosts = placement(work, world_size)
    assert placement(work, world_size).tolist() == hosts.tolist()
    workers = max(world_size - 1, 1)
    assert set(hosts) <= (set(range(1, world_size)) if world_size > 1 else {0})
    loads = np.bincount(hosts, work, world_size)
    assert loads.max() <= sum(work) / workers + max(work) * (1 - 1 / workers) + 1e-9  # Graham 1966
    assert len(work) > workers or np.bincount(hosts).max() == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=60), st.integers(1, 9))
def test_families_are_of_one_kind_and_of_like_work(clients: list[tuple[int, int]], size: int):
    work, kinds = zip(*clients, strict=True)
    found = families(work, kinds, size)
    members = [np.flatnonzero(found == family) for family in range(found.max() + 1)]
    assert sorted(np.concatenate(members).tolist()) == list(range(len(clients)))
    assert all(0 < len(own) <= size and len({kinds[client] for client in own}) == 1 for own in members)
    assert sum(len(own) < size for own in members) <= len(set(kinds))
    for kind in set(kinds):
        spans = [[work[client] for client in own] for own in members if kinds[own[0]] == kind]
        assert all(min(before) >= max(after) for before, after in pairwise(spans))


def test_one_client_a_rank_is_the_main_job():
    assert placement([3, 9, 5], 4).tolist() == [1, 2, 3]
    assert placement([3, 9, 5], 9).tolist() == [1, 2, 3]


def test_equal_work_is_spread_evenly():
    assert placement([7] * 6, 4).tolist() == [1, 2, 3, 1, 2, 3]
    assert np.bincount(placement([7] * 32, 6))[1:].tolist() == [7, 7, 6, 6, 6]


def test_the_longest_is_placed_first():
    assert placement([1, 1, 1, 3], 3).tolist() == [1, 1, 1, 2]


@given(st.integers(0, 60), st.integers(1, 40))
def test_shares_cover_all_chunks_once(chunks: int, world_size: int):
    blocks = shares(chunks, world_size)
    assert len(blocks) == world_size
    assert [chunk for block in blocks for chunk in block] == list(range(chunks))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
