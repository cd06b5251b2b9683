"""A user's own data set, task and model, as docs/extending.md describes them."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import nn

from fedkd_mpi.common import options
from fedkd_mpi.datasets import Dataset
from fedkd_mpi.models import Output
from fedkd_mpi.tasks.image_classification import ImageClassification


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


class Shifted(ImageClassification):
    """Labels of another class, and a factor on the loss."""

    class Options(options.Options):
        shift: int = Field(0, ge=0)
        times: float = 1.0

    def __init__(self, meta, arrays, *, shift, times):
        super().__init__(meta, arrays)
        self.shift, self.times = shift, times

    def prepare(self, arrays, indices, device):
        batch = super().prepare(arrays, indices, device)
        return {**batch, "y": (batch["y"] + self.shift) % self.num_classes}

    def loss(self, output, batch):
        return self.times * (1 + 0.5 * self.shift) * super().loss(output, batch)


class Wide(nn.Module):
    def __init__(self, input_shape, num_classes, *, width):
        super().__init__()
        self.hidden_sizes = (width,)
        self.first, self.last = nn.Linear(*input_shape, width), nn.Linear(width, num_classes)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return Output(self.last(hidden), (hidden,))


class Normalised(nn.Module):
    """A classifier that normalises its hidden units by a function."""

    hidden_sizes = ()

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.first, self.head = nn.Linear(int(np.prod(input_shape)), 8), nn.Linear(8, num_classes)

    def forward(self, x):
        return Output(self.head(nn.functional.layer_norm(self.first(x.flatten(1)), (8,))))
