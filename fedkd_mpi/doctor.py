"""python -m fedkd_mpi.doctor: checks whether this machine or job is ready for a run.

Start it alone, or with the launcher of the run: mpirun -n 33 python -m fedkd_mpi.doctor
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.common.command_line import add_json, json_text
from fedkd_mpi.common.console import drawn, tell
from fedkd_mpi.common.probe import probe
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.communication.agreement import agreed
from fedkd_mpi.communication.launch import LaunchedParser, launched, launcher, leave, open_world
from fedkd_mpi.communication.shared_memory import FOLDER
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance import leftovers
from fedkd_mpi.fault_tolerance.checkpoint import KEPT

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.simulation.state import Simulation

OK, WARNING, ERROR = "ok", "warning", "error"
MESSAGE_BYTES, REPEATS = 2**23, 5  # for the bandwidth measurement
SCARCE = 10**9  # bytes of free disk space below which a log may not fit
CUDA_PROBE = """
import torch
from mpi4py import MPI
sent, received = torch.arange(64.0, device="cuda"), torch.zeros(64, device="cuda")
MPI.COMM_SELF.Sendrecv(sent, 0, recvbuf=received, source=0)
torch.cuda.synchronize()
raise SystemExit(0 if torch.equal(sent, received) else 3)
"""


@dataclass(frozen=True)
class Finding:
    """The result of a check: ok, warning or error, and a remedy if it is not ok."""

    check: str
    status: str
    found: str
    remedy: str = ""


def examine(world: World, config: Config, folder: Path) -> list[Finding]:
    """Return all findings on rank 0, an empty list on other ranks. Collective."""
    checks: list[Callable[[], list[Finding]]] = [
        lambda: mpi(world),
        lambda: cores(world, config),
        lambda: gpus(world, config),
        lambda: shared_memory(world) + [Finding("leftovers", WARNING, *each) for each in leftovers.told(FOLDER)],
        lambda: bandwidth(world),
        lambda: output(world, folder),
        lambda: disk(world, config, folder),
    ]
    findings = [finding for check in checks for finding in check()]
    return findings if world.is_root else []


def mpi(world: World) -> list[Finding]:
    """Return the MPI library and the launcher of the processes."""
    nodes = len(set(world.hostnames))
    started = f"started by {launcher() or 'no launcher'}"
    text = f"{world.library}, {world.world_size} process(es) on {nodes} node(s), {started}"
    return [Finding("MPI", OK, text)]


def cores(world: World, config: Config) -> list[Finding]:
    """Compare the number of threads of all processes with the cores of each node."""
    affinities = _everyone(world, [world.hostname, sorted(os.sched_getaffinity(0))])
    findings = []
    for host in dict.fromkeys(host for host, _ in affinities):
        allowed = {core for name, own in affinities if name == host for core in own}
        ranks = sum(name == host for name, _ in affinities)
        threads = config.threads_per_rank if config.threads_per_rank != "auto" else max(1, len(allowed) // ranks)
        text = f"{host}: {ranks} process(es) x {threads} thread(s) on {len(allowed)} core(s)"
        if ranks * threads <= len(allowed):
            findings.append(Finding("cores", OK, text))
        elif threads > 1:
            remedy = f"set threads_per_rank={max(1, len(allowed) // ranks)} or start fewer processes"
            findings.append(Finding("cores", ERROR, text, remedy))
        else:
            remedy = "start fewer processes with more clients each, with the same results; or bind to more cores"
            findings.append(Finding("cores", WARNING, text, remedy))
    return findings


def gpus(world: World, config: Config) -> list[Finding]:
    """Name the GPU of each process, and test whether MPI accepts GPU buffers."""
    import torch

    from fedkd_mpi.simulation.setup import choose_device

    device, error = "", None
    try:
        device = choose_device(config.device, world.local_rank)
    except UserError as refusal:
        error = str(refusal)
    if error := world.first_message(error):
        return [Finding("GPU", ERROR, error, "set device=cpu, or ask Slurm for GPUs with --gpus-per-node")]
    devices = _everyone(world, [world.hostname, device])
    if not torch.cuda.is_available():
        built = "torch is a CPU build" if torch.version.cuda is None else "torch sees no GPU"
        return [Finding("GPU", OK, f"none ({built}): the run uses CPUs")]
    text = ", ".join(f"rank {rank}: {name} {own}" for rank, (name, own) in enumerate(devices))
    findings = [Finding("GPU", OK, text)]
    if world.is_root:
        aware, reason = probe(CUDA_PROBE)
        found = "MPI accepts GPU buffers" if aware else f"MPI does not accept GPU buffers ({reason})"
        # Messages are packed in host memory, so a run does not need CUDA-aware MPI.
        findings.append(Finding("CUDA-aware MPI", OK, found + "; a run does not need it"))
    return findings


def shared_memory(world: World) -> list[Finding]:
    """Share an array on every node, as a run does with its data."""
    arrays = {"probe": np.arange(1000)} if world.is_node_leader else None
    try:
        shared, _ = world.share(arrays, {})
    except UserError as refusal:
        return [Finding("shared memory", ERROR, str(refusal), "give the node or container more /dev/shm")]
    good = np.array_equal(shared["probe"], np.arange(1000))
    wrong = world.first_message(None if good else f"rank {world.mpi_rank} on {world.hostname} reads other values")
    if wrong:
        return [Finding("shared memory", ERROR, wrong, "report it: a run would train on wrong data")]
    return [Finding("shared memory", OK, "one copy of the data per node")]


def bandwidth(world: World) -> list[Finding]:
    """Measure the bandwidth of the two collectives of a round."""
    if world.world_size == 1:
        return []
    buffer, results = np.zeros(MESSAGE_BYTES, np.uint8), {}
    counts = [0, *[MESSAGE_BYTES] * (world.world_size - 1)]
    own = buffer[: counts[world.mpi_rank]]
    calls: dict[str, Callable[[], object]] = {
        "Bcast": lambda: world.broadcast(buffer),
        "Gatherv": lambda: world.gather(own, counts),
    }
    for name, call in calls.items():
        seconds = []
        for _ in range(REPEATS):
            world.barrier()
            began = time.perf_counter()
            call()
            world.barrier()
            seconds.append(time.perf_counter() - began)
        results[name] = MESSAGE_BYTES * (world.world_size - 1) / sorted(seconds)[REPEATS // 2]
    text = ", ".join(f"{name} {bytes_text(rate)}/s" for name, rate in results.items())
    return [Finding("bandwidth", OK, f"{text} ({bytes_text(MESSAGE_BYTES)} per process)")]


def output(world: World, folder: Path) -> list[Finding]:
    """Write, lock and read an HDF5 file in the folder of the log."""
    if not world.is_root:
        return []
    import h5py

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
            path = Path(scratch) / "probe.h5"
            with h5py.File(path, "w", locking=False) as file:
                file["numbers"] = np.arange(10)
            try:
                with h5py.File(path, "r", locking=True) as file:
                    file["numbers"][()]
            except OSError as error:
                remedy = "the log needs no lock; set HDF5_USE_FILE_LOCKING=FALSE for other tools that read it"
                return [Finding("HDF5", WARNING, f"{folder} has no file locks ({error})", remedy)]
    except OSError as error:
        return [Finding("HDF5", ERROR, f"cannot write to {folder}: {error}", "choose another folder with --output")]
    return [Finding("HDF5", OK, f"writes, locks and reads in {folder}")]


def disk(world: World, config: Config, folder: Path) -> list[Finding]:
    """Compare the free disk space with the size of the checkpoints."""
    if not world.is_root:
        return []
    from fedkd_mpi.communication.world import SingleProcessWorld
    from fedkd_mpi.simulation.setup import load_data, prepare

    try:
        alone = SingleProcessWorld()
        needed = checkpoint_bytes(prepare(config, alone, load_data(config, alone)))
    except UserError as refusal:
        return [Finding("configuration", ERROR, str(refusal), "correct the configuration, or set FEDKD_DATA")]
    return [room(folder, needed)]


def checkpoint_bytes(run: Simulation) -> int:
    """Return an upper bound of the bytes of a run's checkpoints: the kept ones and the one being written."""
    from fedkd_mpi import methods

    settings, student = run.config.optimizer, run.exchange.replica.nbytes if run.exchange else 0
    with torch_scope(run.config.seed, "sizes"), methods.sizing(run.config):
        networks = [run.method.private(kind) for kind in range(len(run.config.architectures))]
        sizes = [sum(t.nbytes for t in (*own.parameters(), *own.buffers())) for own in networks]
    copies = 3 if settings.name != "sgd" else 1 + (settings.momentum > 0)  # weights and moments of the optimiser
    students = (run.config.num_clients * (copies + 1) + 3) * student  # including the state of a codec
    return (KEPT + 1) * (copies * sum(run.config.by_client(sizes)) + students)


