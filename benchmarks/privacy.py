"""privacy: accuracy and bytes by epsilon, from the logs of a sweep such as configs/table1/digits_privacy.yaml.

    python -m fedkd_mpi.sweep table1/digits_privacy.yaml --jobs 2             goes on after an interruption
    python -m benchmarks privacy runs/table1-digits_privacy [--plot docs/privacy.svg]

Runs are grouped by their name, over seeds; those that are not completed are left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedkd_mpi import costlog
from fedkd_mpi.errors import UserError

MB = 1e6


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return one row per run of the sweep, means over seeds; no claims."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks privacy")
    parser.add_argument("logs", type=Path, help="folder of the sweep's logs")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(chosen.logs.glob("*.h5")):
        with costlog.open(path) as log:
            if log.attrs["status"] == "completed":
                found[yaml.safe_load(log.attrs["config"])["name"]].append(_of(log))
    if not found:
        raise UserError(f"{chosen.logs} has no completed log: run the sweep first")
    rows = [_row(name, own) for name, own in found.items()]
    if chosen.plot:
        _plot(rows, chosen.plot)
    return {}, rows


def _of(log: costlog.Log) -> dict[str, Any]:
    rounds, config = log["rounds"], yaml.safe_load(log.attrs["config"])
    noise = config["privacy"]["noise_multiplier"]
    return {
        "epsilon": float("inf") if noise is not None and noise <= 1e-6 else float(rounds["epsilon"][-1]),
        "numbers": int(log["layers"]["numel"].sum()),
        "student": 100 * float(rounds["global_student_accuracy"][-1]),
        "up MB": float(rounds["uplink_bytes"].sum()) / MB,
        "down MB": float(rounds["downlink_bytes"].sum()) / MB,
        "clipped": float(rounds["clipped_share"].mean()),
    }


def _row(name: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    means = {key: float(np.mean([one[key] for one in own])) for key in own[0]}
    spread = float(np.std([one["student"] for one in own], ddof=1)) if len(own) > 1 else float("nan")
    return {"run": name, "seeds": len(own)} | means | {"student +-": spread}


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the accuracy of the exchanged network over epsilon, one line per method; without noise at the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        lines[row["run"].rpartition("-")[0]].append(row)
    known = [row["epsilon"] for row in rows if np.isfinite(row["epsilon"])]
    right = 4 * max(known, default=1.0)
    for name, own in sorted(lines.items()):
        own.sort(key=lambda row: row["epsilon"])
        places = [min(row["epsilon"], right) for row in own]
        errors = [row["student +-"] for row in own]
        axes.errorbar(places, [row["student"] for row in own], errors, label=name, marker="o", capsize=3, linewidth=1.2)
    ticks = sorted({round(value, 1) for value in known})
    axes.set(xscale="log", xlabel="epsilon", ylabel="accuracy of the exchanged network, %")
    axes.set_xticks([*ticks, right], [*(f"{tick:g}" for tick in ticks), "no noise"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
