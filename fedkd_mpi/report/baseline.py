"""--baseline: differences to one run, paired by seed, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd_mpi.report.columns import DIGITS, decimals, head, kind, number, unit, with_unit
from fedkd_mpi.report.names import ABSENT
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report

LEVEL = 0.95
COSTS = ("bytes_per_client", "total_bytes", "seconds_total")


@dataclass(frozen=True)
class Difference:
    """A run minus the baseline in one column: by seed, their mean, and half the width of its 95 % interval.

    `half` is NaN for fewer than two pairs; `mean` for none.
    """

    by_seed: Mapping[int, float]
    mean: float
    half: float


def difference(own: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Return the paired difference of two mappings from seed to value; seeds that only one knows are left out."""
    seeds = [seed for seed in own if seed in base and not math.isnan(own[seed] - base[seed])]
    by_seed = {seed: own[seed] - base[seed] for seed in seeds}
    return Difference(by_seed, *interval(list(by_seed.values())))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the known values and half the width of its 95 % interval; NaN where it is unknown.

    The interval is mean ± t * sd / sqrt(n), with Student's t of n - 1 degrees of freedom.
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return known[0] if known else math.nan, math.nan
    from scipy.special import stdtrit  # a requirement of scikit-learn

    t = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2))
    return float(np.mean(known)), t * float(np.std(known, ddof=1)) / math.sqrt(len(known))


def differences(report: Report, base: int) -> list[dict[str, Difference]]:
    """Return column -> difference of every group to the group of index `base`."""
    keys = [*(f"{score}_{which}" for score in report.scores for which in ("last", "best")), *COSTS]
    by_seed = [{key: {row["seed"]: row[key] for row in rows} for key in keys} for rows in report.rows]
    return [{key: difference(own[key], by_seed[base][key]) for key in keys} for own in by_seed]


def sheet(report: Report, base: int, found: Sequence[Mapping[str, Difference]], form: str) -> Sheet:
    """Return the table of differences, one row per group other than the baseline."""
    others = [index for index in range(len(found)) if index != base]
    keys = [key for key in found[base] if not key.endswith("_best") and key != "total_bytes"]
    if form == "latex":  # at most seven columns, as in the other table for print
        keys = [*[key for key in keys if key not in COSTS][:2], "bytes_per_client"]
    labels = report.sheet("", report.short_labels if form == "latex" else report.labels, form)
    pairs = [str(max((len(each.by_seed) for each in found[index].values()), default=0)) for index in others]
    made = [("pairs", pairs), *(_column(key, [found[index][key] for index in others], form) for key in keys)]
    lines = [[*labels.rows[index], *(cells[row] for _, cells in made)] for row, index in enumerate(others)]
    note = (
        f"Run minus {report.names[base].label()}, for each seed that both have: mean [{100 * LEVEL:g} % interval "
        "of the mean, Student's t]. A difference whose interval contains 0 may be chance."
    )
    headers = [*labels.headers, *(header for header, _ in made)]
    return Sheet(f"Difference to {report.names[base].id}", headers, lines, len(labels.headers), note)


def rows(found: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    """Return the exact differences of one group for JSON: pairs, mean and the ends of the interval by column."""
    return {
        key: {
            "pairs": len(each.by_seed),
            "mean": _known(each.mean),
            "low": _known(each.mean - each.half),
            "high": _known(each.mean + each.half),
        }
        for key, each in found.items()
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _column(key: str, found: Sequence[Difference], form: str) -> tuple[str, list[str]]:
    sizes = [size for each in found for size in (abs(each.mean), each.half) if size > 0]
    name, size = unit(kind(key), sizes, form == "markdown")
    places = None if form == "markdown" else decimals(kind(key), [max(sizes, default=0.0) / size], DIGITS[form])

    def signed(value: float) -> str:
        text = number(value / size, places)
        return text if text.startswith("-") or not float(text) else f"+{text}"

    cells = []
    for each in found:
        if math.isnan(each.mean):
            cells.append(ABSENT)
            continue
        ends = "" if math.isnan(each.half) else f" [{signed(each.mean - each.half)}, {signed(each.mean + each.half)}]"
        cells.append(f"{signed(each.mean)}{ends}")
    return with_unit(head(key), name), cells
