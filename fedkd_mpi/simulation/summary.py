"""What a person reads of a run before its first round and after its last: a banner, and a summary of the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from fedkd_mpi import __version__, costlog
from fedkd_mpi.common.console import drawn
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.communication.terminal import table_width
from fedkd_mpi.costlog.schema import ENCRYPT, PHASES

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.config.schema import Config
    from fedkd_mpi.simulation.state import Simulation


def opening(config: Config, world: World, output: Path) -> str:
    """Return the first lines of a run, which are known before the data are read."""
    clients = f"{config.num_clients} clients"
    if config.clients_per_round < config.num_clients:
        clients += f", {config.clients_per_round} per round"
    nodes = len(set(world.hostnames))
    ranks = f"{_count(world.world_size, 'rank')} on {_count(nodes, 'node')}"
    head = f"fedkd_mpi {__version__}: {config.name}: {clients}, {_count(config.rounds, 'round')}"
    return f"{head}\n{ranks}\nlog: {output}"


def resources(run: Simulation) -> str:
    """Return devices and threads of a run that is built, and what a dense exchange would move."""
    import torch

    device = "cpu"
    if run.device != "cpu":
        gpus = min(run.world.node_size, torch.cuda.device_count()) if run.config.device == "auto" else 1
        device = f"{_count(gpus, 'GPU')} per node ({torch.cuda.get_device_name(run.device)})"
    threads = f"{_count(torch.get_num_threads(), 'thread')} per rank"
    dense = "nothing is exchanged"
    if run.exchange:
        numbers = sum(layer.numel for layer in run.exchange.student.exchanged_layers)
        moved = bytes_text(2 * 4 * numbers * run.config.clients_per_round)
        dense = f"a dense exchange would move {moved} per round"
    protected = f"\n{run.protection}" if run.protection else ""
    return f"device: {device}, {threads}\n{dense}{protected}"


def moved_before(path: Path) -> int:
    """Return the bytes that the rounds of a log have moved: up, down and catch-up."""
    with costlog.open(path, sums=False) as log:
        return sum(int(log["rounds"][f"{leg}_bytes"].sum()) for leg in ("uplink", "downlink", "catchup"))


def summary(path: Path) -> str:
    """Return the summary of a log: scores, bytes up and down, ratios to a dense exchange, seconds per phase."""
    with costlog.open(path) as log:
        rounds, metrics, clients = log["rounds"], log.attrs["metrics"], log.attrs["num_clients"]
        up, down = int(rounds["uplink_bytes"].sum()), int(rounds["downlink_bytes"].sum())
        dense = {role: int(rounds[f"{role}_dense_bytes"].sum()) for role in ("student", "teacher")}
        phases = [phase for phase in (*PHASES, ENCRYPT) if f"seconds_{phase}" in rounds]
        seconds = {phase: float(rounds[f"seconds_{phase}"].sum()) for phase in phases}
        columns = (f"{leg}_encryption_bytes" for leg in ("uplink", "downlink"))
        encryption = sum(int(rounds[column].sum()) for column in columns if column in rounds)
        total = float(rounds["seconds_total"].sum())
        catchup = int(rounds["catchup_bytes"].sum())
        scores = {
            f"{label} {metric}": _last(rounds[f"{key}_{metric}"])
            for metric in metrics
            for key, label in (
                ("global_student", "global student, global test set:"),
                ("student", "students after local training, own test samples:"),
                ("teacher", "teachers, own test samples:"),
                ("global_teacher", "teachers, global test set:"),
            )
        }
        for metric in metrics if (rounds["cohort_size"] < clients).any() else ():
            everyone = _last(rounds[f"teacher_{metric}_all"])
            scores[f"teachers of all clients, latest, own test samples: {metric}"] = everyone
        count = log.rounds_completed
        private = {name: float(rounds[name][-1]) for name in ("epsilon", "clipped_share") if name in rounds and count}
    table = Table(title=f"{count} rounds, {clients} clients", show_header=False, title_justify="left")
    for name, value in scores.items():
        if value is not None:
            table.add_row(name, f"{value:.4f}")
    if up:
        table.add_section()
        table.add_row("bytes up, all clients and rounds", f"{bytes_text(up)}  ({up:,} bytes)")
        table.add_row("bytes down", f"{bytes_text(down)}  ({down:,} bytes)")
        if catchup:
            table.add_row("bytes to catch up on missed rounds", f"{bytes_text(catchup)}  ({catchup:,} bytes)")
            moved = up + down + catchup
            table.add_row("bytes in total: up, down, catch-up", f"{bytes_text(moved)}  ({moved:,} bytes)")
        if encryption:
            table.add_row("of these, encryption up and down", f"{bytes_text(encryption)}  ({encryption:,} bytes)")
        for role, size in dense.items():
            factor = size / (up + down + catchup)
            table.add_row(f"dense exchange of the {role} would cost", f"{factor:.2f} times as much")
    if private:
        table.add_section()
        table.add_row("epsilon of all rounds (docs/privacy.md)", f"{private['epsilon']:.4g}")
        table.add_row("updates clipped in the last round", f"{private['clipped_share']:.0%}")
    table.add_section()
    table.add_row(f"seconds, {total:.1f} in total", _shares(seconds))
    table.add_row("log", str(path))
    return drawn(table, table_width())


def _shares(seconds: Mapping[str, float]) -> str:
    named = {"train": "training", "evaluate": "evaluation", ENCRYPT: "encryption"}
    return "  ".join(f"{named.get(phase, phase)} {value:.1f}" for phase, value in seconds.items() if value >= 0.05)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _last(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None
