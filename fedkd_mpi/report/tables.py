"""The tables of the report: scores, bytes, seconds and logs per configuration, mean and deviation over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedkd_mpi.costlog.schema import ENCRYPT, PHASES, STRAGGLER
from fedkd_mpi.report.columns import Row, column, is_text, spreads
from fedkd_mpi.report.names import Name, name
from fedkd_mpi.report.runs import SCORES, Run, Target
from fedkd_mpi.report.sheets import Sheet

MOST_SETTINGS = 8  # settings that a table shows or names
SHORT = 7  # columns of the default table for print
COMMON = ("task", "data.name", "partition.kind", "partition.alpha", "teacher.name", "student.name")
LEGS = {"uplink": "uplink", "downlink": "downlink", "catchup": "catch-up"}


@dataclass(frozen=True)
class Report:
    """The runs of a report: groups that differ in the seed alone, their names, and the rows of their logs."""

    groups: Sequence[Sequence[Run]]
    target: Target

    @cached_property
    def names(self) -> list[Name]:
        """The name of every group."""
        return name(self.groups)

    @cached_property
    def rows(self) -> list[list[Row]]:
        """The row of every log of every group: Run.row()."""
        return [[run.row(self.target) for run in group] for group in self.groups]

    @property
    def scores(self) -> list[str]:
        """The scores of SCORES that any log has."""
        return [each for each in SCORES if any(not np.isnan(row[f"{each}_last"]) for rows in self.rows for row in rows)]

    @property
    def labels(self) -> list[str]:
        """The columns that name a run: its id, and at most MOST_SETTINGS settings in which runs differ."""
        return ["run", *list(self.names[0].settings)[:MOST_SETTINGS]]

    @property
    def short_labels(self) -> list[str]:
        """The columns that name a run in print, at most three.

        An id that is only a number among equal names says nothing in print: where settings tell the runs apart, they
        alone are the labels.
        """
        settings = list(self.names[0].settings)
        numbered = len({known.given for known in self.names}) < len(self.groups)
        values = {tuple(known.settings[key] for key in settings[:3]) for known in self.names}
        if numbered and settings and len(values) == len(self.groups):
            return settings[:3]
        return ["run", *settings[:2]]

    def sheet(self, title: str, keys: Sequence[str], form: str, note: str = "") -> Sheet:
        """Return the table of columns, one row per group; raises UserError naming an unknown column."""
        keys = list(dict.fromkeys(keys))  # a setting in which runs differ may be a column of numbers too
        made = [column(key, self.names, self.rows, form) for key in keys]
        lines = [list(cells) for cells in zip(*(cells for _, cells in made), strict=True)]
        left = frozenset(index for index, key in enumerate(keys) if is_text(key, self.rows))
        return Sheet(title, [header for header, _ in made], lines, 0, note, left)

    def measured(
        self, title: str, columns: Sequence[tuple[str, str, Sequence[Sequence[float]]]], form: str, note: str
    ) -> Sheet:
        """Return the table of (header, kind, values by group), after the columns that name a run."""
        # In print, a column is left out sooner than a table is wider than its page.
        labels = self.short_labels[: max(1, SHORT - len(columns))] if form == "latex" else self.labels
        named = self.sheet(title, labels, form)
        made = [spreads(header, of, values, form) for header, of, values in columns]
        cells = zip(*(cells for _, cells in made), strict=True) if made else ([] for _ in self.groups)
        lines = [[*row, *own] for row, own in zip(named.rows, cells, strict=True)]
        return Sheet(title, [*named.headers, *(header for header, _ in made)], lines, len(named.headers), note)


def build(report: Report, form: str = "table") -> list[Sheet]:
    """Return the sheets of scores, bytes, seconds and logs; `form` is table, markdown or latex."""
    return [_scores(report, form), _bytes(report, form), _seconds(report, form), _logs(report)]


def short(report: Report, form: str = "latex") -> Sheet:
    """Return one table of at most SHORT columns: what distinguishes the runs, scores, bytes and seconds."""
    labels = report.short_labels
    measures = [f"{each}_last" for each in report.scores[:1]]
    measures += ["bytes_to_target"] if report.target.value is not None else []
    measures += ["bytes_per_client", "saving", "seconds_total", *(f"{each}_last" for each in report.scores[1:])]
    measures = measures[: SHORT - len(labels)]
    left_out = [key for key in report.names[0].settings if key not in labels]
    note = f"{_seeds(report)} {_same(report)}".strip()
    more = f" and {len(left_out) - MOST_SETTINGS} more" if len(left_out) > MOST_SETTINGS else ""
    note += f" Also different: {', '.join(left_out[:MOST_SETTINGS])}{more}." if left_out else ""
    order = sorted(measures, key=lambda key: not key.endswith("_last"))
    return report.sheet(f"Scores ({_metrics(report)}) and costs", [*labels, *order], form, note)


def _scores(report: Report, form: str) -> Sheet:
    keys = [f"{each}_{which}" for each in report.scores for which in ("last", "best")]
    note = "; ".join(f"{each.replace('_', ' ')}: {SCORES[each]}" for each in report.scores)
    return report.sheet(f"Scores ({_metrics(report)})", [*report.labels, "logs", "rounds", *keys], form, note)


def _bytes(report: Report, form: str) -> Sheet:
    catchup = any(row["catchup_bytes"] for rows in report.rows for row in rows)
    keys = [f"{leg}_bytes_per_client" for leg in LEGS if leg != "catchup" or catchup]
    encrypted = any(row["encryption_bytes"] for rows in report.rows for row in rows)
    keys += ["bytes_per_client", "total_bytes", *(["encryption_bytes"] if encrypted else []), "saving", "factor"]
    goal = report.target
    keys += ["bytes_to_target", "rounds_to_target"] if goal.value is not None else []
    note = "Payload and headers as sent; FedAvg teacher: the teacher's float32 parameters up and down, no headers."
    if catchup:
        note += " Catch-up: bytes that clients fetch after missed rounds; part of all totals, savings and targets."
    if encrypted:
        note += " Encryption: nonces and tags of all clients up and down; part of all totals, savings and targets."
    made = report.sheet("Bytes", [*report.labels, *keys], form, note)
    if goal.value is None:
        return made
    reached = [f"{sum(not np.isnan(row['bytes_to_target']) for row in rows)} of {len(rows)}" for rows in report.rows]
    note += f" The target is {goal.score.replace('_', ' ')} {goal.value:g}."
    lines = [[*row, cell] for row, cell in zip(made.rows, reached, strict=True)]
    return Sheet(made.title, [*made.headers, "logs that\nreach it"], lines, 0, note, made.left)


def _seconds(report: Report, form: str) -> Sheet:
    encrypted = any(ENCRYPT in run.phases for group in report.groups for run in group)
    phases = [f"seconds_{phase}" for phase in ("total", *PHASES, *([ENCRYPT] if encrypted else []))]
    note = (
        "train, encode, evaluate: the slowest process of every round; wait, gather, aggregate, broadcast: the server. "
        f"A straggler is a local training of more than {STRAGGLER:g} times the median of its round."
    )
    note += " encrypt: encrypting and decrypting messages on the slowest process." if encrypted else ""
    keys = [*report.labels, "mpi_processes", *phases, "stragglers", "trainings"]
    return report.sheet("Seconds by phase", keys, form, note)


def _logs(report: Report) -> Sheet:
    lines = [
        [known.id, str(row["seed"]), run.status(), str(row["mpi_processes"]), log]
        for known, group, rows in zip(report.names, report.groups, report.rows, strict=True)
        for run, row, log in zip(group, rows, known.logs, strict=True)
    ]
    return Sheet("Logs", ["run", "seed", "status", "processes", "log"], lines, 0, _same(report), frozenset((0, 2, 4)))


def _same(report: Report) -> str:
    """Return the settings that all runs share, of those that a reader asks for first."""
    first = report.names[0].every
    shared = [key for key in ("method", "compression.codec", *COMMON) if key in first]
    shared = [key for key in shared if all(known.every.get(key) == first[key] for known in report.names)]
    if not shared:
        return ""
    clients = sorted({run.clients for group in report.groups for run in group})
    counts = f", {clients[0]} clients" if len(clients) == 1 else ""
    return f"The same in all runs: {', '.join(f'{key}={first[key]}' for key in shared)}{counts}."


def _seeds(report: Report) -> str:
    """Return how many seeds a mean has."""
    counts = sorted({len(group) for group in report.groups})
    if counts == [1]:
        return ""
    return f"Mean ± standard deviation over {'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds."


def _metrics(report: Report) -> str:
    return ", ".join(sorted({row["metric"] for rows in report.rows for row in rows}))
