"""The mini-batches of one client in one round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.tasks import Examples, Task


class Batches:
    """An iterator over the mini-batches of one client in one round, selected from tensors on the device.

    The order of samples and, with data.augment, the changes to them are drawn as the batches are requested: there may
    be too many to plan in advance. Its length is the number of all batches.
    """

    def __init__(self, config: Config, task: Task, examples: Examples, round_index: int, client: int):
        self._task, self._examples = task, examples
        first = next(iter(examples.values()))
        self._device = first.device
        self._indices = batches(len(first), config.local, order_of(config, round_index, client))
        self._per_epoch, self._full_per_epoch = per_epoch(len(first), config.local)
        self._count = config.local.steps or (config.local.epochs or 0) * self._per_epoch
        augment = config.data.augment
        self._chance = generator(config.seed, "augmentation", round_index, client) if augment else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Examples:
        index = next(self._indices).to(self._device)
        batch = {name: tensor.index_select(0, index) for name, tensor in self._examples.items()}
        return batch if self._chance is None else cast("_Augmenting", self._task).augment(batch, self._chance)

    @property
    def full(self) -> int:
        """How many of all batches have local.batch_size samples."""
        epochs, rest = divmod(self._count, self._per_epoch)
        return epochs * self._full_per_epoch + min(rest, self._full_per_epoch)

    def is_full(self, step: int) -> bool:
        """Return whether the batch number `step`, counted from 0, has local.batch_size samples."""
        return step % self._per_epoch < self._full_per_epoch


def order_of(config: Config, round_index: int, client: int) -> np.random.Generator:
    """Return the stream of a client's order of samples: its own in each round, or the same in all of them."""
    if config.local.shuffle:
        return generator(config.seed, "batches", round_index, client)
    return generator(config.seed, "order", client)


class _Augmenting(Protocol):
    def augment(self, batch: Examples, rng: np.random.Generator) -> Examples: ...


def work(count: int, local: LocalConfig) -> int:
    """Return how many samples one local training on `count` samples processes, counting every batch as full."""
    return count * local.epochs if local.epochs else (local.steps or 0) * min(local.batch_size, count)


def per_epoch(count: int, local: LocalConfig) -> tuple[int, int]:
    """Return how many mini-batches an epoch on `count` samples has, at least one, and how many of them are full."""
    full, rest = divmod(count, local.batch_size)
    return full + (rest >= _least(count, local)), full


def batches(count: int, local: LocalConfig, order: np.random.Generator) -> Iterator[Tensor]:
    """Yield the index tensors of the mini-batches of one local training on `count` samples.

    They are reshuffled per epoch unless local.shuffle is false. With local.drop_last a last batch that is not full is
    skipped, otherwise one of a single sample, because BatchNorm cannot train on it; the only one is never skipped.
    """
    steps = 0
    epochs = local.epochs or local.steps or 0  # an epoch has at least one step
    permutation = torch.from_numpy(order.permutation(count))
    for epoch in range(epochs):
        if epoch and local.shuffle:
            permutation = torch.from_numpy(order.permutation(count))
        for index in permutation.split(local.batch_size):
            if len(index) < _least(count, local):
                continue
            if steps == local.steps:
                return
            yield index
            steps += 1


def _least(count: int, local: LocalConfig) -> int:
    """Return how many samples a mini-batch must have."""
    return min(local.batch_size if local.drop_last else 2, local.batch_size, count)
