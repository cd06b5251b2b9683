"""tradeoff: accuracy against total bytes of `none`, `svd`, `rdsvd` and error feedback on Fashion-MNIST, paired by seed.

    python -m benchmarks tradeoff [--seeds 5] [--rounds N] [--jobs 1] [--plot docs/tradeoff.svg] [KEY=VALUE ...]
    python -m benchmarks tradeoff --seeds 2 --rounds 20 local.epochs=null local.steps=8         (a small version)

Each run is the run command on configs/fashion_mnist.yaml (32 clients, Dirichlet 0.5). Its log is written to --logs; a
run with a completed log of the same configuration is not run again. The claims are for the thresholds of
configs/fashion_mnist_rdsvd.yaml, which were chosen beforehand with other seeds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.config import load as configuration
from fedkd_mpi.errors import UserError

PRESET, HEADLINE = Path("fashion_mnist.yaml"), Path("fashion_mnist_rdsvd.yaml")
THRESHOLDS = [("svd", "none", 0.95, 0.98), ("svd", "ef", 0.95, 0.98), ("rdsvd", "none", 0.95, 0.98)]
THRESHOLDS += [("rdsvd", "none", 0.8, 0.9), ("rdsvd", "ef", 0.95, 0.98), ("rdsvd", "ef", 0.9, 0.95)]
THRESHOLDS += [("rdsvd", "ef", 0.8, 0.9), ("rdsvd", "ef", 0.6, 0.85)]
SCORES = {"student": "global_student_accuracy", "teacher": "teacher_accuracy"}  # on the global, its own test samples


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Run the missing runs; return one row per variant: mean bytes, accuracies, paired differences in points."""
    chosen = _arguments(arguments)
    variants = _variants()
    headline = _headline()
    if headline not in variants:
        raise UserError(f"{HEADLINE} has variant {headline}, which is none of {', '.join(variants)}")
    if chosen.only:
        variants = {name: variants[name] for name in ("none", headline, *chosen.only.split(",")) if name in variants}
    shared = [*([f"rounds={chosen.rounds}"] if chosen.rounds else []), *chosen.overrides]
    seeds = range(chosen.first_seed, chosen.first_seed + chosen.seeds)
    tasks = [(name, seed) for seed in seeds for name in variants]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        logs = pool.map(
            lambda task: _play(chosen.logs, task[0], task[1], [*shared, *variants[task[0]], f"seed={task[1]}"]), tasks
        )
        found = dict(zip(tasks, logs, strict=True))
    curves = {name: [found[name, seed] for seed in seeds] for name in variants}
    rows = [_row(name, curves[name], curves["none"]) for name in variants]
    if chosen.plot:
        _plot(curves, chosen.plot)
    own = next(row for row in rows if row["variant"] == headline)
    claims = {
        "bytes_none_over_rdsvd_ef": own["none / bytes"],
        "accuracy_difference_points": min(own["student - none"], own["teacher - none"]),
        "bytes_fedavg_teacher_over_rdsvd_ef": own["fedavg teacher / bytes"],
    }
    return claims, rows


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks tradeoff")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--logs", type=Path, default=Path("runs/tradeoff"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--only", help="variants to run in addition to none and the headline, comma-separated")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser.parse_intermixed_args(arguments)


def _variants() -> dict[str, list[str]]:
    variants = {"none": ["compression.codec=none"]}
    for codec, feedback, start, end in THRESHOLDS:
        settings = {"codec": codec, "error_feedback": feedback, "t_start": start, "t_end": end}
        variants[_name(codec, feedback, start, end)] = [f"compression.{key}={value}" for key, value in settings.items()]
    return variants


def _name(codec: str, feedback: str, start: float, end: float) -> str:
    return f"{codec}{'' if feedback == 'none' else '+' + feedback}-{start:g}-{end:g}"


def _headline() -> str:
    own = configuration.load(HEADLINE).compression
    return _name(own.codec, own.error_feedback, own.t_start, own.t_end)


def _play(logs: Path, name: str, seed: int, overrides: list[str]) -> dict[str, np.ndarray]:
    """Return the required columns of the log of a run, which is run first if its log is missing."""
    path = logs / f"{name}-{seed}.h5"
    config = configuration.load(PRESET, overrides)
    if not _finished(path, config.digest()):
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "fedkd_mpi.run", "--config", str(PRESET), "--overwrite", "--output", str(path)]
        with path.with_suffix(".txt").open("w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([*command, *overrides], check=True, stdout=output, stderr=subprocess.STDOUT, env=environment)
        print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
    with costlog.open(path) as log:
        rounds = log["rounds"]
        moved = np.cumsum(rounds["uplink_bytes"] + rounds["downlink_bytes"])
        fedavg = np.cumsum(rounds["teacher_dense_bytes"])
        return {"bytes": moved, "fedavg": fedavg} | {role: rounds[column] for role, column in SCORES.items()}


def _finished(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    with costlog.open(path) as log:
        return log.attrs["status"] == "completed" and log.attrs["config_digest"] == digest


def _row(name: str, own: list[dict[str, np.ndarray]], dense: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    last = {key: np.array([curve[key][-1] for curve in own], float) for key in own[0]}
    base = {key: np.array([curve[key][-1] for curve in dense], float) for key in dense[0]}
    row = {"variant": name, "seeds": len(own), "MB": last["bytes"].mean() / 1e6}
    row["none / bytes"] = float((base["bytes"] / last["bytes"]).mean())
    row["fedavg teacher / bytes"] = float((last["fedavg"] / last["bytes"]).mean())
    for role in SCORES:
        mean, half = paired(100 * (last[role] - base[role]))
        row |= {role: 100 * last[role].mean(), f"{role} - none": mean, f"+- {role}": half}
    return row


def paired(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % confidence interval (Student's t; NaN for a single difference)."""
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return float(differences.mean()), float("nan")
    return float(differences.mean()), float(t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))


def _plot(curves: dict[str, list[dict[str, np.ndarray]]], path: Path) -> None:
    """Plot the mean accuracy over cumulative bytes, with one line per variant and one panel per network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, role in zip(figure.subplots(1, len(SCORES), sharex=True), SCORES, strict=True):
        for name, own in curves.items():
            moved = np.mean([curve["bytes"] for curve in own], axis=0) / 1e6
            scores = 100 * np.mean([curve[role] for curve in own], axis=0)
            known = ~np.isnan(scores)
            axes.semilogx(moved[known], scores[known], label=name, linewidth=1.2)
        axes.set(xlabel="cumulative bytes up and down, MB", ylabel=f"accuracy of the {role}, %", title=role)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path)
