"""One client: its samples, its private state, and one local training that ends in an update of the student."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.config import Config
from fedkd_mpi.errors import RunFault
from fedkd_mpi.methods import Method
from fedkd_mpi.network import Network
from fedkd_mpi.optimizer import Optimizer, clip_, make_optimizer
from fedkd_mpi.sections import Local
from fedkd_mpi.streams import generator, torch_scope
from fedkd_mpi.tasks import Examples, Task

Arrays = dict[str, np.ndarray]
EVALUATION_BATCH = 512  # fixed: another batch size could give other bits


class Client:
    """All that belongs to one client and lives across rounds.

    `tensors` is its whole private state, by name: "private" (teacher and W_h, flat), "buffers" (student statistics kept
    local), "optimizer.private.*" and "optimizer.student.*", "method.*", "codec.*". Empty until the client takes part.
    It may be at rest in a file (rest.py), and is read when asked for.
    """

    def __init__(
        self, id: int, train_indices: np.ndarray, test_indices: np.ndarray, tensors: dict[str, Tensor] | None = None
    ):
        self.id, self.train_indices, self.test_indices = id, train_indices, test_indices
        self._tensors = {} if tensors is None else tensors
        self._read: Callable[[], dict[str, Tensor]] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state; wakes the client up."""
        if self._read:
            self._tensors, self._read = self._read(), None
        return self._tensors

    @tensors.setter
    def tensors(self, tensors: dict[str, Tensor]) -> None:
        self._tensors, self._read = tensors, None

    @property
    def resting(self) -> bool:
        """Whether the state is not in memory."""
        return self._read is not None

    def lay(self, read: Callable[[], dict[str, Tensor]]) -> None:
        """Let go of the state, which `read` will bring back."""
        self._tensors, self._read = {}, read

    def expect(self, reader: ThreadPoolExecutor) -> None:
        """Begin to read a state at rest."""
        if self._read:
            self._read = reader.submit(self._read).result

    def copy(self) -> dict[str, Tensor]:
        """Return the state without waking the client up."""
        return self._read() if self._read else self._tensors

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under a prefix, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@dataclass
class Outcome:
    """What one local training gave: the student's update (flat; None without one), mean losses, scores, seconds."""

    update: Tensor | None
    teacher_loss: float
    student_loss: float
    teacher_sums: np.ndarray
    student_sums: np.ndarray
    seconds_train: float
    seconds_evaluate: float


