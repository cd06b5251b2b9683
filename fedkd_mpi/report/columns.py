"""Columns of tables: every number of a column in one unit that fits the column, mean and deviation in the same unit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.report.names import ABSENT, Name

Row = Mapping[str, Any]  # of one log: Run.row()
UNITS = {
    "bytes": (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)),
    "seconds": (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)),
    "rate": (("B/s", 1.0), ("kB/s", 1e3), ("MB/s", 1e6), ("GB/s", 1e9), ("TB/s", 1e12)),
    "share": (("%", 0.01),),
}
EXACT = {"bytes": ("B", 1.0), "seconds": ("s", 1.0), "rate": ("B/s", 1.0)}
DIGITS = {"table": 4, "latex": 3}  # significant digits of a column's smallest number, but 3 of seconds
MOST_DECIMALS = 4
_HEADS = {
    "uplink_bytes_per_client": "up\nper client",
    "downlink_bytes_per_client": "down\nper client",
    "catchup_bytes_per_client": "catch-up\nper client",
    "bytes_per_client": "bytes\nper client",
    "total_bytes": "bytes of\nall clients",
    "encryption_bytes": "of these,\nencryption",
    "saving": "saving against\nFedAvg teacher",
    "factor": "FedAvg teacher\nover this",
    "seconds_total": "whole run",
    "mpi_processes": "MPI\nprocesses",
    "trainings": "local\ntrainings",
}


def kind(key: str) -> str:
    """Return the kind of a column of Run.row(): score, bytes, seconds, share, factor or count."""
    if key.endswith(("_last", "_best")) or key == "target":
        return "score"
    if "bytes" in key:
        return "bytes"
    if key.startswith("seconds_"):
        return "seconds"
    return {"saving": "share", "factor": "factor"}.get(key, "count")


def head(key: str) -> str:
    """Return the header of a column of Run.row(), without unit; a newline starts its second line."""
    if key in _HEADS:
        return _HEADS[key]
    if key.endswith(("_last", "_best")):
        before, _, which = key.rpartition("_")
        return f"{before.replace('_', ' ')}\n{which}"
    return key.removeprefix("seconds_").replace("_", " ")


def unit(of: str, values: Sequence[float], exact: bool = False) -> tuple[str, float]:
    """Return name and size of the unit of a column's values; exact: the log's unit.

    It is the unit of the largest value, or a smaller one in which the smallest value still shows three decimals and the
    largest has at most five digits before them.
    """
    if of not in UNITS or (exact and of not in EXACT):
        return "", 1.0
    if exact:
        return EXACT[of]
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return EXACT.get(of, UNITS[of][0])
    most, least = max(sizes), min(sizes)
    fitting = [entry for entry in UNITS[of] if most >= entry[1]] or [UNITS[of][0]]
    good = [entry for entry in fitting if least >= 1e-3 * entry[1] and most < 1e5 * entry[1]]
    return (good or fitting)[-1]


def decimals(of: str, values: Sequence[float], digits: int) -> int:
    """Return the decimals that give the smallest of the values `digits` significant digits, at most MOST_DECIMALS."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if of == "count" or not sizes:
        return 0 if all(float(size).is_integer() for size in sizes) and of == "count" else 1
    digits = min(digits, 3) if of == "seconds" else digits
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(min(sizes)))))


def number(value: float, places: int | None) -> str:
    """Return a number with a fixed count of decimals, exactly if `places` is None; small ones with an exponent."""
    if places is None:
        return str(int(value)) if float(value).is_integer() and abs(value) < 2**63 else repr(float(value))
    text = f"{value:.{places}f}"
    if value and math.isfinite(value) and not float(text):
        return f"{value:.1e}"
    return f"{float(text) + 0.0:.{places}f}" if not float(text) else text


def spreads(title: str, of: str, groups: Sequence[Sequence[float]], form: str = "table") -> tuple[str, list[str]]:
    """Return header with unit, and "mean ± sd" of the known values of each group; "-" where none is known.

    The standard deviation is that of a sample (n - 1). `form` is table, latex or markdown; markdown is exact.
    """
    known = [[value for value in group if not math.isnan(value)] for group in groups]
    means = [float(np.mean(group)) if len(group) > 1 else float(group[0]) for group in known if group]
    exact = form == "markdown"
    name, size = unit(of, means, exact)
    places = None if exact else decimals(of, [mean / size for mean in means], DIGITS[form])
    cells = []
    for group in known:
        mean = float(np.mean(group)) if len(group) > 1 else (group or [math.nan])[0]
        cell = ABSENT if not group else number(mean / size if size != 1 else mean, places)
        if len(group) > 1 and not (of == "count" and min(group) == max(group)):
            deviation = float(np.std(group, ddof=1)) / size
            cell += f" ± {f'{deviation:.2g}' if exact else f'{deviation:.{places}f}'}"
        cells.append(cell)
    return with_unit(title, name), cells


def with_unit(title: str, name: str) -> str:
    """Return a header with its unit on a line of its own."""
    return f"{title}\n({name})" if name else title


def column(
    key: str, named: Sequence[Name], tables: Sequence[Sequence[Row]], form: str = "table"
) -> tuple[str, list[str]]:
    """Return header and cells of one column of a table of groups: a setting, a text or a measured number.

    Raises UserError that names the columns if the key is unknown.
    """
    if key == "run":
        return "run", [known.id for known in named]
    if key == "logs":
        return "logs", [str(len(known.logs)) for known in named]
    if key in tables[0][0]:
        if isinstance(tables[0][0][key], str):
            return head(key), ["; ".join(dict.fromkeys(str(row[key]) for row in rows)) for rows in tables]
        if key == "seed":
            return "seeds", [", ".join(str(row[key]) for row in rows) for rows in tables]
        return spreads(head(key), kind(key), [[row[key] for row in rows] for rows in tables], form)
    if key in named[0].settings:
        return key, [known.settings[key] for known in named]
    for known in named:
        if key in known.every:
            return key, [other.every.get(key, ABSENT) for other in named]
    raise UserError(_unknown(key, named, tables))


def exact(key: str, known: Name, row: Row) -> Any:
    """Return the exact value of one column for one log."""
    if key in ("run", "logs"):
        return {"run": known.id, "logs": len(known.logs)}[key]
    return row[key] if key in row else known.settings.get(key, known.every.get(key))


def is_text(key: str, tables: Sequence[Sequence[Row]]) -> bool:
    """Whether a column is text, which tables align to the left."""
    return key != "logs" and (key not in tables[0][0] or isinstance(tables[0][0][key], str))


def _unknown(key: str, named: Sequence[Name], tables: Sequence[Sequence[Row]]) -> str:
    keys = list(dict.fromkeys(["run", "logs", *named[0].settings, *tables[0][0], *named[0].every]))
    near = difflib.get_close_matches(key, keys, 3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the columns are {', '.join(keys[:70])}"
    return f"--columns {shown(key)} is no column: {hint}"
