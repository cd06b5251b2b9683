"""Runs small configurations one after another in the same processes: python worker_simulation.py FOLDER CASE...

Writes FOLDER/CASE.h5, the log, and FOLDER/CASE.RANK.npz: the student and every tensor of the rank's clients at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plain_digits import PLAIN_DIGITS

if TYPE_CHECKING:
    from fedkd_mpi.simulation.state import Simulation

SMALL = ["rounds=2", "local.epochs=1", "teacher.hidden=[32,16]", "student.hidden=[16]", "device=cpu"]
QUICK = [PLAIN_DIGITS, "local.batch_size=48"]  # for the cases: start and steps would take most of the time
ADAM = ["optimizer.name=adam", "optimizer.momentum=0", "teacher.learning_rate=0.01", "student.learning_rate=0.01"]
SEVEN = ["num_clients=7", "cohort_size=3", "rounds=6", "partition.alpha=0.3"]  # blocks of unequal length
BATCH_NORM = ["student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.05}", "num_clients=4"]
TEACHERS = (
    "teachers=[{name: mlp, hidden: [9, 8], learning_rate: 0.1}, {name: mlp, hidden: [5], learning_rate: 0.2},"
    " {name: cnn, channels: [4], kernel_size: 3, hidden: [6], learning_rate: 0.05}]"
)
PRIVATE = ["privacy.clip_norm=0.1", "privacy.delta=1e-5"]
FEEDBACK = "compression.error_feedback=ef"
CODECS = {
    "rdsvd": [*SEVEN, "compression.codec=rdsvd", FEEDBACK],
    "budget": ["num_clients=4", "compression.codec=rdsvd", FEEDBACK, "compression.byte_budget=700"],
    "gradients": [
        *["num_clients=4", "compression.codec=rdsvd", FEEDBACK, "compression.run_budget=9000"],
        *[
            "compression.budget_growth=2",
            "exchange=gradient_sum",
            "server.optimizer=fedadam",
            "server.learning_rate=0.01",
        ],
    ],
    "common": ["num_clients=4", "compression.codec=rdsvd", FEEDBACK, "compression.energy_scope=model"],
    "warm": [*SEVEN, "compression.warm_start=true"],
    "half": ["num_clients=4", "compression.codec=float16"],
    "levels": [*SEVEN, "compression.codec=quantize", "compression.bits=4", "compression.error_feedback=ef21"],
    "adaptive": [*SEVEN, "compression.codec=dadaquant", "compression.patience=1", FEEDBACK],
    "rotated": ["num_clients=4", "compression.codec=eden", "compression.bits=2.5"],
    "largest": ["num_clients=4", "compression.codec=topk", FEEDBACK],
    "power": [*SEVEN, "compression.codec=powersgd", FEEDBACK, "server.weighting=samples"],
    "sketch": ["num_clients=4", "compression.codec=fetchsgd", "compression.sketch_share=0.9"],
    # Differential privacy: noise of the server and of clients.
    "noised": [*SEVEN, *PRIVATE, FEEDBACK, "privacy.noise_multiplier=0.5", "compression.codec=quantize"],
    "noised_apart": [*SEVEN, *PRIVATE, FEEDBACK, "privacy.target_epsilon=300", "privacy.where=client"],
    # Methods whose messages are no student's.
    "prototypes": [*SEVEN[:3], "method=fedproto", "partition={kind: pathological, classes_per_client: 3}"],
    "heads": [*SEVEN, "method=lgfedavg", "compression.codec=rdsvd", FEEDBACK],
}
CASES = {
    "full": ["num_clients=4", "evaluate.global_teachers=true"],
    "partial": [*SEVEN, *ADAM, "evaluate.every=4", "server.weighting=samples"],
    "raw": ["num_clients=4", "compression.codec=none", "server.learning_rate=0.5"],
    "skipped": [*SEVEN, "task=worker_parts:Poisoned", "on_nonfinite=skip"],
    "averaged": [*BATCH_NORM, "server.buffers=average"],
    "personal": [*BATCH_NORM, "server.buffers=local"],
    "apart": [*SEVEN, *ADAM, FEEDBACK, "balance=false", "clients_in_memory=1"],
    "alone": ["num_clients=4", "method=local"],
    "mixed": [*SEVEN, "teacher=null", TEACHERS, "data.augment=true"],
    "stacked": [*SEVEN, *ADAM, "stack=2", "data.augment=true", "clients_in_memory=2"],
    "wide": ["num_clients=32"],
    **CODECS,
}
EVERY = [case for case in CASES if case != "wide"]
# What a codec makes of an update is known to no process but its sender and its receivers, whose ways are those of three
# processes: on other numbers of them go one whose messages vary in length, and one that the server alone can decode.
FEW = [case for case in EVERY if case not in CODECS or case in ("rdsvd", "sketch")]
LAUNCHES = {("openmpi", 2): FEW, ("openmpi", 3): EVERY, ("openmpi", 5): FEW, ("mpich", 3): EVERY}
ENCRYPTED = {  # apart: they need the package cryptography
    "sealed": [*CASES["partial"], "privacy.encryption=aes-gcm"],
    "sealed-apart": [*CASES["apart"], "privacy.encryption=aes-gcm"],
}
COMPILED = {  # apart: it needs a C++ compiler
    "compiled": [
        *["num_clients=3", "local.batch_size=8", "student.learning_rate=0.02", "compile=true", "teacher=null"],
        "teachers=[{name: mlp, hidden: [9], learning_rate: 0.02}, {name: mlp, hidden: [5], learning_rate: 0.02}]",
    ]
}


def main(folder: Path, cases: list[str]) -> None:
    """Run the cases in worlds of their own."""
    from fedkd_mpi.communication.launch import launched

    if launched()[1] > 1:
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        from mpi4py import MPI  # noqa: F401  MPI starts here, so that it outlives the worlds of the cases
    import numpy as np

    from fedkd_mpi import run

    for case in cases:
        with observed() as runs:
            code = run.main(
                ["--output", str(folder / f"{case}.h5"), *QUICK, *SMALL, *(CASES | COMPILED | ENCRYPTED)[case]]
            )
        if code:
            sys.exit(code)
        tensors = {
            f"{client.id}/{name}": tensor.numpy()
            for client in runs[0].clients.values()
            for name, tensor in client.tensors.items()
        }
        if runs[0].exchange:
            tensors["student"] = runs[0].exchange.replica.numpy()
        np.savez(folder / f"{case}.{runs[0].world.mpi_rank}.npz", **tensors)


@contextmanager
def observed() -> Iterator[list[Simulation]]:
    """Give the runs that the command simulates inside the block."""
    from fedkd_mpi.simulation import rounds

    runs, simulate = [], rounds.simulate

    def observing(run: Simulation, *rest: Any) -> Any:
        runs.append(run)
        return simulate(run, *rest)

    rounds.simulate = observing
    try:
        yield runs
    finally:
        rounds.simulate = simulate


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
