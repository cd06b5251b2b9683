"""--messages: messages by size with their effective bandwidth and waiting, and stragglers by MPI rank and client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedkd_mpi.costlog.schema import STRAGGLER
from fedkd_mpi.report.columns import spreads
from fedkd_mpi.report.runs import Run
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report

MOST = 20  # rows of clients per run in a table; JSON has all
STEPS = np.array([step * 10.0**power for power in range(16) for step in (1, 2, 5)])  # limits of the classes, bytes
LEGS = {"uplink": "up", "downlink": "down"}


@dataclass(frozen=True)
class Class:
    """The messages of one leg with sizes of `least` to below `limit` bytes, of one log.

    `seconds_moving` is their share by bytes of the seconds in which rounds were gathered or broadcast, and
    `seconds_waiting` their share by count of the server's waiting for updates; 0 for broadcasts.
    """

    leg: str
    least: int
    limit: int
    messages: int
    total_bytes: int
    seconds_moving: float
    seconds_waiting: float


@dataclass(frozen=True)
class Late:
    """The local trainings of one MPI rank or client: their number, stragglers among them, seconds.

    `slowest` counts the rounds that lasted as long as this one's trainings.
    """

    index: int
    trainings: int
    stragglers: int
    slowest: int
    seconds_train: float


def by_size(run: Run) -> list[Class]:
    """Return the messages of both legs by size, from small to large; a broadcast is a message to every receiver."""
    number = run.rounds["round"]
    up, down, receivers = run.log["uplink"], run.log["downlink"], run.rounds["cohort_size"]
    legs = {
        "uplink": (up["bytes"], up["round"] - number[0] if len(number) else up["round"], np.ones_like(up["bytes"])),
        "downlink": (down["bytes"], np.arange(len(number)), receivers),
    }
    found = []
    for leg, (sizes, at, copies) in legs.items():
        moved = run.rounds["seconds_gather" if leg == "uplink" else "seconds_broadcast"]
        waited = run.rounds["seconds_wait"] if leg == "uplink" else np.zeros(len(number))
        total, count = (np.bincount(at, weights, len(number)) for weights in (sizes * copies, copies))
        moving = moved[at] * (sizes * copies) / np.maximum(total[at], 1)
        waiting = waited[at] * copies / np.maximum(count[at], 1)
        classes = np.searchsorted(STEPS, sizes, side="right")
        for each in np.unique(classes[copies > 0]).tolist():
            rows = classes == each
            least = int(STEPS[each - 1]) if each else 0
            sums = int(copies[rows].sum()), int((sizes * copies)[rows].sum())
            seconds = float(np.nansum(moving[rows])), float(np.nansum(waiting[rows]))
            found.append(Class(leg, least, int(STEPS[min(each, len(STEPS) - 1)]), *sums, *seconds))
    return found


def late(run: Run, column: str) -> list[Late]:
    """Return trainings and stragglers by `mpi_rank` or `client`, in the order of their numbers."""
    training = run.log["training"]
    of, seconds, straggles = training[column], np.nan_to_num(training["seconds_train"]), run.late
    if not len(of):
        return []
    number = training["round"] - training["round"][0]
    together = np.zeros((number[-1] + 1, of.max() + 1))
    np.add.at(together, (number, of), seconds)
    slowest = np.bincount(together.argmax(axis=1), minlength=together.shape[1])
    return [
        Late(
            index,
            int((of == index).sum()),
            int(straggles[of == index].sum()),
            int(slowest[index]),
            float(seconds[of == index].sum()),
        )
        for index in np.unique(of).tolist()
    ]


def sheets(report: Report, form: str = "table") -> list[Sheet]:
    """Return the tables of messages by size, and of stragglers by MPI rank and by client."""
    of_rank = _stragglers(report, "mpi_rank", "MPI rank", form)
    return [_messages(report, form), of_rank, _stragglers(report, "client", "client", form)]


def rows(run: Run) -> dict[str, Any]:
    """Return the exact numbers of one log for JSON."""
    made: dict[str, Any] = {"messages": [asdict(each) for each in by_size(run)]}
    for column in ("mpi_rank", "client"):
        made[f"stragglers_by_{column}"] = [asdict(each) for each in late(run, column)]
    return made


def _messages(report: Report, form: str) -> Sheet:
    found = [(known.id, each) for known, group in _firsts(report) for each in by_size(group)]
    labels = [(ident, LEGS[each.leg], _size(each.least), _size(each.limit)) for ident, each in found]
    rates = [each.total_bytes / each.seconds_moving if each.seconds_moving else np.nan for _, each in found]
    columns: list[tuple[str, str, Sequence[float]]] = [
        ("messages", "count", [each.messages for _, each in found]),
        ("all", "bytes", [each.total_bytes for _, each in found]),
        ("moving", "seconds", [each.seconds_moving for _, each in found]),
        ("effective\nbandwidth", "rate", rates),
        ("server\nwaiting", "seconds", [each.seconds_waiting for _, each in found]),
    ]
    note = (
        "The first log of each run, payload and headers. Moving: the messages' share by bytes of the seconds in which"
        " the server gathers or broadcasts; the bandwidth is their quotient. Waiting: their share by count of the"
        " seconds in which the server waits for updates. In one process nothing is moved."
    )
    return _sheet("Messages by size", ["run", "leg", "from", "to below"], labels, columns, note, form)


def _stragglers(report: Report, column: str, what: str, form: str) -> Sheet:
    found, left_out = [], 0
    for known, run in _firsts(report):
        made = sorted(late(run, column), key=lambda each: (-each.stragglers, -each.slowest, -each.seconds_train))
        left_out += len(made[MOST:])
        found += [(known.id, each) for each in made[:MOST]]
    columns: list[tuple[str, str, Sequence[float]]] = [
        ("trainings", "count", [each.trainings for _, each in found]),
        ("stragglers", "count", [each.stragglers for _, each in found]),
        ("rounds that\nwaited for it", "count", [each.slowest for _, each in found]),
        ("training\nin all", "seconds", [each.seconds_train for _, each in found]),
    ]
    note = (
        f"The first log of each run. Stragglers: trainings of more than {STRAGGLER:g} times the median of their round."
    )
    note += f" Left out: {left_out} with fewer." if left_out else ""
    labels = [(ident, str(each.index)) for ident, each in found]
    return _sheet(f"Stragglers by {what}", ["run", what], labels, columns, note, form)


def _firsts(report: Report) -> list[tuple[Any, Run]]:
    return [(known, group[0]) for known, group in zip(report.names, report.groups, strict=True)]


def _sheet(
    title: str,
    heads: Sequence[str],
    labels: Sequence[Sequence[str]],
    columns: Sequence[tuple[str, str, Sequence[float]]],
    note: str,
    form: str,
) -> Sheet:
    made = [spreads(header, kind, [[value] for value in values], form) for header, kind, values in columns]
    lines = [[*label, *(cells[row] for _, cells in made)] for row, label in enumerate(labels)]
    return Sheet(title, [*heads, *(header for header, _ in made)], lines, len(heads), note)


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count // size} {unit}"
    return f"{count} B"
