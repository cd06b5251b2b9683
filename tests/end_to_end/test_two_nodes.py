"""Runs on two nodes: the same bits as on one, also after a node has died and a network cable was pulled."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from command import Command
from mpirun import clean_environment, find, how_to_install, run
from sessions import SMALL, Job, assert_same_run, rounds_in

from fedkd_mpi import costlog
from fedkd_mpi.run import main

WATCHFUL = ("watchdog.seconds=4", "watchdog.abort_seconds=8")
LASTING = (*SMALL, "rounds=16", "local.epochs=5")
RUN = ("-m", "fedkd_mpi.run")

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if not find("openmpi"):
        pytest.skip(how_to_install("openmpi"))
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path / "cluster"
    folder.mkdir()
    with Cluster(folder, 2) as made:
        yield made


def on_nodes(cluster: Cluster, *arguments: str | Path, code: int = 0, mpi: str = "openmpi") -> str:
    """Run the command on two nodes and return what it prints."""
    launch = [*cluster.launch(mpi, 2).split(), sys.executable, *RUN, *map(str, arguments)]
    result = run(cluster.command("node1", *launch), env=environment(cluster, mpi))
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("mpi", "link"),
    [("openmpi", "free"), ("mpich", "free"), ("openmpi", "without datagrams"), ("mpich", "slow")],
)
def test_two_nodes_give_the_bits_of_one_process(
    cluster: Cluster, tmp_path: Path, in_process: Command, mpi: str, link: str
) -> None:
    if not find(mpi):
        pytest.skip(how_to_install(mpi))
    alone, log = tmp_path / "alone.h5", tmp_path / "nodes.h5"
    assert in_process(main, *SMALL, "rounds=3", "--output", alone)[0] == 0
    if link == "without datagrams":
        cluster.block_datagrams("node2")
    elif link == "slow":
        cluster.slow("node2", "2mbit")
    told = on_nodes(cluster, *SMALL, "rounds=3", *WATCHFUL, "--output", log, mpi=mpi)
    assert "4 ranks on 2 nodes" in told
    assert "the run is ended" not in told
    assert costlog.read(log)["starts"]["hosts"][0] == "node1 x2, node2 x2"
    assert_same_run(alone, log)


def test_a_run_goes_on_on_other_numbers_of_nodes(cluster: Cluster, tmp_path: Path, in_process: Command) -> None:
    alone, log, shortly = tmp_path / "alone.h5", tmp_path / "nodes.h5", "time_limit=0.001"
    assert in_process(main, *SMALL, "rounds=4", "--output", alone)[0] == 0
    on_nodes(cluster, *SMALL, "rounds=4", shortly, "--output", log, code=75)
    resume = ("--resume", log, "--trust-log")
    assert in_process(main, *resume, shortly)[0] == 75
    assert "continues with round 3" in on_nodes(cluster, *resume, "time_limit=null")
    assert_same_run(alone, log)
    assert list(costlog.read(log)["starts"]["world_size"]) == [4, 1, 4]


def test_a_dead_node_and_a_pulled_cable_end_in_a_completed_log(
    cluster: Cluster, tmp_path: Path, in_process: Command
) -> None:
    alone, log = tmp_path / "alone.h5", tmp_path / "nodes.h5"
    assert in_process(main, *LASTING, "--output", alone)[0] == 0
    supervised = (*RUN, "--supervise", cluster.launch("openmpi", 2), *LASTING, *WATCHFUL, "--output", log)
    command = cluster.command("node1", sys.executable, *supervised)
    with Job(1, "-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *command, folder=tmp_path,
             env=environment(cluster)) as job:  # fmt: skip
        job.until(lambda: rounds_in(log) >= 3)
        cluster.kill("node2")
        job.until(lambda: job.text.count("continues with round") == 1)
        reached = rounds_in(log)
        job.until(lambda: rounds_in(log) > reached)
        cluster.cut("node2")
        job.until(lambda: job.text.count("was cut off") == 2 or watchdog_spoke(job))
        time.sleep(1)
        cluster.heal("node2")
        assert job.wait() == 0, job.text
    assert len(costlog.read(log)["starts"]["started"]) == 3
    assert_same_run(alone, log)


def watchdog_spoke(job: Job) -> bool:
    return "watchdog: the run is ended" in job.text


def environment(cluster: Cluster, mpi: str = "openmpi") -> dict[str, str]:
    library = str(find(mpi).library)
    return {"MPI4PY_LIBMPI": library, "PYTHONPATH": clean_environment()["PYTHONPATH"], **cluster.environment()}
