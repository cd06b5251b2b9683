"""Who takes part and who hosts whom: pure functions, checked over their whole range."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd_mpi.cohort import placement, sample, shares

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


@given(st.integers(1, 60), st.integers(1, 40))
def test_clients_are_placed_in_contiguous_near_equal_blocks(clients: int, world_size: int):
    blocks = placement(clients, world_size)
    assert len(blocks) == world_size
    assert [client for block in blocks for client in block] == list(range(clients))
    workers = blocks if world_size == 1 else blocks[1:]
    assert max(map(len, workers)) - min(map(len, workers)) <= 1
    assert world_size == 1 or not blocks[0]


def test_one_client_a_rank_is_the_main_job():
    assert placement(32, 33) == [range(0), *(range(client, client + 1) for client in range(32))]
    assert placement(32, 5) == [range(0), range(8), range(8, 16), range(16, 24), range(24, 32)]


@given(st.integers(0, 60), st.integers(1, 40))
def test_shares_cover_all_chunks_once(chunks: int, world_size: int):
    blocks = shares(chunks, world_size)
    assert len(blocks) == world_size
    assert [chunk for block in blocks for chunk in block] == list(range(chunks))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
