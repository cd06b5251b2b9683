"""Fixtures for tests with several processes, and which tests run where."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command import TINY, Command
from hypothesis import is_hypothesis_test, settings
from mpirun import LIBRARIES, find, how_to_install, mpirun, run

from fedkd_mpi.communication.launch import World, launched, open_world
from fedkd_mpi.run import main

os.environ.setdefault("OMPI_MCA_osc", "^ucx")  # pytest-mpi initialises MPI before open_world can say so

# The suite tries the same examples each time, so that it never fails by luck; a search is random, and as long as asked.
SEARCH = int(os.environ.get("FEDKD_SEARCH", "0"))
settings.register_profile("suite", derandomize=True, database=None, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("search" if SEARCH else "suite")


ELSEWHERE = pytest.StashKey[int]()
# Fixtures that run for many tests at once: the first of these tests waits for all, long on a loaded machine.
LONG_FIXTURES, LONG = {"simulated", "hung", "results"}, pytest.mark.timeout(1800)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lengthen searches and time limits; choose the tests marked mpi under mpirun, and all others in plain pytest.

    Under mpirun the others would start processes on every rank. In plain pytest the marked ones have no other rank:
    test_marked_tests_on_three_processes starts them where they have.
    """
    searches = {item.function for item in items if is_hypothesis_test(getattr(item, "function", None))}
    for test in searches if SEARCH else ():
        own = getattr(test, "_hypothesis_internal_use_settings", settings())
        test._hypothesis_internal_use_settings = settings(own, max_examples=SEARCH * own.max_examples)
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)
        if LONG_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(LONG)
            item.add_marker(pytest.mark.slow)
    under_mpirun = launched()[1] > 1
    if config.getoption("--with-mpi") and not under_mpirun:
        return
    left_out = [item for item in items if (item.get_closest_marker("mpi") is not None) != under_mpirun]
    config.stash[ELSEWHERE] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if (item.get_closest_marker("mpi") is not None) == under_mpirun]


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say where the tests run that are not chosen here."""
    count, under_mpirun = config.stash.get(ELSEWHERE, 0), launched()[1] > 1
    where = "in plain pytest" if under_mpirun else "inside mpirun, by test_marked_tests_on_three_processes"
    return [f"{count} tests {'not marked' if under_mpirun else 'marked'} mpi run {where}"] if count else []


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


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """A command in this process: takes its main() and arguments, returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the run command replaces
    threads = torch.get_num_threads()

    def call(command: Callable[[list[str]], int], *arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = command([*map(str, arguments)])
        except SystemExit as exit:
            code = exit.code
        return code, *capfd.readouterr()

    yield call
    torch.set_num_threads(threads)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Command) -> Command:
    """The run command in this process and an empty folder: takes arguments, returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    return lambda *arguments: in_process(main, *TINY, *arguments)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run worker_simulation.py once a session for (mpi, number of processes, cases); returns its folder."""
    worker, folders = Path(__file__).parent / "helpers" / "worker_simulation.py", {}

    def folder_of(mpi: str, n: int, *cases: str) -> Path:
        if (mpi, n, cases) in folders:
            return folders[mpi, n, cases]
        folder = tmp_path_factory.mktemp(f"{mpi}-{n}-")
        if n == 1:
            done = run([sys.executable, worker, folder, *cases], timeout=500 + 20 * n)
        elif find(mpi) is None:
            pytest.skip(f"{mpi} is not installed: {how_to_install(mpi)}")
        else:
            done = mpirun(n, worker, folder, *cases, mpi=mpi, timeout=500 + 20 * n)
        assert done.returncode == 0, done.stdout + done.stderr
        folders[mpi, n, cases] = folder
        return folder

    return folder_of
