"""Everything that one process holds of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.client.client import Client
from fedkd_mpi.client.scoring import EVALUATION_BATCH, Arrays
from fedkd_mpi.client.trainer import LocalTrainer
from fedkd_mpi.codecs import Codec
from fedkd_mpi.communication.world import World
from fedkd_mpi.config.schema import Config
from fedkd_mpi.methods import Method
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.scheduling import cohort
from fedkd_mpi.scheduling.plan import Plan
from fedkd_mpi.scheduling.schedule import Schedule
from fedkd_mpi.simulation.server import Server
from fedkd_mpi.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from fedkd_mpi.codecs.message import Message
    from fedkd_mpi.simulation.differential_privacy import Protection
    from fedkd_mpi.simulation.encryption import Encryption


@dataclass(frozen=True)
class Data:
    """The data set (one copy per node) and the assignment of its training samples to clients.

    The global test set is the samples `test_indices` of `test`: with data.pooled=0, of `train`.
    """

    train: Arrays
    test: Arrays
    test_indices: np.ndarray
    meta: dict[str, Any]
    clients: list[tuple[np.ndarray, np.ndarray]]  # (train, test) indices into `train`, by client id
    files: list[Path]  # that this process has read them from; none except on node leaders


@dataclass
class Exchange:
    """A process's part of the exchanged network.

    `student` is the module that is trained and scored. `replica` is the flat global student, with the same bits on
    every process once `pending_downlinks` are applied.
    """

    student: FlatModel
    replica: Tensor
    codec: Codec
    server: Server | None  # None except on rank 0
    downlink_state: dict[str, Tensor] = field(default_factory=dict)  # what the codec's receiver keeps, like the replica
    pending_downlinks: list[Message] = field(default_factory=list)
    encryption: Encryption | None = None  # keys of this start of the run
    protection: Protection | None = None  # differential privacy


@dataclass
class Simulation:
    """One process's part of a run; `exchange` is None where the method exchanges nothing."""

    config: Config
    world: World
    data: Data
    task: Task
    method: Method
    device: str
    families: np.ndarray  # the family of every client; clients of one family may be trained at once
    rank_of_client: np.ndarray  # the MPI rank of every client
    clients: dict[int, Client]  # those that this process hosts
    plan: Plan
    schedule: Schedule
    exchange: Exchange | None
    # what a dense exchange of each client's teacher would send, for comparison
    teacher_numbers: list[int] = field(default_factory=list)
    about: dict[str, Any] | None = None  # what checkpoints tell of networks and data, once it was asked for

    @cached_property
    def trainer(self) -> LocalTrainer:
        """The networks on which this process trains clients, built when first needed."""
        student = self.exchange.student if self.exchange else None
        return LocalTrainer(self.config, self.task, self.method, student, self.data.train, self.device)

    @property
    def test_size(self) -> int:
        """The number of samples in the global test set."""
        return len(self.data.test_indices)

    @property
    def scores_student(self) -> bool:
        """Whether the global student is scored: it is a network, and its BatchNorm statistics are not kept local."""
        if self.exchange is None or not self.method.predicts:
            return False
        return self.exchange.student.local_buffers is None

    @property
    def protection(self) -> Protection | None:
        """Differential privacy of what is exchanged, if there is."""
        return self.exchange.protection if self.exchange else None

    @property
    def last_round(self) -> int:
        """The index of the last round that the configuration admits: privacy.max_epsilon may end the run earlier."""
        return (self.protection.rounds if self.protection else self.config.rounds) - 1

    def needs_replica(self, round_index: int, evaluated: bool) -> bool:
        """Whether this process needs an up-to-date replica at the end of a round; all do after the last round."""
        scores = evaluated and self.scores_student and len(self.test_chunks(self.world.mpi_rank)) > 0
        return self.schedule.works or self.world.is_root or scores or round_index == self.last_round

    def evaluates(self, round_index: int) -> bool:
        """Whether a round ends with an evaluation: every evaluate.every rounds, and the last round."""
        return round_index == self.last_round or (round_index + 1) % self.config.evaluate.every == 0

    def scores_teachers(self, round_index: int) -> bool:
        """Whether every teacher is scored on the global test set in this round."""
        return self.config.evaluate.global_teachers and round_index == self.last_round

    def test_chunks(self, mpi_rank: int) -> range:
        """Return the index of the first sample of each chunk of the global test set that a process scores."""
        chunks = -(-self.test_size // EVALUATION_BATCH)
        share = cohort.shares(chunks, self.world.world_size)[mpi_rank]
        return range(share.start * EVALUATION_BATCH, share.stop * EVALUATION_BATCH, EVALUATION_BATCH)
