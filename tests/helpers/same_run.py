"""Whether two runs are the same but for their times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog


def tensors(folder: Path, case: str, ranks: int) -> dict[str, np.ndarray]:
    """Return the student, which must be the same on all ranks, and every client's tensors at the end of a run."""
    everything: dict[str, np.ndarray] = {}
    for rank in range(ranks):
        with np.load(folder / f"{case}.{rank}.npz") as held:
            for name, values in held.items():
                if name == "student" and rank:
                    assert_same_bits(f"student of rank {rank}", values, everything[name])
                else:
                    assert name not in everything
                    everything[name] = values
    return everything


def assert_same_bits(name: str, one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape), name
    assert one.tobytes() == other.tobytes(), f"{name} differs"


def timeless(log: dict[str, Any]) -> dict[str, Any]:
    """Return a log without the events that name a straggler, which a busy machine alone may make."""
    kept = np.array(["straggler" not in text for text in log["events"]["message"]], bool)
    left = {name: np.array(values[kept].tolist()) for name, values in log["events"].items()}  # texts as long as needed
    return log | {"events": left}


def assert_same_run(one: Path, other: Path, case: str, ranks: int) -> None:
    """Check that a run left the bits that the one on a single process (`other`) left, times and placement aside."""
    left, right = tensors(one, case, ranks), tensors(other, case, 1)
    assert left.keys() == right.keys()
    for name in right:
        assert_same_bits(name, left[name], right[name])
    left, right = timeless(costlog.read(one / f"{case}.h5")), timeless(costlog.read(other / f"{case}.h5"))
    assert left["attrs"]["world_size"] == ranks
    for name in ("config_digest", "status", "metrics", "num_clients", "seed", "schema_version"):
        assert left["attrs"][name] == right["attrs"][name]
    for table in ("layers", "clients", "rounds", "uplink", "downlink", "training", "events"):
        for name in right[table]:
            if name != "mpi_rank" and not name.startswith("seconds"):
                assert_same_bits(f"{table}/{name}", left[table][name], right[table][name])
