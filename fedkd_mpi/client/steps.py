"""The steps of one client's local training: gradients of one or several batches, then a step of every optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fedkd_mpi.client.batches import Batches
from fedkd_mpi.client.client import Client
from fedkd_mpi.client.compiled import compiled
from fedkd_mpi.client.loss_scale import LossScale
from fedkd_mpi.client.optimizer import Optimizer, clip_
from fedkd_mpi.client.rates import Rates
from fedkd_mpi.config.schema import Config
from fedkd_mpi.methods import Method, wants_start
from fedkd_mpi.models.flat import FlatModel

Losses = Callable[..., tuple[Tensor, Tensor, Tensor]]  # a method's loss, as it is or compiled
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Steps:
    """What the steps of all clients of a process have in common; contains no state of clients."""

    def __init__(self, config: Config, method: Method, device: str, input_shape: Any):
        self.config, self.method, self.device = config, method, device
        self.rates = Rates(config)
        self._wants_start = wants_start(method)
        self._compiled = compiled(method.loss, device, input_shape) if config.compile else None

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        half = HALF.get(self.config.precision)
        return torch.autocast(self.device.partition(":")[0], half) if half else nullcontext()

    def take(
        self,
        client: Client,
        round_index: int,
        batches: Batches,
        networks: Sequence[tuple[FlatModel, Optimizer]],
        start: Tensor | None,
        gradient_sum: Tensor | None,
    ) -> tuple[float, float]:
        """Train on a client's batches and return the mean losses of teacher and student.

        `networks` are the private network and, if the method has one, the student, each with its optimiser. `start` is
        the global student, flat. The student's gradients are added up in `gradient_sum`.
        """
        student = networks[1][0] if networks[1:] else None
        state, also = client.part("method."), self._global_student(student, start)
        modules = networks[0][0].module, student.module if student else None
        training = [optimizer for network, optimizer in networks if network.trainable.numel()]
        scale = LossScale(self.device, client.part("scaler.")) if self.config.precision == "float16" else None
        totals, size = torch.zeros(2, device=self.device), self.config.local.accumulate
        if gradient_sum is not None:
            gradient_sum.zero_()
        steps = math.ceil(len(batches) / size)
        for step in range(steps):
            together = min(size, len(batches) - step * size)
            for network, _ in networks:
                network.zero_grad()
            for index in range(step * size, step * size + together):
                batch = next(batches)
                with self.precision():
                    full = batches.is_full(index)
                    losses: Losses = self._compiled if self._compiled and full else self.method.loss
                    loss, *own = losses(*modules, batch, *also)
                if together > 1:
                    loss = loss / together
                (scale.scaled(loss) if scale else loss).backward()
                totals += torch.stack([part.detach().float() for part in own])
            if scale:
                scale.unscale(training)
            if student and start is not None:
                self.method.correct(student, start, state)
            for network, optimizer in networks:
                if self.config.optimizer.clip_norm:
                    clip_(network.trainable_gradient, self.config.optimizer.clip_norm)
                optimizer.factor = self.rates.factor(round_index, step, steps)
            if scale:
                scale.step(training)
            else:
                for _, optimizer in networks:
                    optimizer.step()
            if student and gradient_sum is not None:
                gradient_sum += student.trainable_gradient
        if student and start is not None:
            self.method.finish(student, start, state)
            with torch.no_grad():
                self.method.settle(networks[0][0].module, student.module)
        client.replace("method.", state)
        if scale:
            client.replace("scaler.", scale.state)
        teacher_loss, student_loss = (totals / len(batches)).tolist()
        return teacher_loss, student_loss

    def _global_student(self, student: FlatModel | None, start: Tensor | None) -> tuple[dict[str, Tensor], ...]:
        """Return the global student's tensors by name if the method's loss has a parameter for them."""
        if not self._wants_start or student is None or start is None:
            return ()
        names = (layer.name for layer in student.layers)
        return (dict(zip(names, student.views(start), strict=True)),)
