"""Jobs of a real Slurm on two nodes: the bits of one process, whatever happens to nodes, ranks, launchers and cables.

FEDKD_DISTURBANCES=20 python -m pytest tests/end_to_end/test_slurm_nodes.py      the long form; FEDKD_SEED gives others
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster as nodes
import numpy as np
import pytest
import slurm as slurms
from cluster import Cluster
from mpirun import REPOSITORY, clean_environment, find, how_to_install, run
from sessions import SMALL, assert_same_run, kill, rounds_in
from slurm import Slurm, mpi_environment

from fedkd_mpi import costlog

DISTURBANCES = int(os.environ.get("FEDKD_DISTURBANCES", "3"))
SEED = int(os.environ.get("FEDKD_SEED", "0"))
SILENCE = 10  # seconds after which Slurm takes a node for down
TWO_NODES = ("--nodes=2", "--ntasks-per-node=2", "--mem=0")
SCRIPT = REPOSITORY / "jobs" / "cpu.slurm"
WATCHFUL = ("watchdog.seconds=5", "watchdog.abort_seconds=10")
LASTING = (*SMALL, "rounds=24", "local.epochs=8", *WATCHFUL)

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600 + 300 * DISTURBANCES)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if reason := nodes.missing() or slurms.missing():
        pytest.skip(f"no Slurm on several nodes: {reason}")
    folder = tmp_path_factory.mktemp("nodes")
    with Cluster(folder, 2) as cluster, Slurm(tmp_path_factory.mktemp("slurm"), cluster, SILENCE) as started:
        yield started


def environment(slurm: Slurm, launcher: str) -> dict[str, str]:
    """Return what a job needs whose ranks srun starts; `launcher` is pmi2 or pmix."""
    vendor = "mpich" if launcher == "pmi2" else "openmpi"
    if (installation := find(vendor)) is None:
        pytest.skip(how_to_install(vendor))
    if reason := slurm.lacks(launcher):
        pytest.skip(reason)
    return {
        **mpi_environment(installation.launcher, installation.library),
        "FEDKD_MPI": launcher,
        "PYTHONPATH": clean_environment()["PYTHONPATH"],
    }


@pytest.mark.parametrize(
    ("launcher", "ranks", "hosts"), [("pmi2", 4, "node1 x2, node2 x2"), ("pmix", 3, "node1 x2, node2 x1")]
)
def test_a_job_on_two_nodes_has_the_bits_of_one_process(
    slurm: Slurm, launcher: str, ranks: int, hosts: str, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.h5"
    assert run([sys.executable, "-m", "fedkd_mpi.run", *SMALL, "rounds=2", "--output", alone]).returncode == 0
    arguments = (*TWO_NODES, f"--ntasks={ranks}", SCRIPT, *SMALL, "rounds=2")
    job = slurm.submit(*arguments, env=environment(slurm, launcher))
    assert slurm.wait(job, *slurms.ENDED)["JobState"] == "COMPLETED", slurm.output(job)
    assert "Warning" not in slurm.output(job)
    log = slurm.work / f"runs/digits-{job}.h5"
    assert costlog.read(log)["starts"]["hosts"][0] == hosts
    assert_same_run(alone, log)


class Disturbance:
    """What happens to a job: trouble, each followed by the repair that a cluster would see."""

    def __init__(self, slurm: Slurm, job: int, rng: np.random.Generator):
        self.slurm, self.cluster, self.job, self.rng = slurm, slurm.cluster, job, rng
        self.node = str(rng.choice(slurm.nodes))

    def node_dies(self) -> None:
        """Every process of a node ends at once, Slurm's too; it comes back later."""
        self.cluster.kill(self.node)
        time.sleep(self.rng.uniform(0, 2 * SILENCE))
        self.slurm.boot(self.node)

    def rank_is_killed(self) -> None:
        """As by the memory killer."""
        kill(int(self.rng.choice(self.slurm.ranks_of(self.job) or [0])), signal.SIGKILL)

    def launcher_is_killed(self) -> None:
        """Both processes of srun end."""
        for pid in self.slurm.launchers_of(self.job):
            kill(pid, signal.SIGKILL)

    def cable_is_pulled(self) -> None:
        """A node is out of the network for a while."""
        self.cluster.cut(self.node)
        time.sleep(self.rng.uniform(1, 3 * SILENCE))
        self.cluster.heal(self.node)

    def slurmd_is_killed(self) -> None:
        """A node's slurmd ends, its jobs do not."""
        self.slurm.halt(self.node)
        time.sleep(self.rng.uniform(0, 2 * SILENCE))
        self.slurm.boot(self.node)

    def job_is_preempted(self) -> None:
        """The job gives way to another one: SIGTERM, then a new start."""
        self.slurm.call("scontrol", "requeue", str(self.job))

    def node_is_maintained(self) -> None:
        """A node is taken down by hand; Slurm gives it back when it answers again."""
        self.slurm.call("scontrol", "update", f"nodename={self.node}", "state=down", "reason=maintenance")


KINDS: list[Callable[[Disturbance], None]] = [
    Disturbance.node_dies,
    Disturbance.cable_is_pulled,
    Disturbance.launcher_is_killed,
    Disturbance.rank_is_killed,
    Disturbance.slurmd_is_killed,
    Disturbance.job_is_preempted,
    Disturbance.node_is_maintained,
]


def test_disturbed_jobs_end_in_a_completed_log_without_a_hand_on_them(slurm: Slurm, tmp_path: Path) -> None:
    alone, rng = tmp_path / "alone.h5", np.random.default_rng(SEED)
    assert run([sys.executable, "-m", "fedkd_mpi.run", *LASTING, "--output", alone]).returncode == 0
    for number in range(DISTURBANCES):
        launcher = ("pmix", "pmi2")[number % 2]
        slurm.until(lambda: slurm.idle() == 2, lambda: slurm.call("sinfo", "-R"))
        job = slurm.submit(*TWO_NODES, "--ntasks=4", SCRIPT, *LASTING, env=environment(slurm, launcher))
        log, after = slurm.work / f"runs/digits-{job}.h5", int(rng.integers(1, 20))
        slurm.until(lambda: rounds_in(log) >= after, lambda: slurm.output(job))  # noqa: B023  called at once
        kind, disturbance = KINDS[number % len(KINDS)], Disturbance(slurm, job, rng)
        print(f"{number}: {launcher}, {kind.__name__}, {disturbance.node}, after {rounds_in(log)} rounds", flush=True)
        kind(disturbance)
        fields = slurm.wait(job, *slurms.ENDED)
        assert fields["JobState"] == "COMPLETED", slurm.output(job)
        print(f"   completed, {fields['Restarts']} restarts, {fields['RunTime']}", flush=True)
        assert_same_run(alone, log)
