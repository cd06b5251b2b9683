"""Start of a new run, or of an interrupted run from its checkpoint: data, networks, clients and the log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.communication.world import SingleProcessWorld, World
from fedkd_mpi.config.schema import Config
from fedkd_mpi.datasets import partition_file
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance.checkpoint import Checkpoints
from fedkd_mpi.fault_tolerance.manifest import Manifest
from fedkd_mpi.fault_tolerance.stopping import STOP
from fedkd_mpi.simulation import encryption, extension, provenance, saved_state, trust
from fedkd_mpi.simulation.best import BestRound
from fedkd_mpi.simulation.early_stop import watched
from fedkd_mpi.simulation.new_log import client_columns, create_log
from fedkd_mpi.simulation.snapshot import restore

if TYPE_CHECKING:
    from fedkd_mpi.scheduling.work_queue import NodeWorkQueue
    from fedkd_mpi.simulation.state import Simulation

COPIES = 4  # approximate size of a client's state, in copies of its networks: values, moments, residuals


@dataclass
class Session:
    """A run that is ready to start with round `first`; `writer` is None except on rank 0.

    `started` is when the run first started, `best` keeps the networks of its best round, `saved` is the number of
    rounds in the newest checkpoint, None without a checkpoint. `notes` say on rank 0 where a run continues.
    """

    simulation: Simulation
    writer: costlog.Writer | None
    checkpoints: Checkpoints
    started: str
    best: BestRound
    first: int = 0
    saved: int | None = None
    notes: Sequence[str] = ()


def begin(
    config: Config,
    world: World,
    output: Path,
    overwrite: bool,
    save_partition: Path | None = None,
    commits: Mapping[str, str] = MappingProxyType({}),
) -> Session:
    """Read the data, build the run and create the log; raises the same UserError on every process. Collective.

    Rank 0 writes the partition to the file `save_partition`; `commits` are those of the code, for the log.
    """
    started = world.from_root(datetime.now().astimezone().isoformat(timespec="seconds"))
    owner = {"configuration": config.identity(), "started": started}
    checkpoints = Checkpoints(output, owner, world)

    def check() -> None:
        costlog.check_output(output, overwrite)
        if save_partition:
            partition_file.require_target(save_partition, overwrite)
        if not overwrite:
            checkpoints.require_none()
        checkpoints.require_writable()
        require_no_stop(output)

    world.collectively(lambda: check() if world.is_root else None)
    simulation = build(config, world)
    start = provenance.start(simulation, 0, commits)

    def create() -> costlog.Writer:
        if save_partition:
            write_partition(simulation, save_partition, overwrite)
        writer = create_log(simulation, output, overwrite, start | {"started": started})
        if simulation.protection:
            writer.event(0, None, "info", str(simulation.protection))
        for note in simulation.data.meta.get("notes", ()):
            writer.event(0, None, "warning", note)
        checkpoints.clear()
        return writer

    writer = world.collectively(lambda: create() if world.is_root else None)
    best = BestRound(simulation, Checkpoints(output, owner, SingleProcessWorld()), checkpoints)
    return Session(simulation, writer, checkpoints, started, best)


def resume(config: Config, world: World, output: Path, commits: Mapping[str, str] = MappingProxyType({})) -> Session:
    """Continue the run of a log from its newest complete checkpoint, or from round 0 without a checkpoint.

    `config` is the configuration of the log, in which keys that do not affect results and the number of rounds may have
    been changed, `commits` are those of the code, for the log. Raises the same UserError on every process. Collective.
    """

    def look() -> tuple[dict[str, Any], int, np.ndarray, np.ndarray, dict[str, Any]]:
        require_no_stop(output)
        with costlog.open(output) as log:
            training = log["training"]
            done = ~np.isnan(training["seconds_train"])  # a skipped client is left as it was
            before = {name: values[-1] for name, values in log["starts"].items() if len(values)}
            return log.attrs, log.rounds_completed, training["client"][done], training["round"][done], before

    attrs, logged, clients, of_round, before = world.collectively(look)
    owner = {"configuration": trust.identity_in(attrs), "started": attrs["started"]}
    checkpoints = Checkpoints(output, owner, world)
    world.collectively(lambda: checkpoints.require_writable() if world.is_root else None)
    simulation = build(config, world)
    columns = client_columns(simulation)
    data = provenance.data(simulation.data) if world.is_root else []
    world.collectively(lambda: require_same_data(simulation, output, columns, data) if world.is_root else None)
    manifest, refused = checkpoints.newest(
        logged, lambda rounds: set(clients[of_round < rounds].tolist()), partial(saved_state.check, simulation)
    )
    if manifest:
        world.collectively(lambda: restore(simulation, manifest))
    elif attrs["status"] == "completed":
        raise UserError(f"{output} is completed and has no checkpoint to continue from (checkpoint.last=false)")
    first = manifest.rounds if manifest else 0
    where = {"mpi_library": world.library, "hostnames": world.hostnames, "data": data}
    where |= extension.attributes(output, attrs, config.rounds)
    start = provenance.start(simulation, first, commits)
    warning = provenance.changed(before, start) if before else None

    notes: list[str] = []

    def reopen() -> costlog.Writer:
        writer = costlog.Writer.resume(output, first, world_size=world.world_size, attrs=where, start=start)
        found = [*refused, *([warning] if warning else [])]
        notes.extend(announce(writer, simulation, manifest, found, logged))
        return writer

    writer = world.collectively(lambda: reopen() if world.is_root else None)
    with costlog.open(output, sums=False) if world.is_root else nullcontext() as log:
        scores = log["rounds"][watched(simulation).column].tolist() if log else []
    best = BestRound(simulation, Checkpoints(output, owner, SingleProcessWorld()), checkpoints, scores)
    saved = manifest.rounds if manifest else None
    return Session(simulation, writer, checkpoints, attrs["started"], best, first, saved, notes)


def announce(
    writer: costlog.Writer, run: Simulation, manifest: Manifest | None, warnings: list[str], logged: int
) -> Iterator[str]:
    """Log where a run continues, with the warnings of what it continues from, and yield the same for the console.

    `logged` is the number of rounds in the log.
    """
    first = manifest.rounds if manifest else 0
    origin = manifest.folder.name if manifest else "the start (there is no checkpoint)"
    text = (
        f"continues with round {first + 1} of {run.config.rounds} from {origin} on {run.world.world_size} process(es)"
    )
    if logged > first:
        text += f"; the log's {logged - first} later round(s) are run again"
    for level, message in [*(("warning", reason) for reason in warnings), ("info", text)]:
        writer.event(max(first - 1, 0), None, level, message)
        yield message


def build(config: Config, world: World) -> Simulation:
    """Read the data and build this process's networks and clients; raises the same UserError on every process."""
    from fedkd_mpi.simulation.setup import load_data, prepare

    world.status.at(0, "reading the data")
    data = load_data(config, world)
    world.status.at(0, "building networks and clients")
    run = world.collectively(lambda: prepare(config, world, data))
    run.schedule = make_work_queue(run) or run.schedule
    if run.exchange and config.privacy.encrypts:
        run.exchange.encryption = encryption.agree(world, run.rank_of_client)
    return run


