"""The recorded updates that the codec benchmarks use, and timing by CPU time of the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.record_updates import FOLDER, RECORDINGS
from fedkd_mpi.errors import UserError

TUNING, FIGURES = 0, 1  # clients: codec constants were chosen with the first, results are of the second
SMALLEST = 64  # smallest short side of the matrices that are used
SHORTEST = 0.01  # CPU seconds of a measurement at least


class Recorded(NamedTuple):
    """The updates of one layer in the last round and in the round before."""

    student: str
    layer: str
    update: Tensor
    before: Tensor

    @property
    def matrix(self) -> Tensor:
        """The update as a matrix, unfolded as in the paper."""
        return self.update.reshape(self.update.shape[0], -1)


def matrices(client: int = FIGURES) -> Iterator[Recorded]:
    """Yield every recorded weight matrix of at least 64 x 64; raises UserError if nothing is recorded."""
    for student in RECORDINGS:
        path = FOLDER / f"{student}.npz"
        if not path.exists():
            raise UserError(f"{path} is missing: run python -m benchmarks.record_updates first")
        with np.load(path) as file:
            rounds = sorted({int(name.split("/")[1]) for name in file.files})
            last, before = f"{client}/{rounds[-1]}/", f"{client}/{rounds[-2]}/"
            for name in file.files:
                shape = list(file[name].shape) if name.startswith(last) else []
                if len(shape) >= 2 and min(shape[0], int(np.prod(shape[1:]))) >= SMALLEST:
                    layer = name.removeprefix(last)
                    yield Recorded(student, layer, torch.from_numpy(file[name]), torch.from_numpy(file[before + layer]))


def smallest_rank(matrix: Tensor, threshold: float) -> int:
    """Return the paper's K, computed by a float64 SVD."""
    energies = np.square(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    return int((np.cumsum(energies) <= threshold * energies.sum()).sum()) + 1


def cpu_seconds(*calls: Callable[[], Any], repetitions: int = 3) -> list[float]:
    """Return the median CPU seconds of each call; calls alternate, so that a busy machine affects all of them equally.

    A call is repeated for at least SHORTEST seconds, with warm caches, as a client encodes layer after layer.
    """
    taken = np.zeros((repetitions, len(calls)))
    for row in taken:
        for index, call in enumerate(calls):
            began, count = time.process_time(), 0
            while (spent := time.process_time() - began) < SHORTEST:
                call()
                count += 1
            row[index] = spent / count
    return np.median(taken, axis=0).tolist()


def geometric_mean(values: list[float]) -> float:
    """Return exp(mean(log(values)))."""
    return float(np.exp(np.mean(np.log(values))))
