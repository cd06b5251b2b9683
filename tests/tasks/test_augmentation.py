"""Crops and flips: only whole shifts and mirrorings of the padded image, each as likely as it should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command import Command, assert_refused
from trainer import make

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.tasks.augmentation import random_crop_and_flip, random_flips


def crops(image: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every result that an image [C, H, W] may have, by NumPy alone."""
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    height, width = image.shape[1:]
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            found[crop.tobytes()] = (top, left, False)
            found[np.ascontiguousarray(crop[:, :, ::-1]).tobytes()] = (top, left, True)
    return found


def test_every_image_is_a_crop_of_its_padded_self_and_all_crops_come():
    image = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    x = torch.from_numpy(np.stack([image] * 2000))
    result = random_crop_and_flip(x, generator(0, "test"))
    possible = crops(image, 1)
    assert len(possible) == 18
    seen = [possible[np.ascontiguousarray(one).tobytes()] for one in result.numpy()]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 18
    assert np.abs(counts - 2000 / 18).max() < 6 * np.sqrt(2000 / 18)  # six standard deviations


def test_the_padding_is_an_eighth_of_each_side_and_a_small_side_is_only_mirrored():
    tall = np.random.default_rng(0).standard_normal((1, 32, 5)).astype(np.float32)
    out = random_crop_and_flip(torch.from_numpy(np.stack([tall] * 300)), generator(1, "test")).numpy()
    bare = [int((one != 0).any(axis=(0, 2)).sum()) for one in out]
    assert (min(bare), max(bare)) == (28, 32)
    assert all((one != 0).any(axis=(0, 1)).all() for one in out)


def test_batches_are_varied_in_training_alone_and_differently_in_every_round(monkeypatch: pytest.MonkeyPatch):
    local, plain = make("data.augment=true", side=8), make(side=8)
    seen = []
    predict = local.task.predict
    local.task.predict = lambda model, batch: seen.append((model.training, batch["x"].clone())) or predict(model, batch)
    local.train(0, 0, evaluate=True)
    first = [x for training, x in seen if training]
    held_out = [x for training, x in seen if not training]
    expected = plain.task.prepare(plain.trainer.arrays, plain.clients[0].test_indices, "cpu")["x"]
    assert all(torch.equal(x, expected) for x in held_out)
    seen.clear()
    local.train(0, 1)
    whole = {image.numpy().tobytes() for image in plain.task.prepare(plain.trainer.arrays, np.arange(90), "cpu")["x"]}
    varied = [np.ascontiguousarray(image).tobytes() not in whole for x in first for image in x.numpy()]
    assert np.mean(varied) > 0.8  # 17 of 18 crops differ from the image
    assert not any(torch.equal(a, b) for (_, a), b in zip(seen, first, strict=False) if a.shape == b.shape)


def test_pairs_are_mirrored_alike_in_all_four_ways():
    draw = np.random.default_rng(0)
    x, y = (torch.from_numpy(draw.standard_normal((400, 1, 4, 5))) for _ in range(2))
    ways = np.zeros(4)
    for before_x, before_y, after_x, after_y in zip(x, y, *random_flips([x, y], generator(0, "test")), strict=True):
        flips = [(), (2,), (1,), (1, 2)]
        (way,) = [way for way, axes in enumerate(flips) if torch.equal(after_x, before_x.flip(axes))]
        assert torch.equal(after_y, before_y.flip(flips[way]))
        ways[way] += 1
    assert np.abs(ways - 100).max() < 6 * np.sqrt(75)  # six standard deviations


def test_a_task_without_augmentation_says_so(command: Command):
    assert_refused(command("task=worker_parts:Bare", "data.augment=true"), "task=worker_parts:Bare has no augmentation")
