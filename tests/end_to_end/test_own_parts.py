"""A user's own codec, task, data set and model are a file each, named by their dotted paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from mpirun import REPOSITORY

from fedkd_mpi import costlog

OWN_PARTS = '''
import numpy as np
import torch
from torch import nn

from fedkd_mpi.datasets import Dataset
from fedkd_mpi.models import Output


def load(root, seed):
    """Points on a line: y = 2 x0 - x1, five owners."""
    draw = np.random.default_rng(seed)
    def part(n):
        x = draw.standard_normal((n, 2)).astype(np.float32)
        return {"x": x, "target": x @ np.array([2, -1], np.float32), "group": np.arange(n) % 5}
    return Dataset(part(200), part(50), {})


class Regression:
    """Squared error in place of cross-entropy and of KL."""

    metrics, sums, input_shape, num_classes = ("squared_error",), 2, (2,), 1

    def __init__(self, meta, arrays):
        pass

    def labels(self, arrays):
        return np.zeros(len(arrays["x"]), np.int64)

    def prepare(self, arrays, indices, device):
        return {name: torch.from_numpy(arrays[name][indices]).to(device) for name in ("x", "target")}

    def predict(self, model, batch):
        return model(batch["x"])

    def loss(self, output, batch):
        return (output.logits[:, 0] - batch["target"]).square().mean()

    def distance(self, reference, output, batch):
        return (output.logits - reference.logits.detach()).square().mean()

    def score(self, output, batch):
        error = output.logits[:, 0] - batch["target"]
        return np.array([float(error.double().square().sum()), len(error)])

    def finish(self, sums):
        return {"squared_error": float(sums[0] / sums[1]) if sums[1] else float("nan")}


class Wide(nn.Module):
    def __init__(self, input_shape, num_classes, *, width):
        super().__init__()
        self.hidden_sizes = (width,)
        self.first, self.last = nn.Linear(*input_shape, width), nn.Linear(width, num_classes)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return Output(self.last(hidden), (hidden,))
'''


def shortest_codec() -> str:
    """Return the shortest codec of docs/extending.md."""
    page = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (block,) = [block for block in blocks if "halves.py" in block]
    return block


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with files of a user's own."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "halves.py").write_text(shortest_codec())
    (folder / "own_parts.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("halves", "own_parts"):
        sys.modules.pop(name, None)


def test_a_codec_is_one_file(command: Command, own: Path):
    code, _, err = command("compression.codec=halves:Halves", "rounds=8", "--output", "own.h5")
    assert (code, err) == (0, "")
    log = costlog.read("own.h5")
    assert (log["uplink"]["layer_bytes"] == 2 * log["layers"]["numel"]).all()
    assert (log["downlink"]["layer_bytes"] == 2 * log["layers"]["numel"]).all()
    assert log["rounds"]["global_student_accuracy"][-1] > 0.3


def test_a_task_a_data_set_and_a_model_are_a_file_each(command: Command, own: Path):
    arguments = [
        "data.name=own_parts:load",
        "task=own_parts:Regression",
        "teacher={name: 'own_parts:Wide', width: 16, learning_rate: 0.05}",
        "student={name: 'own_parts:Wide', width: 4, learning_rate: 0.05}",
        "partition={kind: natural, min_samples: 8}",
        "num_clients=5",
        "rounds=10",
    ]
    code, out, err = command(*arguments, "--output", "own.h5")
    assert (code, err) == (0, "")
    rounds = costlog.read("own.h5")["rounds"]
    for column in ("teacher_squared_error", "student_squared_error", "global_student_squared_error"):
        assert rounds[column][-1] < 0.3 * rounds[column][0]
    assert "global student, global test set: squared_error" in out
