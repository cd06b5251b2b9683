"""Fixtures for tests with several processes, and which tests run where."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from mpirun import LIBRARIES, find, how_to_install

from fedkd_mpi.mpi import World, launched, open_world

os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # pytest-mpi initialises MPI before open_world can say so


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under mpirun run the tests marked mpi alone: the others start processes, and would do so on every rank."""
    if launched()[1] == 1:
        return
    for item in items:
        if item.get_closest_marker("mpi") is None:
            item.add_marker(pytest.mark.skip(reason="not marked mpi: runs in plain pytest"))


@pytest.fixture(params=LIBRARIES)
def mpi_vendor(request: pytest.FixtureRequest) -> str:
    """Every MPI to test: "openmpi" and "mpich"."""
    if find(request.param) is None:
        pytest.skip(f"{request.param} is not installed: {how_to_install(request.param)}")
    return request.param


@pytest.fixture
def world() -> Iterator[World]:
    """The world of the processes that run this very test, opened anew; for tests marked mpi."""
    world = open_world()
    yield world
    world.close()
