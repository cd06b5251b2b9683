"""The mini-batches of one client in one round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import LocalConfig
from fedkd_mpi.tasks import Examples, Task

AT_ONCE = 16 * 2**20  # bytes of a client's samples as tensors on the CPU, above which batches are prepared one by one


class Samples:
    """The training samples of one client, from which batches are selected.

    They are tensors on the device. Where these would be large and the device is the CPU, whose memory the raw samples
    are in anyway, each batch is prepared for itself: its bits and its layout in memory are the same.
    """

    def __init__(self, task: Task, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str):
        self._task, self._arrays, self._indices, self._device = task, arrays, indices, device
        self._whole: Examples | None = None
        if device != "cpu" or len(indices) * self._bytes_of_one() <= AT_ONCE:
            self._whole = task.prepare(arrays, indices, device)

    def __len__(self) -> int:
        return len(self._indices)

    def select(self, places: Tensor) -> Examples:
        """Return the samples at these places, counted among the client's own."""
        if self._whole is None:
            examples = self._task.prepare(self._arrays, self._indices[places.numpy()], self._device)
            places = torch.arange(len(places))
        else:
            examples, places = self._whole, places.to(self._device)
        return {name: tensor.index_select(0, places) for name, tensor in examples.items()}

    def _bytes_of_one(self) -> int:
        one = self._task.prepare(self._arrays, self._indices[:1], self._device)
        return sum(tensor.nbytes for tensor in one.values())


class Batches:
    """An iterator over the mini-batches of one client in one round.

    The order of samples and, with data.augment, the changes to them are drawn as the batches are requested: there may
    be too many to plan in advance. Its length is the number of all batches.
    """

    def __init__(self, config: Config, task: Task, samples: Samples, round_index: int, client: int):
        self._task, self._samples = task, samples
        self._indices = batches(len(samples), config.local, order_of(config, round_index, client))
        self._per_epoch, self._full_per_epoch = per_epoch(len(samples), config.local)
        self._count = config.local.steps or (config.local.epochs or 0) * self._per_epoch
        augment = config.data.augment
        self._chance = generator(config.seed, "augmentation", round_index, client) if augment else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Examples:
        batch = self._samples.select(next(self._indices))
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
