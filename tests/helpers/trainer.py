"""Local training on small random images, for the tests of local training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedkd_mpi import methods
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.trainer import LocalTrainer, TrainingResult, initial_student
from fedkd_mpi.config.load import load
from fedkd_mpi.config.schema import Config
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.tasks.image_classification import ImageClassification

SMALL = [
    "teacher={name: mlp, hidden: [7, 6, 5], learning_rate: 0.1}",
    "student={name: mlp, hidden: [6, 4], learning_rate: 0.2}",
    "local.batch_size=8",
    "local.epochs=2",
    "num_clients=3",
    "device=cpu",
]
BATCH_NORM = ["student={name: resnet, depth: 8, width: 2, norm: batch, learning_rate: 0.1}", "optimizer.momentum=0"]
META = {"classes": list("abcd"), "scale": 1 / 16, "mean": [0.3], "std": [0.4]}


@dataclass
class LocalSetup:
    """A trainer, its replica of the student and three clients of 21 training samples."""

    config: Config
    task: ImageClassification
    trainer: LocalTrainer
    replica: Tensor | None
    clients: list[Client]

    def train(self, client: int, round_index: int = 0, evaluate: bool = False) -> TrainingResult:
        return self.trainer.train(self.clients[client], round_index, self.replica, evaluate=evaluate)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """The student's tensors in a flat vector, by name."""
        return named(self.trainer.student, flat)

    def private(self, client: int) -> dict[str, Tensor]:
        """A client's teacher and maps, by name."""
        return named(self.trainer.private, self.clients[client].tensors["private"])


def named(network: FlatModel, flat: Tensor) -> dict[str, Tensor]:
    """A network's tensors in a flat vector, by name."""
    return dict(zip((layer.name for layer in network.layers), network.views(flat), strict=True))


def make(*overrides: str, side: int = 3) -> LocalSetup:
    """Return a set-up on 90 images of side x side pixels."""
    config = load(overrides=[*SMALL, *overrides])
    draw = np.random.default_rng(0)
    arrays = {"x": draw.integers(0, 17, (90, 1, side, side), dtype=np.uint8), "y": draw.integers(0, 4, 90)}
    task = ImageClassification(META, arrays)
    task.label_smoothing = config.local.label_smoothing
    method = methods.build(config, task)
    student = initial_student(config, method, "cpu") if method.exchanges else None
    clients = [Client(i, np.arange(30 * i, 30 * i + 21), np.arange(30 * i + 21, 30 * i + 30)) for i in range(3)]
    replica = student.state.clone() if student else None
    return LocalSetup(config, task, LocalTrainer(config, task, method, student, arrays, "cpu"), replica, clients)