def room(folder: Path, needed: int) -> Finding:
    """Compare the free disk space of a folder with the bytes that checkpoints need there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    text = f"{bytes_text(free)} free in {folder}; checkpoints need up to {bytes_text(needed)}"
    if free < needed:
        return Finding(
            "disk",
            ERROR,
            text,
            "choose another folder with --output, or set checkpoint.every=null and checkpoint.last=false",
        )
    if free < needed + SCARCE:
        return Finding("disk", WARNING, text, "free disk space: the log grows every round")
    return Finding("disk", OK, text)


def at_start(run: Simulation, folder: Path) -> list[str]:
    """Return on rank 0 the errors of those checks that take no time, as lines for the user. Collective."""
    found = cores(run.world, run.config)
    if run.config.checkpoint.every or run.config.checkpoint.last:
        found.append(room(folder, checkpoint_bytes(run)))
    errors = [finding for finding in found if finding.status == ERROR] if run.world.is_root else []
    return [f"{finding.status}: {finding.found}: {finding.remedy}" for finding in errors]


def _everyone(world: World, own: Any) -> list[Any]:
    """Return the values `own` (JSON-serialisable) of all processes, by rank, on every process. Collective."""
    lines = world.gather(np.frombuffer(json.dumps(own).encode() + b"\n", np.uint8))
    text = world.first_message(None if lines is None else lines.tobytes().decode())
    return [json.loads(line) for line in (text or "").splitlines()]


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a text table."""
    from rich.table import Table

    rows = Table("check", "", "found", "remedy", title_justify="left")
    for finding in findings:
        rows.add_row(finding.check, finding.status, finding.found, finding.remedy)
    return drawn(rows, 140)


