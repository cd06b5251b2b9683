"""The table of the privacy study, from the logs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_simulation import PRIVATE, SMALL

from benchmarks.privacy import run
from fedkd_mpi import costlog
from fedkd_mpi.errors import UserError
from fedkd_mpi.run import main

NOISE = {"fedavg-loud": "4", "fedavg-clipped": "0.000001"}


def test_the_study_has_one_row_per_run_of_the_sweep_and_a_plot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no completed log"):
        run([str(tmp_path)])
    accuracies = {}
    for name, noise in NOISE.items():
        keys = [*SMALL, *PRIVATE, "method=fedavg", "num_clients=3", "rounds=1", f"privacy.noise_multiplier={noise}"]
        log = tmp_path / f"{name}-s0.h5"
        assert main(["--output", str(log), *keys, f"name={name}"]) == 0
        accuracies[name] = 100 * costlog.read(log)["rounds"]["global_student_accuracy"][-1]
    claims, rows = run([str(tmp_path), "--plot", str(tmp_path / "plot.svg")])
    assert claims == {}
    assert {row["run"]: row["student"] for row in rows} == accuracies
    epsilon = {row["run"]: row["epsilon"] for row in rows}
    assert epsilon["fedavg-clipped"] == float("inf") > epsilon["fedavg-loud"] > 0
    assert "<svg" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