def make_work_queue(run: Simulation) -> NodeWorkQueue | None:
    """Return this process's work queue, or None if every process trains its own clients. Collective.

    There is no queue with balance=false, on GPUs (where client states are on the device), and if it could not help: on
    every node one process has all clients, or each client has a core and a process of its own.
    """
    from fedkd_mpi.client.client import Client
    from fedkd_mpi.scheduling.array_store import DiskArrayStore, SharedArrayStore
    from fedkd_mpi.scheduling.work_queue import NodeWorkQueue, ranks_with_cores

    config, world = run.config, run.world
    if not config.balance or world.world_size == 1:
        return None
    told = world.allgather(np.array([world.broadcast_on_node(world.mpi_rank), run.device != "cpu"])).view(np.int64)
    nodes, on_gpu = told.T
    if on_gpu.any():
        return None
    own = np.flatnonzero(nodes[run.rank_of_client] == nodes[world.mpi_rank]).tolist()
    rank_of_client = sorted(set(run.rank_of_client[own].tolist()))
    workers = ranks_with_cores(world, rank_of_client)
    helps = len(rank_of_client) > 1 and len(own) > len(workers)
    if not world.allgather(np.array([helps])).any():
        return None
    clients = {client: run.clients.get(client) or Client(client, *run.data.clients[client]) for client in own}
    numbers = sum(run.teacher_numbers[client] for client in own)
    numbers += len(own) * (run.exchange.replica.numel() if run.exchange else 0)
    store = (DiskArrayStore if config.clients_in_memory else SharedArrayStore)(
        world, 2 * len(own), COPIES * 4 * numbers
    )
    return NodeWorkQueue(world, clients, run.rank_of_client, workers, config.local, store)


def write_partition(run: Simulation, path: Path, overwrite: bool) -> None:
    """Write who holds what to a file that partition.kind=file reads; raises UserError."""
    from fedkd_mpi.simulation.setup import partitioned

    samples = partitioned(run.task, run.data.train)
    partition_file.write(path, run.data.clients, samples, overwrite=overwrite)


def require_same_data(run: Simulation, output: Path, columns: Mapping[str, np.ndarray], data: Sequence[str]) -> None:
    """Raise UserError naming what differs if data or partition are not those with which the log was created.

    `columns` are the client_columns() and `data` the provenance.data() of this run.
    """
    with costlog.open(output) as log:
        told = log.attrs["data"]
        if told and told != data:
            names = sorted({text.partition(" ")[0] for text in set(told) ^ set(data)})
            raise UserError(
                f"the data are not those of {output}: {', '.join(names)} differ{'s' * (len(names) == 1)}; resume it"
                " with the files that its table files lists"
            )
        for name, values in log["clients"].items():
            if name == "mpi_rank" or (name in columns and np.array_equal(values, columns[name])):
                continue
            if name != "digest":
                raise UserError(f"the data are not those of {output}: {name} of the clients differs")
            different = np.flatnonzero(values != columns[name])
            others = f" and {len(different) - 1} more clients have" if len(different) > 1 else " has"
            path = run.config.partition.path
            raise UserError(
                f"the partition is not that of {output}: client {different[0]}{others} other samples"
                + (f": partition.path={shown(path)} was changed" if path else "")
            )


def require_no_stop(output: Path) -> None:
    """Raise UserError if a STOP file would end the run before its first round."""
    file = output.parent / STOP
    if file.exists():
        raise UserError(f"the file {file} asks the runs that log beside it to stop: remove it to run")
