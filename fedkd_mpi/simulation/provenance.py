"""Where a run comes from, for its log: versions, hardware, commits, command line, environment, and digests of the data.

Of the environment only the variables in SETTINGS and PREFIXES are kept, and none whose name suggests a secret. In the
command line the values of such names are hidden. Names and passwords in URLs are hidden in both.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi import __version__
from fedkd_mpi.communication.agreement import DIGEST_BYTES
from fedkd_mpi.errors import LONGEST_LINE, plain
from fedkd_mpi.privacy.keys import AGREEMENT_BYTES
from fedkd_mpi.simulation.sameness import LIBRARIES, contents

if TYPE_CHECKING:
    from fedkd_mpi.simulation.state import Data, Simulation

LIBRARY_PREFIXES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_", "NPY_", "TORCH_")
MPI_PREFIXES = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_", "MPICH_", "I_MPI_", "MV2_", "UCX_", "FI_")
PREFIXES = ("FEDKD_", *LIBRARY_PREFIXES, *MPI_PREFIXES, "SLURM_JOB_", "SLURM_ARRAY_", "SLURM_CPU")
GPU_SETTINGS = ("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")
SLURM_SETTINGS = ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_RESTART_COUNT")
SETTINGS = ("MPI4PY_LIBMPI", "HDF5_USE_FILE_LOCKING", "PYTHONHASHSEED", *GPU_SETTINGS, *SLURM_SETTINGS)
SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|_URI|TRANSPORTS|COOKIE", re.IGNORECASE)
# As the end of the name of a command's option: data.tokenizer=words is none.
SECRET_OPTION = re.compile(
    "(KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIE)$", re.IGNORECASE
)
IN_URL = re.compile(r"(?<=://)[^/?#\s]+(?=@)")  # name and password, or a token
HIDDEN = "***"
PATIENCE = 5  # seconds for git
FACTS_BYTES = 384  # of what each process tells of its hardware
# What last bits depend on, beside the configuration: a resumed run says if it differs.
BITS = {"torch": "torch", "numpy": "numpy", "cpu": "the processor", "gpu": "the GPU"}


def commits() -> dict[str, str]:
    """Return the commits of this package and of the working directory, "" where git knows none.

    It starts processes, which is safer before MPI is initialised.
    """
    package = Path(__file__).parents[1]
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")  # an environment may lie in a repository
    own = "" if tracked is None else _commit(package)
    return {"package_commit": own, "folder_commit": _commit(Path.cwd())}


def _commit(folder: Path) -> str:
    head, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{head}{'' if changes == '' else '-dirty' if changes else '-unknown'}" if head else ""


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints of a folder's own repository, None if it fails, is missing or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # GIT_DIR and the like, which hooks of git set, would name another repository.
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, env=quiet, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


def start(run: Simulation, first_round: int, sources: Mapping[str, str]) -> dict[str, Any]:
    """Return on rank 0 the row of the log's table starts; `sources` are the commits(). Collective."""
    import torch

    gpu = torch.cuda.get_device_name(run.device) if run.device != "cpu" else ""
    instructions = torch.backends.cpu.get_cpu_capability()
    own = {"cpu": f"{processor()[:120]}, {instructions}", "gpu": gpu[:80], "threads": str(torch.get_num_threads())}
    own["cores"] = str(len(os.sched_getaffinity(0)))
    own = {name: value.encode("ascii", "replace").decode() for name, value in own.items()}  # so that they have room
    text = json.dumps(own).encode().ljust(FACTS_BYTES)
    told = [json.loads(row.tobytes()) for row in run.world.allgather(np.frombuffer(text, np.uint8))]
    hosts = Counter(run.world.hostnames)
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "ended": "",
        "first_round": first_round,
        "world_size": run.world.world_size,
        "hosts": ", ".join(f"{host} x{count}" for host, count in hosts.items()),
        "mpi_library": run.world.library,
        "fedkd_mpi": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda or torch.version.hip or "",
        **{name: _distinct(facts[name] for facts in told) for name in own},
        **{name: sources.get(name, "") for name in ("package_commit", "folder_commit")},
        "command": command(sys.orig_argv),
        "environment": "\n".join(f"{name}={value}" for name, value in environment(os.environ).items()),
        "slurm_job_id": slurm_job(os.environ),
        **({"key_agreement_bytes": AGREEMENT_BYTES * run.config.num_clients} if run.config.privacy.encrypts else {}),
    }


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def processor() -> str:
    """Return the model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those variables that may change a run, sorted, without any that may hold a secret."""
    kept = {name: value for name, value in variables.items() if name in SETTINGS or name.startswith(PREFIXES)}
    kept = {name: IN_URL.sub(HIDDEN, value) for name, value in kept.items()}
    return {name: " ".join(value.split()) for name, value in sorted(kept.items()) if not SECRET.search(name)}


def command(words: Sequence[str]) -> str:
    """Return a command line, in which secrets are hidden: NAME=VALUE, --name=VALUE, --name VALUE, and in URLs."""
    told, follows = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = SECRET_OPTION.search(name) is not None
        hidden = HIDDEN if follows and not word.startswith("-") else f"{name}={HIDDEN}" if secret and equals else word
        told.append(IN_URL.sub(HIDDEN, hidden))
        follows = secret and not equals and word.startswith("-")
    return shlex.join(told)


def slurm_job(variables: Mapping[str, str]) -> str:
    """Return Slurm's id of this job, that of an array with the place in it, "" outside Slurm."""
    job, array = variables.get("SLURM_JOB_ID", ""), variables.get("SLURM_ARRAY_JOB_ID")
    return f"{job} ({array}_{variables.get('SLURM_ARRAY_TASK_ID', '?')})" if array else job


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a warning if a run goes on with other libraries or processors than in the row `before` of starts."""
    different = {name: text for name, text in BITS.items() if before[name] != now[name]}
    if not different:
        return None
    parts = [
        f"{text} was {plain(before[name], LONGEST_LINE) or 'none'} and is {now[name] or 'none'}"
        for name, text in different.items()
    ]
    return f"{'; '.join(parts)}: last bits may differ from those of a run in one piece"


def data(found: Data) -> list[str]:
    """Return name, type, shape and digest of every array of the data, and the digest of their meta."""
    arrays = {f"{part}/{name}": array for part in ("train", "test") for name, array in getattr(found, part).items()}
    told = {name.removeprefix("the data's "): text for name, text in contents(arrays, found.meta).items()}
    told["meta"] = hashlib.blake2b(told["meta"].encode(), digest_size=DIGEST_BYTES).hexdigest()
    return [f"{name} {text}" for name, text in told.items()]


def clients(found: Data) -> np.ndarray:
    """Return a digest of the (train, test) indices of every client, [client]."""
    return np.array([_indices(*split) for split in found.clients], dtype=str)


def _indices(train: np.ndarray, test: np.ndarray) -> str:
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for indices in (train, test):
        numbers = np.ascontiguousarray(indices, "<i8")
        whole.update(len(numbers).to_bytes(8, "little") + numbers.tobytes())
    return whole.hexdigest()
