"""Console output of a run: a progress line while it runs, and a summary of the log at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fedkd_mpi import costlog
from fedkd_mpi.common.console import Lenient, drawn, say
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.config.schema import Config
from fedkd_mpi.costlog.schema import PHASES

QUIET_SECONDS = 5.0  # between two plain lines if the output is not a terminal


class Progress:
    """Shows each round: one live line with the remaining time on a terminal, otherwise rate-limited plain lines."""

    def __init__(self, config: Config, first: int = 0):
        self.first, self.rounds, self.started, self.spoke = first, config.rounds, time.monotonic(), -np.inf
        self.total_bytes = 0
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)
        self.bar = Bar(*columns, console=Console(file=cast("IO[str]", Lenient())))
        self.live = self.bar.console.is_terminal
        self.task = self.bar.add_task(config.name, total=config.rounds)

    def round(self, row: dict[str, Any]) -> None:
        """Show a row of the table `rounds`."""
        self.total_bytes += row["uplink_bytes"] + row["downlink_bytes"] + row["catchup_bytes"]
        done = row["round"] + 1
        scores = {name: value for name, value in row.items() if name.startswith(("global_student_", "teacher_"))}
        known = [
            f"{name} {value:.4f}"
            for name, value in scores.items()
            if not name.endswith(("bytes", "loss", "_weighted", "_all")) and value == value
        ]
        text = "  ".join([*known, f"T {row['threshold']:.3f}", bytes_text(self.total_bytes)])
        if self.live:
            self.bar.start()
            self.bar.update(self.task, completed=done, description=text)
        elif time.monotonic() - self.spoke > QUIET_SECONDS or done == self.rounds:
            self.spoke = time.monotonic()
            left = (self.spoke - self.started) / (done - self.first) * (self.rounds - done)
            say(f"round {done}/{self.rounds}  {text}  {left:.0f} s left")

    def stop(self) -> None:
        """Remove the live line from the terminal."""
        if self.live:
            self.bar.stop()


def summary(path: Path) -> str:
    """Return the summary of a log: scores, bytes up and down, ratios to a dense exchange, seconds per phase."""
    with costlog.open(path) as log:
        rounds, metrics, clients = log["rounds"], log.attrs["metrics"], log.attrs["num_clients"]
        up, down = int(rounds["uplink_bytes"].sum()), int(rounds["downlink_bytes"].sum())
        dense = {role: int(rounds[f"{role}_dense_bytes"].sum()) for role in ("student", "teacher")}
        seconds = {phase: float(rounds[f"seconds_{phase}"].sum()) for phase in PHASES}
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
        for role, size in dense.items():
            factor = size / (up + down + catchup)
            table.add_row(f"dense exchange of the {role} would cost", f"{factor:.2f} times as much")
    table.add_section()
    shares = "  ".join(f"{phase} {value:.1f}" for phase, value in seconds.items() if value >= 0.05)
    table.add_row(f"seconds, {total:.1f} in total", shares)
    table.add_row("log", str(path))
    return drawn(table, 120)


def _last(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None
