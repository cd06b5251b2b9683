"""A naive implementation of a round (Algorithm 1), for comparison.

One process with as many threads as cores trains one client after another, with a DataLoader that collates sample by
sample, two backward passes, optimisers over lists of parameters, and numpy's SVD of every matrix. The server rebuilds
all updates, computes np.mean and decomposes the mean again. Clients, models and batches are those of the configuration.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedkd_mpi import methods, tasks
from fedkd_mpi.client.batches import batches
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.torch_streams import torch_scope
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config
from fedkd_mpi.distillation import attention_error
from fedkd_mpi.simulation.setup import load_data

Compressed = list[tuple[np.ndarray, ...]]


class Samples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The samples of a client, prepared one at a time."""

    def __init__(self, task: tasks.Task, arrays: dict[str, np.ndarray], indices: np.ndarray):
        self.task, self.arrays, self.indices = task, arrays, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        one = self.task.prepare(self.arrays, self.indices[[index]], "cpu")
        return {name: tensor[0] for name, tensor in one.items()}


class Peer:
    """One client: its data, networks and optimisers."""

    def __init__(self, config: Config, task: tasks.Task, method: methods.Method, index: int, samples: Samples):
        self.config, self.task, self.index, self.samples = config, task, index, samples
        with torch_scope(config.seed, "teacher", index):
            self.private = method.private()
        self.student = method.student()
        rule = config.optimizer
        self.optimizers = [
            torch.optim.SGD(network.parameters(), lr=rate, momentum=rule.momentum, weight_decay=rule.weight_decay)
            for network, rate in (
                (self.private, config.network("teacher").learning_rate),
                (self.student, config.network("student").learning_rate),
            )
        ]

    def train(self, round_index: int, student: dict[str, Tensor]) -> list[np.ndarray]:
        """Train from the global student and return the change of every parameter."""
        self.student.load_state_dict(student)
        order = generator(self.config.seed, "batches", round_index, self.index)
        plan = [index.tolist() for index in batches(len(self.samples), self.config.local, order)]
        for batch in DataLoader(self.samples, batch_sampler=plan):
            teacher, own = self.task.predict(self.private["teacher"], batch), self.task.predict(self.student, batch)
            labels = self.task.loss(teacher, batch), self.task.loss(own, batch)
            features = self.private["hidden_map"](teacher.hidden, own.hidden)
            if teacher.attention:
                features = features + attention_error(teacher.attention, own.attention)
            scale = (labels[0] + labels[1]).detach().clamp_min(self.config.distillation.floor)
            losses = (
                labels[0] + (self.task.distance(own, teacher, batch) + features) / scale,
                labels[1] + (self.task.distance(teacher, own, batch) + features) / scale,
            )
            # The gradient of each loss is only for its own network: two passes, each through both networks.
            for network, loss, last in zip((self.private, self.student), losses, (False, True), strict=True):
                parameters = list(network.parameters())
                for parameter, gradient in zip(
                    parameters, torch.autograd.grad(loss, parameters, retain_graph=not last), strict=True
                ):
                    parameter.grad = gradient
            for optimizer in self.optimizers:
                optimizer.step()
        return [(after - student[name]).detach().numpy() for name, after in self.student.named_parameters()]


def compress(update: list[np.ndarray], threshold: float) -> Compressed:
    """Return U, s and V of every matrix at the smallest rank above the threshold; other tensors unchanged."""
    out: Compressed = []
    for tensor in update:
        if tensor.ndim < 2:
            out.append((tensor,))
            continue
        left, sigma, right = np.linalg.svd(tensor.reshape(len(tensor), -1), full_matrices=False)
        energy, rank = (sigma**2).sum(), 1
        while rank < len(sigma) and (sigma[:rank] ** 2).sum() <= threshold * energy:
            rank += 1
        out.append((left[:, :rank], sigma[:rank], right[:rank]))
    return out


def rebuild(parts: Compressed, like: list[np.ndarray]) -> list[np.ndarray]:
    """Return the decompressed update."""
    whole = [part[0] if len(part) == 1 else part[0] @ np.diag(part[1]) @ part[2] for part in parts]
    return [tensor.reshape(other.shape) for tensor, other in zip(whole, like, strict=True)]


def seconds(config: Config) -> list[float]:
    """Return the seconds of every round."""
    world = SingleProcessWorld()
    data = load_data(config, world)
    task = tasks.find(config.task.name)(data.meta, data.train)
    method = methods.build(config, task)
    peers = [
        Peer(config, task, method, index, Samples(task, data.train, train))
        for index, (train, _) in enumerate(data.clients)
    ]
    with torch_scope(config.seed, "student"):
        student: nn.Module = method.student()
    taken = []
    for round_index in range(config.rounds):
        began = time.perf_counter()
        threshold = config.threshold(round_index)
        state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        sent = []
        for peer in peers:
            update = peer.train(round_index, state)
            sent.append(compress(update, threshold))
        mean = [np.mean(tensors, axis=0) for tensors in zip(*(rebuild(parts, update) for parts in sent), strict=True)]
        downlink = rebuild(compress(mean, threshold), mean)
        with torch.no_grad():
            for parameter, change in zip(student.parameters(), downlink, strict=True):
                parameter.add_(torch.from_numpy(np.ascontiguousarray(change)))
        taken.append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    target, file, threads, *changes = sys.argv[1:]
    torch.set_num_threads(int(threads))
    Path(target).write_text(json.dumps(seconds(configuration.load(Path(file), changes))), encoding="utf-8")
