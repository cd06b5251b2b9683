"""Logs with made-up rounds, for the report and sweeps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import logs
import numpy as np
import yaml

from fedkd_mpi import costlog

MB = 1_000_000
CLIENTS = 2


def a_round(number: int, accuracy: float = 0.5, up: tuple[int, ...] = (MB, MB), down: int = MB, seconds: float = 3.0):
    """Arguments of Writer.append_round for two clients of one layer; client 1 trains twice as long as client 0."""
    rounds, uplink, downlink, mpi, training = logs.make_round(number, cohort=CLIENTS, layers=1, metrics=("accuracy",))
    uplink |= {"client": np.arange(CLIENTS), "bytes": np.array(up), "header_bytes": np.full(CLIENTS, 53)}
    uplink["layer_bytes"] = (uplink["bytes"] - 53)[:, None]
    downlink |= {"bytes": down, "header_bytes": 53, "layer_bytes": np.array([down - 53])}
    training |= {"client": np.arange(CLIENTS), "seconds_train": seconds * np.array([1.0, 2.0])}
    training["seconds_encode"] = np.zeros(CLIENTS)
    rounds |= {"cohort_size": CLIENTS, "uplink_bytes": sum(up), "uplink_header_bytes": CLIENTS * 53, "catchup_bytes": 0}
    rounds |= {"downlink_bytes": CLIENTS * down, "seconds_aggregate": 0.5, "global_student_accuracy": accuracy}
    rounds |= {"downlink_header_bytes": CLIENTS * 53, "teacher_dense_bytes": 20 * MB, "skipped_clients": 0}
    return rounds, uplink, downlink, mpi, training


def write(path: Path, made: list[Any], status: str | None = "completed", digest: str = "", **config: Any) -> Path:
    settings = {"name": "made-up", "seed": 1, "rounds": len(made), "method": "fedkd", "compression": {"codec": "svd"}}
    settings |= config
    clients = {name: np.full(CLIENTS, 7) for name in ("train_samples", "test_samples")} | {
        "mpi_rank": np.ones(CLIENTS, int)
    }
    text = yaml.safe_dump(settings)
    digest = digest or hashlib.sha256(text.encode()).hexdigest()
    attrs = logs.ATTRS | {"config": text, "seed": settings["seed"], "config_digest": digest}
    writer = costlog.Writer.create(path, attrs, [("weight", (8, 4), True)], clients, ["accuracy"], 3)
    for arguments in made:
        writer.append_round(*arguments)
    if status:
        writer.finish(status)
    else:
        writer.close()
    return path
