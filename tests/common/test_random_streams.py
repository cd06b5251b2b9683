"""Random streams depend on their key alone: not on the process, the order of use or other streams."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpirun import run

from fedkd_mpi.common.random_streams import generator, torch_seed
from fedkd_mpi.common.torch_streams import torch_scope

small = st.integers(0, 2**31)
keys = st.tuples(st.integers(0, 3), st.sampled_from(["cohort", "batches", "split"]), st.lists(small, max_size=3))


def draw(key: tuple[int, str, list[int]]) -> list[int]:
    seed, purpose, rest = key
    return generator(seed, purpose, *rest).integers(0, 2**62, 4).tolist()


@given(keys, keys)
def test_a_stream_is_a_function_of_its_whole_key(one: tuple[int, str, list[int]], other: tuple[int, str, list[int]]):
    first = draw(one)
    elsewhere = draw(other)
    assert draw(one) == first
    assert (first == elsewhere) == (one == other)
    assert (torch_seed(one[0], one[1], *one[2]) == torch_seed(other[0], other[1], *other[2])) == (one == other)


@given(keys)
def test_torch_seeds_are_what_torch_takes(key: tuple[int, str, list[int]]):
    seed = torch_seed(key[0], key[1], *key[2])
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_another_process_draws_the_same_numbers():
    # Python's own hash() of a text differs between processes
    code = "from fedkd_mpi.common.random_streams import generator as g\n"
    code += "print(g(3, 'batches', 5, 7).integers(0, 2**62, 4).tolist())"
    for salt in ("1", "2"):
        done = run([sys.executable, "-c", code], env={"PYTHONHASHSEED": salt})
        assert done.stdout.strip() == str(draw((3, "batches", [5, 7])))


def test_a_scope_keys_torch_and_puts_it_back():
    def inside(*key: int) -> torch.Tensor:
        with torch_scope(0, "student", *key):
            return torch.rand(3)

    before = torch.get_rng_state()
    first = inside()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert torch.equal(inside(), first)
    assert not torch.equal(inside(1), first)
    with pytest.raises(ZeroDivisionError), torch_scope(0, "student"):
        torch.rand(1 // 0)
    state = torch.get_rng_state()
    inside()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scope_leaves_numpys_and_pythons_generators_alone():
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    with torch_scope(0, "student"):
        generator(0, "batches").random(10)
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_scopes_leave_nothing_behind():
    # torch.manual_seed queues the seed, with a traceback, for every kind of device that is not in use
    before = [len(module._queued_calls) for module in (torch.cuda, torch.xpu)]
    for client in range(3):
        with torch_scope(0, "training", client):
            torch.rand(1)
    assert [len(module._queued_calls) for module in (torch.cuda, torch.xpu)] == before
