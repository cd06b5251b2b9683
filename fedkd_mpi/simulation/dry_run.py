"""--dry-run: sizes and memory of a run, measured by building it and training one batch per teacher architecture.

Nothing is logged. If the files of a data set are missing, blank samples of its official number and size are used.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rich.table import Table

from fedkd_mpi import datasets
from fedkd_mpi.client.client import Client
from fedkd_mpi.common.console import drawn
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.datasets import partition_file
from fedkd_mpi.simulation.session import write_partition
from fedkd_mpi.simulation.setup import assign_clients, load_data, prepare
from fedkd_mpi.simulation.state import Simulation


def forecast(config: Config, world_size: int, save_partition: Path | None = None, overwrite: bool = False) -> str:
    """Return the text of a dry run for `world_size` processes; raises UserError as the run itself would.

    The partition is written to the file `save_partition`. Memory is the measured peak of this process after the batches
    plus the states of the clients of the fullest process.
    """
    if save_partition:
        partition_file.require_target(save_partition, overwrite)
    run = _train_each_kind(config)
    if save_partition:
        write_partition(run, save_partition, overwrite)
    return _table(config, run, world_size)


def process_bytes(config: Config, world_size: int) -> int:
    """Return the bytes of memory that the fullest of `world_size` processes needs; raises UserError as a run would."""
    return _fullest(config, _train_each_kind(config), world_size)


def _train_each_kind(config: Config) -> Simulation:
    world = SingleProcessWorld()
    threads = config.threads_per_rank  # for the target machine, which may have more cores than this one
    here = {"threads_per_rank": threads if threads == "auto" else min(threads, os.cpu_count() or 1)}
    one_batch = config.model_copy(update={"local": LocalConfig(steps=1, batch_size=config.local.batch_size), **here})
    run = prepare(one_batch, world, load_data(config, world, datasets.load_or_stand_in))
    replica = run.exchange.replica if run.exchange else None
    for kind in range(_kinds(config)):
        family = np.flatnonzero(run.families == run.families[kind])[: config.stack].tolist()
        for client in {kind, *family}:
            held_out = run.clients[client].test_indices[: config.local.batch_size]
            run.clients[client] = Client(client, run.clients[client].train_indices, held_out)
        run.trainer.train(run.clients[kind], 0, replica, evaluate=True)
        if len(family) > 1:
            run.trainer.train_stack([run.clients[client] for client in family], 0, replica, evaluate=True)
    return run


def _kinds(config: Config) -> int:
    return min(len(config.architectures), config.num_clients)


def _fullest(config: Config, run: Simulation, world_size: int) -> int:
    trained = sum(_state(run, kind) for kind in range(_kinds(config)))
    return _peak() - trained + max(_states(run, own) for own in _hosted(config, run, world_size))


def _hosted(config: Config, run: Simulation, world_size: int) -> list[np.ndarray]:
    """Return the clients of every process that has clients."""
    _, rank_of_client = assign_clients(config, run.data, world_size)
    return [np.flatnonzero(rank_of_client == mpi_rank) for mpi_rank in np.unique(rank_of_client)]


def _states(run: Simulation, block: Iterable[int]) -> int:
    """Return the bytes of the largest states that may be in memory at the same time."""
    return sum(sorted((_state(run, client) for client in block), reverse=True)[: run.config.clients_in_memory])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _state(run: Simulation, client: int) -> int:
    return sum(tensor.nbytes for tensor in run.clients[run.config.architecture(client)].tensors.values())


def _span(values: list[int], text: Callable[[int], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _table(config: Config, run: Simulation, world_size: int) -> str:
    hosted = _hosted(config, run, world_size)
    most = max(map(len, hosted))
    samples = np.array([len(train) for train, _ in run.data.clients])
    loads = np.array([samples[own].sum() for own in hosted])
    layers = run.exchange.student.exchanged_layers if run.exchange else []
    numbers = sum(layer.numel for layer in layers)
    data = sum(array.nbytes for part in (run.data.train, run.data.test) for array in part.values())
    table = Table(title=f"dry run of {config.name}", show_header=False, title_justify="left")
    table.add_row(
        "method, codec", f"{config.method.name}, {config.compression.codec if run.exchange else 'nothing is exchanged'}"
    )
    table.add_row(
        "processes",
        f"{world_size}: {most} of {config.num_clients} clients on the fullest, {config.clients_per_round} per round",
    )
    alone = not config.balance or run.device != "cpu"  # as scheduling/work_queue.py has it
    if alone and config.local.epochs and len(hosted) > 1:
        table.add_row("imbalance", f"{loads.max() / loads.mean():.2f} times the mean work on the busiest process")
    table.add_row("device of this process", run.device)
    if run.data.meta.get("stand_in"):
        table.add_row("data", f"{config.data.name} is missing: blank samples of the official number and size are used")
    table.add_row("training samples per client", f"{min(samples)} to {max(samples)}, {sum(samples):,} in total")
    table.add_row("samples in the global test set", f"{run.test_size:,}")
    for kind in range(_kinds(config)):
        who = f"teacher of client {kind}, {kind + len(config.architectures)}, ..." if config.teachers else "teacher"
        table.add_row(who, f"{config.architectures[kind].name}, {run.teacher_numbers[kind]:,} numbers")
    teachers = sum(run.teacher_numbers) * config.clients_per_round // config.num_clients
    if run.exchange:
        table.add_row(
            "exchanged network",
            f"{config.network(run.method.role).name}, {numbers:,} numbers in {len(layers)} layers",
        )
        for what, count in (("it", numbers * config.clients_per_round), ("the teacher", teachers)):
            table.add_row(
                f"a dense exchange of {what}, per round", f"{bytes_text(2 * 4 * count)} up and down, all clients"
            )
    table.add_row("data, once per node", bytes_text(data))
    states = [_state(run, kind) for kind in range(_kinds(config))]
    table.add_row("state of a client", _span(states, bytes_text))
    table.add_row(
        "memory of the fullest process",
        f"about {bytes_text(_fullest(config, run, world_size))} (measured here, {bytes_text(_peak())}, plus states)",
    )
    return drawn(table, 120)