def answer(findings: Sequence[Finding], *, as_json: bool) -> str:
    """Return the findings as a text table or as JSON."""
    if not as_json:
        return table(findings)
    return json_text({"ready": all(f.status != ERROR for f in findings), "findings": [asdict(f) for f in findings]})


def main(argv: Sequence[str] | None = None) -> int:
    """Print all findings and return the exit code: 0, or 1 if there is an error."""
    parser = LaunchedParser("doctor", "Check whether this job is ready for a run.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path, metavar="FILE", help="as for the run (default digits.yaml)")
    parser.add_argument("--output", type=Path, default=Path("runs/log.h5"), metavar="FILE", help="as for the run")
    add_json(parser)
    chosen = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(chosen.config, chosen.overrides)
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    try:
        world = open_world()
    except UserError as error:
        if launched()[0] == 0:
            tell(answer([Finding("MPI", ERROR, f"started by {launcher()}", str(error))], as_json=chosen.json))
        return 1
    if not agreed(world, {"mode": "fedkd doctor", "configuration": config.digest()}):
        return 2
    findings = examine(world, config, chosen.output.parent)
    failed = world.first_message("failed" if any(finding.status == ERROR for finding in findings) else None)
    world.close()
    if world.is_root:
        tell(answer(findings, as_json=chosen.json))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
