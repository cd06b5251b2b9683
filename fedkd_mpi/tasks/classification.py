"""One class for each sample: cross-entropy, KL divergence between the class distributions of the peers, accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.distillation import kl_divergence
from fedkd_mpi.models.output import Output


class Classification:
    """What tasks have in common whose batches are inputs "x" and classes "y" int64 [n]."""

    metrics = ("accuracy",)
    sums = 2  # correct predictions, samples
    label_smoothing = 0.0

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["y"]

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        return model(batch["x"])

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(output.logits, batch["y"], label_smoothing=self.label_smoothing)

    def distance(self, reference: Output, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return kl_divergence(reference.logits, output.logits)

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        correct = int((output.logits.argmax(1) == batch["y"]).sum())
        return np.array([correct, batch["y"].numel()], np.float64)

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        correct, seen = sums
        return {"accuracy": correct / seen if seen else float("nan")}
