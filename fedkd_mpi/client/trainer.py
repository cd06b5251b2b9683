"""Local training and evaluation: the networks of one process, used by its clients one after another or stacked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.client.batches import Batches, Samples
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.optimizer import Optimizer
from fedkd_mpi.client.own_optimizer import optimizer_for
from fedkd_mpi.client.scoring import Arrays, score
from fedkd_mpi.client.steps import Steps
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.methods import Method, new_private, new_student
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.tasks import Task

if TYPE_CHECKING:
    from fedkd_mpi.client.stacked import Stack

PRIVATE = "private networks"  # the stream from which networks begin that take the place of every client's


@dataclass
class TrainingResult:
    """The result of one local training: the student's update (flat, None without a student), losses, scores, seconds.

    The losses are means over steps. `*_sums` are the task's sums on the client's test samples.
    """

    update: Tensor | None
    teacher_loss: float
    student_loss: float
    teacher_sums: np.ndarray
    student_sums: np.ndarray
    seconds_train: float
    seconds_evaluate: float


Trained = TrainingResult | RunFault


class LocalTrainer:
    """The networks of one process, on which its clients are trained one after another or stacked."""

    def __init__(
        self, config: Config, task: Task, method: Method, student: FlatModel | None, arrays: Arrays, device: str
    ):
        self.config, self.task, self.method, self.arrays, self.device = config, task, method, arrays, device
        self._privates: dict[int, tuple[FlatModel, Optimizer]] = {}  # by architecture of the teacher
        self._stacks: dict[int, Stack] = {}  # by architecture of the teacher
        self.student = student
        if student:
            learning_rate = config.network(method.role).learning_rate
            self.student_optimizer = optimizer_for(student, config.optimizer, learning_rate)
        sums = student is not None and config.exchange == "gradient_sum"
        self._gradients = torch.zeros_like(student.trainable) if student and sums else None
        self._steps = Steps(config, method, device, task.input_shape)

    def networks_for(self, client: int) -> FlatModel:
        """Select the private networks of this client's teacher architecture, built on first use, and return them."""
        kind = self.config.architecture(client)
        if kind not in self._privates:
            key = f"teachers.{kind}" if self.config.teachers else "teacher"
            with torch_scope(self.config.seed, PRIVATE), under_key(key):
                network = FlatModel(new_private(self.config, self.method, kind), self.device, exchange_buffers=False)
            learning_rate = self.config.architectures[kind].learning_rate
            self._privates[kind] = network, optimizer_for(network, self.config.optimizer, learning_rate)
        self.private, self.private_optimizer = self._privates[kind]
        return self.private

    def stack(self, client: Client) -> Stack:
        """Return the stack of this client's teacher architecture, built on first use.

        Raises UserError naming the key `stack` if the networks cannot be stacked.
        """
        from fedkd_mpi.client.stacked import Stack

        kind = self.config.architecture(client.id)
        if kind not in self._stacks:
            self.networks_for(client.id)
            self._stacks[kind] = Stack(self.config, self.method, self.in_training())
            examples = self.task.prepare(self.arrays, client.train_indices[:2], self.device)
            self._stacks[kind].check(examples, self.in_training())
        return self._stacks[kind]

    def train(self, client: Client, round_index: int, student: Tensor | None, *, evaluate: bool) -> TrainingResult:
        """Train a client from the student replica (flat, not modified) and return its result.

        Raises RunFault naming round, client and layer if the update or the teacher is not finite. With
        on_nonfinite=skip the client's state is then restored to the one before the round.
        """
        began = time.perf_counter()
        keep = self._keep(client)
        self._load(client, student)
        self.method.begin(round_index, self.device)
        batches = self._batches(client, round_index)
        with torch_scope(self.config.seed, "training", round_index, client.id, device=self.device):
            losses = self._steps.take(client, round_index, batches, self.in_training(), student, self._gradients)
        return self._conclude(client, round_index, student, losses, keep, began, evaluate)

    def train_stack(
        self, clients: Sequence[Client], round_index: int, student: Tensor | None, *, evaluate: bool
    ) -> list[Trained]:
        """Train clients of one teacher architecture at once; return the result or the RunFault of each, as train()."""
        began = time.perf_counter()
        stack = self.stack(clients[0])
        self.method.begin(round_index, self.device)
        batches = {client.id: self._batches(client, round_index) for client in clients}
        keeps = {client.id: self._keep(client) for client in clients}
        rows = sorted(clients, key=lambda client: -batches[client.id].full)
        for row, client in enumerate(rows):
            self._load(client, student)
            stack.put(row, self.in_training())
        rate = partial(self._steps.rates.factor, round_index)
        losses = stack.train([batches[client.id] for client in rows], self._steps.precision, rate)
        shared = (time.perf_counter() - began) / len(clients)
        outcomes: dict[int, Trained] = {}
        for row, client in enumerate(rows):
            began = time.perf_counter() - shared
            stack.get(row, self.in_training(), self._gradients)
            try:
                outcomes[client.id] = self._conclude(
                    client, round_index, student, losses[row], keeps[client.id], began, evaluate
                )
            except RunFault as fault:
                outcomes[client.id] = fault
        return [outcomes[client.id] for client in clients]

    def score_teacher(self, client: Client, arrays: Arrays, indices: np.ndarray) -> np.ndarray:
        """Return the task's sums of a client's teacher on samples `indices` of `arrays`, zeros without a teacher."""
        self._load_private(client)
        if "teacher" not in self.private.module:
            return np.zeros(self.task.sums)
        return score(self.task, self.private.module["teacher"], arrays, indices, self.device)

    def in_training(self) -> list[tuple[FlatModel, Optimizer]]:
        """Return the private network of the client that is selected and, if there is one, the student."""
        own = [(self.private, self.private_optimizer)]
        return [*own, (self.student, self.student_optimizer)] if self.student else own

    def _keep(self, client: Client) -> dict[str, Tensor] | None:
        """Return a copy of a client's state if it may have to be restored."""
        skips = self.config.on_nonfinite == "skip"
        return {name: tensor.clone() for name, tensor in client.tensors.items()} if skips else None

    def _batches(self, client: Client, round_index: int) -> Batches:
        samples = Samples(self.task, self.arrays, client.train_indices, self.device)
        return Batches(self.config, self.task, samples, round_index, client.id)

    def _load_private(self, client: Client) -> None:
        self.networks_for(client.id)
        if "private" not in client.tensors:
            with torch_scope(self.config.seed, "teacher", client.id):
                module = new_private(self.config, self.method, self.config.architecture(client.id))
                client.tensors["private"] = self.private.flat(module)
        self.private.load(client.tensors["private"])
        _take(self.private, client, "others.private")

    def _load(self, client: Client, student: Tensor | None) -> None:
        self._load_private(client)
        self.private_optimizer.state = self._optimizer_state(client, "private")
        if (self.student is None) != (student is None):
            raise ValueError("a student and its replica are there together, or neither is")
        if self.student and student is not None:
            self.student.load(student)
            _take(self.student, client, "others.student")
            if self.student.local_buffers is not None and "buffers" in client.tensors:
                self.student.local_buffers.copy_(client.tensors["buffers"])
            self.student_optimizer.state = self._optimizer_state(client, "student")

    def _optimizer_state(self, client: Client, network: str) -> dict[str, Tensor]:
        return {} if self.config.optimizer.renew else client.part(f"optimizer.{network}.")

    def _store(self, client: Client) -> None:
        for name, (network, optimizer) in zip(("private", "student"), self.in_training(), strict=False):
            network.gather()
            if network.others.numel():
                client.tensors[f"others.{name}"] = network.others.clone()
            if not self.config.optimizer.renew:
                client.replace(f"optimizer.{name}.", optimizer.state)
        client.tensors["private"].copy_(self.private.state)
        if self.student and self.student.local_buffers is not None:
            client.tensors["buffers"] = self.student.local_buffers.clone()

    def _conclude(
        self,
        client: Client,
        round_index: int,
        student: Tensor | None,
        losses: tuple[float, float],
        keep: dict[str, Tensor] | None,
        began: float,
        evaluate: bool,
    ) -> TrainingResult:
        """Store the state of the client that was just trained, and return its update and scores."""
        self._store(client)
        try:
            update = self._update(student, round_index, client.id)
        except RunFault:
            if keep is not None:
                client.tensors = keep
            raise
        trained = time.perf_counter()
        teacher_sums, student_sums = np.zeros((2, self.task.sums))
        if evaluate:
            held_out = self.arrays, client.test_indices, self.device
            if "teacher" in self.private.module:
                teacher_sums = score(self.task, self.private.module["teacher"], *held_out)
            if self.student and self.method.predicts:
                student_sums = score(self.task, self.student.module, *held_out)
        ended = time.perf_counter()
        return TrainingResult(update, *losses, teacher_sums, student_sums, trained - began, ended - trained)

    def _update(self, student: Tensor | None, round_index: int, client: int) -> Tensor | None:
        self.private.require_finite(self.private.state, "private state (teacher and W_h)", round_index, client)
        if not self.student or student is None:
            return None
        update = self.student.state - student
        # Statistics are sent as values, not as changes: a mean of statistics is valid, a sum of changes need not be.
        present = self.student.exchanged_parts(self.student.state)[1]
        for part, buffer in zip(self.student.exchanged_parts(update)[1], present, strict=True):
            part.copy_(buffer)
        if self._gradients is not None:
            update[: self._gradients.numel()] = -self._gradients
        self.student.require_finite(update, "update of the student", round_index, client)
        return update


def _take(network: FlatModel, client: Client, name: str) -> None:
    """Set the network's buffers of other types to those of the client, or to those of a new module."""
    if name in client.tensors:
        network.others.copy_(client.tensors[name])
    else:
        network.reset_others()


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Prefix the message of a UserError raised inside the block with the configuration key of the network."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(key) else f"{key}: {text}") from None


def initial_student(config: Config, method: Method, device: str) -> FlatModel:
    """Return the initial student, the same on every process: its values depend on the seed only."""
    key = "student" if method.role == "student" else "teacher"
    with torch_scope(config.seed, "student"), under_key(key) if method.predicts else nullcontext():
        return FlatModel(new_student(config, method), device, exchange_buffers=config.server.buffers == "average")