class Workbench:
    """The networks of one process, on which its clients are trained one after another."""

    def __init__(
        self, config: Config, task: Task, method: Method, student: Network | None, arrays: Arrays, device: str
    ):
        self.config, self.task, self.method, self.arrays, self.device = config, task, method, arrays, device
        self._privates: dict[int, tuple[Network, Optimizer]] = {}  # by architecture of the teacher
        self.student = student
        if student:
            learning_rate = config.network(method.role).learning_rate
            self.student_optimizer = make_optimizer(student, config.optimizer, learning_rate)
            self._gradients = torch.zeros_like(student.trainable) if config.exchange == "gradient_sum" else None
        bfloat16 = config.precision == "bfloat16"
        self._precision = lambda: torch.autocast(device.split(":")[0], torch.bfloat16) if bfloat16 else nullcontext()

    def bring(self, client: int) -> Network:
        """Put the private networks that fit a client on the bench, built when first needed, and return them."""
        kind = self.config.architecture(client)
        if kind not in self._privates:
            with torch_scope(self.config.seed, "workbench"):
                network = Network(self.method.private(kind), self.device)
            learning_rate = self.config.architectures[kind].learning_rate
            self._privates[kind] = network, make_optimizer(network, self.config.optimizer, learning_rate)
        self.private, self.private_optimizer = self._privates[kind]
        return self.private

    def train(self, client: Client, round_index: int, student: Tensor | None, *, evaluate: bool) -> Outcome:
        """Train a client from the student replica (flat, left as it is) and return its update.

        Raises RunFault naming round, client and layer if the update or the teacher is not finite; the client's state is
        then that of before the round if on_nonfinite is skip.
        """
        began = time.perf_counter()
        keep = (
            {name: tensor.clone() for name, tensor in client.tensors.items()}
            if self.config.on_nonfinite == "skip"
            else None
        )
        self._load(client, student)
        self.method.begin(round_index, self.device)
        examples = self.task.prepare(self.arrays, client.train_indices, self.device)
        with torch_scope(self.config.seed, "training", round_index, client.id, device=self.device):
            losses = self._train(examples, round_index, client, student)
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
            if self.student:
                student_sums = score(self.task, self.student.module, *held_out)
        ended = time.perf_counter()
        return Outcome(update, *losses, teacher_sums, student_sums, trained - began, ended - trained)

    def score_teacher(self, client: Client, arrays: Arrays, indices: np.ndarray) -> np.ndarray:
        """Return the task's sums of a client's teacher on samples of `arrays`, zeros where there is no teacher."""
        self._load_private(client)
        if "teacher" not in self.private.module:
            return np.zeros(self.task.sums)
        return score(self.task, self.private.module["teacher"], arrays, indices, self.device)

    def _load_private(self, client: Client) -> None:
        self.bring(client.id)
        if "private" not in client.tensors:
            with torch_scope(self.config.seed, "teacher", client.id):
                client.tensors["private"] = Network(
                    self.method.private(self.config.architecture(client.id)), self.device
                ).state
        self.private.state.copy_(client.tensors["private"])

    def _load(self, client: Client, student: Tensor | None) -> None:
        self._load_private(client)
        self.private_optimizer.state = client.part("optimizer.private.")
        if self.student:
            self.student.state.copy_(student)
            if self.student.local_buffers is not None and "buffers" in client.tensors:
                self.student.local_buffers.copy_(client.tensors["buffers"])
            self.student_optimizer.state = client.part("optimizer.student.")

    def _store(self, client: Client) -> None:
        client.tensors["private"].copy_(self.private.state)
        optimizers = [("private", self.private_optimizer)]
        if self.student:
            optimizers.append(("student", self.student_optimizer))
            if self.student.local_buffers is not None:
                client.tensors["buffers"] = self.student.local_buffers.clone()
        for name, optimizer in optimizers:
            client.tensors.update({f"optimizer.{name}.{key}": value for key, value in optimizer.state.items()})

    def _train(self, examples: Examples, round_index: int, client: Client, start: Tensor | None) -> tuple[float, float]:
        count = len(next(iter(examples.values())))
        order = generator(self.config.seed, "batches", round_index, client.id)
        augment = self.config.data.augment
        chance = generator(self.config.seed, "augmentation", round_index, client.id) if augment else None
        state = client.part("method.")
        networks = [(self.private, self.private_optimizer)]
        if self.student:
            networks.append((self.student, self.student_optimizer))
        totals, steps = torch.zeros(2, device=self.device), 0
        if self.student and self._gradients is not None:
            self._gradients.zero_()
        for index in batches(count, self.config.local, order):
            index = index.to(self.device)
            batch = {name: tensor.index_select(0, index) for name, tensor in examples.items()}
            if augment:
                batch = self.task.augment(batch, chance)
            for network, _ in networks:
                network.zero_grad()
            with self._precision():
                loss, *own = self.method.loss(self.private.module, self.student and self.student.module, batch)
            loss.backward()
            if self.student:
                self.method.correct(self.student, start, state)
            for network, optimizer in networks:
                if self.config.optimizer.clip_norm:
                    clip_(network.trainable.grad, self.config.optimizer.clip_norm)
                optimizer.step()
            if self.student and self._gradients is not None:
                self._gradients += self.student.trainable.grad
            totals += torch.stack([part.detach().float() for part in own])
            steps += 1
        if self.student:
            self.method.finish(self.student, start, state)
        client.tensors.update({f"method.{name}": tensor for name, tensor in state.items()})
        teacher_loss, student_loss = (totals / steps).tolist()
        return teacher_loss, student_loss

    def _update(self, student: Tensor | None, round_index: int, client: int) -> Tensor | None:
        self.private.require_finite(self.private.state, "private state (teacher and W_h)", round_index, client)
        if not self.student:
            return None
        update = self.student.state - student
        if self._gradients is not None:
            update[: self._gradients.numel()] = -self._gradients
        self.student.require_finite(update, "update of the student", round_index, client)
        return update


@torch.no_grad()
def score(task: Task, model: torch.nn.Module, arrays: Arrays, indices: np.ndarray, device: str) -> np.ndarray:
    """Return the task's sums of a model on samples of `arrays`: float64 [task.sums]."""
    model.eval()
    sums = np.zeros(task.sums)
    for start in range(0, len(indices), EVALUATION_BATCH):
        batch = task.prepare(arrays, indices[start : start + EVALUATION_BATCH], device)
        sums += task.score(task.predict(model, batch), batch)
    model.train()
    return sums


def initial_student(config: Config, method: Method, device: str) -> Network:
    """Return the student as every process starts with it: its values follow from the seed alone."""
    with torch_scope(config.seed, "student"):
        return Network(method.student(), device, exchange_buffers=config.server.buffers == "average")


def work(count: int, local: Local) -> int:
    """Return how many samples one local training over `count` samples goes through, short batches apart."""
    return count * local.epochs if local.epochs else local.steps * min(local.batch_size, count)


def batches(count: int, local: Local, order: np.random.Generator) -> Iterator[Tensor]:
    """Yield index tensors of the mini-batches of one local training over `count` samples, reshuffled for every pass.

    A last batch of a single sample is left out (BatchNorm cannot train on it), unless the client has no other.
    """
    steps = 0
    epochs = local.epochs or local.steps  # a pass has at least one step
    for _ in range(epochs):
        permutation = torch.from_numpy(order.permutation(count))
        for index in permutation.split(local.batch_size):
            if len(index) == 1 < count and local.batch_size > 1:
                continue
            if steps == local.steps:
                return
            yield index
            steps += 1
