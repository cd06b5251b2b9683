"""--dry-run: sizes, memory and time of a run, measured by building it and training some batches per teacher.

Nothing is logged. If the files of a data set are missing, made-up samples of its official number and size are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from fedkd_mpi import datasets
from fedkd_mpi.client.client import Client
from fedkd_mpi.common.command_line import json_text
from fedkd_mpi.common.console import drawn
from fedkd_mpi.common.machine import peak_memory
from fedkd_mpi.common.units import bytes_text, seconds_text
from fedkd_mpi.communication.terminal import table_width
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.datasets import partition_file
from fedkd_mpi.models.options import called
from fedkd_mpi.simulation.estimate import estimate
from fedkd_mpi.simulation.session import write_partition
from fedkd_mpi.simulation.setup import assign_clients, load_data, prepare
from fedkd_mpi.simulation.state import Simulation


def forecast(
    config: Config,
    world_size: int,
    save_partition: Path | None = None,
    overwrite: bool = False,
    *,
    as_json: bool = False,
) -> str:
    """Return a dry run for `world_size` processes as a table or JSON; raises UserError as the run itself would.

    The partition is written to the file `save_partition`. Memory is the measured peak of this process after the batches
    plus the states of the clients of the fullest process.
    """
    if save_partition:
        partition_file.require_target(save_partition, overwrite)
    run = _train_each_kind(config)
    if save_partition:
        write_partition(run, save_partition, overwrite)
    facts = _facts(config, run, world_size)
    shared = config.balance and run.device == "cpu"
    facts |= estimate(config, run, _kinds(config), _hosted(config, run, world_size), shared)  # after memory: it adds
    return json_text(facts) if as_json else _table(config, facts)


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
    return peak_memory() - trained + max(_states(run, own) for own in _hosted(config, run, world_size))


def _hosted(config: Config, run: Simulation, world_size: int) -> list[np.ndarray]:
    """Return the clients of every process that has clients."""
    _, rank_of_client = assign_clients(config, run.data, world_size)
    return [np.flatnonzero(rank_of_client == mpi_rank) for mpi_rank in np.unique(rank_of_client)]


def _states(run: Simulation, block: Iterable[int]) -> int:
    """Return the bytes of the largest states that may be in memory at the same time."""
    return sum(sorted((_state(run, client) for client in block), reverse=True)[: run.config.clients_in_memory])


def _state(run: Simulation, client: int) -> int:
    return sum(tensor.nbytes for tensor in run.clients[run.config.architecture(client)].tensors.values())


def _facts(config: Config, run: Simulation, world_size: int) -> dict[str, Any]:
    """Return what a dry run has found; docs/reference.md describes the keys."""
    hosted = _hosted(config, run, world_size)
    samples = np.array([len(train) for train, _ in run.data.clients])
    loads = np.array([samples[own].sum() for own in hosted])
    alone = not config.balance or run.device != "cpu"  # as scheduling/work_queue.py has it
    states = [_state(run, kind) for kind in range(_kinds(config))]
    return {
        "name": config.name,
        "method": config.method.name,
        "codec": _codec(config, run),
        "processes": world_size,
        "clients": config.num_clients,
        "clients_per_round": config.clients_per_round,
        "clients_on_fullest_process": max(map(len, hosted)),
        "imbalance": float(loads.max() / loads.mean()) if alone and config.local.epochs and len(hosted) > 1 else None,
        "device": run.device,
        "stand_in": bool(run.data.meta.get("stand_in")),
        "training_samples": {"least": int(min(samples)), "most": int(max(samples)), "total": int(sum(samples))},
        "test_samples": run.test_size,
        "teachers": [
            {"name": called(network.name, network.options()), "numbers": int(numbers)}
            for network, numbers in zip(config.architectures[: _kinds(config)], run.teacher_numbers, strict=False)
        ],
        "exchanged": _exchanged(config, run),
        "privacy": _privacy(run),
        "data_bytes": sum(
            array.nbytes for array in {id(a): a for a in (*run.data.train.values(), *run.data.test.values())}.values()
        ),
        "client_state_bytes": {"least": min(states), "most": max(states)},
        "process_bytes": _fullest(config, run, world_size),
        "measured_bytes": peak_memory(),
    }


def _privacy(run: Simulation) -> dict[str, float] | None:
    """Return epsilon of all rounds, and the noise of the mean update, with differential privacy."""
    if not (found := run.protection):
        return None
    return {
        "epsilon": found.epsilon,
        "delta": found.accountant.delta,
        "rounds": found.rounds,
        "noise_multiplier": found.mechanism.noise_multiplier,
        "noise_to_signal": found.noise_to_signal,
    }


def _codec(config: Config, run: Simulation) -> str | None:
    if run.exchange is None:
        return None
    return "none" if run.exchange.student.only_buffers else config.compression.codec


def _exchanged(config: Config, run: Simulation) -> dict[str, Any] | None:
    """Return the exchanged network, and what dense exchanges of it and of the teacher cost all clients in a round."""
    if not run.exchange:
        return None
    layers = run.exchange.student.exchanged_layers
    numbers = sum(layer.numel for layer in layers)
    teachers = sum(run.teacher_numbers) * config.clients_per_round // config.num_clients
    return {
        "name": run.method.exchanged(),
        "numbers": int(numbers),
        "layers": len(layers),
        "dense_bytes_per_round": int(2 * 4 * numbers * config.clients_per_round),
        "teacher_dense_bytes_per_round": int(2 * 4 * teachers),
    }


def _table(config: Config, facts: Mapping[str, Any]) -> str:
    table = Table(title=f"dry run of {facts['name']}", show_header=False, title_justify="left")
    exchanged, samples, states = facts["exchanged"], facts["training_samples"], facts["client_state_bytes"]
    table.add_row("method, codec", f"{facts['method']}, {facts['codec'] or 'nothing is exchanged'}")
    table.add_row(
        "processes",
        f"{facts['processes']}: {facts['clients_on_fullest_process']} of {facts['clients']} clients on the fullest, "
        f"{facts['clients_per_round']} per round",
    )
    if facts["imbalance"]:
        table.add_row("imbalance", f"{facts['imbalance']:.2f} times the mean work on the busiest process")
    table.add_row("device of this process", facts["device"])
    if facts["stand_in"]:
        table.add_row(
            "data", f"{config.data.name} is missing: made-up samples of the official number and size are used"
        )
    span = f"{samples['least']} to {samples['most']}, {samples['total']:,} in total"
    table.add_row("training samples per client", span)
    table.add_row("samples in the global test set", f"{facts['test_samples']:,}")
    for kind, teacher in enumerate(facts["teachers"]):
        who = f"teacher of client {kind}, {kind + len(config.architectures)}, ..." if config.teachers else "teacher"
        table.add_row(who, f"{teacher['name']}, {teacher['numbers']:,} numbers")
    if exchanged:
        network = f"{exchanged['name']}, {exchanged['numbers']:,} numbers in {exchanged['layers']} layers"
        table.add_row("exchanged network", network)
        for what, key in (("it", "dense_bytes_per_round"), ("the teacher", "teacher_dense_bytes_per_round")):
            label = f"a dense exchange of {what}, per round"
            table.add_row(label, f"{bytes_text(exchanged[key])} up and down, all clients")
    if private := facts["privacy"]:
        table.add_row(
            "differential privacy",
            f"epsilon {private['epsilon']:.4g} at delta {private['delta']:g}"
            f" after {private['rounds']} rounds, with z={private['noise_multiplier']:g}",
        )
        table.add_row("noise in the mean update", f"{private['noise_to_signal']:.3g} times the largest update")
    update = facts["update_bytes"]
    if update:
        table.add_section()
        dense = exchanged["dense_bytes_per_round"] / (2 * facts["clients_per_round"])
        steps = f"{facts['measured_steps']} of {facts['training_steps']}"
        ends = f"T={config.compression.t_start:g}, then {config.compression.t_end:g}"
        table.add_row("one update after its steps", f"{steps}, measured; {ends}; later ones differ")
        for sizes in update:
            first, last = sizes["first"], sizes["last"]
            text = bytes_text(first) if first == last else f"{bytes_text(first)}, then {bytes_text(last)}"
            table.add_row(f"  codec {sizes['codec']}", f"{text} ({dense / last:.1f} times less than dense)")
    table.add_section()
    table.add_row(
        "time per round",
        f"about {seconds_text(facts['seconds_per_round'])} of training and encoding on the busiest process, "
        f"without evaluation (a step takes {seconds_text(facts['seconds_per_step'])} here)",
    )
    table.add_row("data, once per node", bytes_text(facts["data_bytes"]))
    low, high = bytes_text(states["least"]), bytes_text(states["most"])
    table.add_row("state of a client", low if low == high else f"{low} to {high}")
    measured = f"(measured here, {bytes_text(facts['measured_bytes'])}, plus states)"
    table.add_row("memory of the fullest process", f"about {bytes_text(facts['process_bytes'])} {measured}")
    return drawn(table, table_width())
