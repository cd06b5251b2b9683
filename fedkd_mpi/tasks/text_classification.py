"""Text classification: cross-entropy, KL divergence between the peers, F1 of the positive class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedkd_mpi.datasets import checks
from fedkd_mpi.datasets.tokens import TOKENIZER
from fedkd_mpi.distillation import kl_divergence
from fedkd_mpi.models.output import Output, Texts
from fedkd_mpi.tasks.reading import precision_recall_f1, token_ids, trimmed

POSITIVE = 1  # the class of precision, recall and F1


class TextClassification:
    """Samples are "ids" int32 [n, length] and "y" int64 [n]; meta contains classes, vocabulary, length and pad.

    With "positive_weight" in meta, the loss is a weighted mean in which a positive sample has this weight. With few
    positive samples, an unweighted loss gives models that rarely predict the positive class.
    """

    metrics = ("f1", "precision", "recall", "accuracy")
    sums = 5  # positives: correctly predicted, predicted, actual; then correct predictions, samples
    label_smoothing = 0.0

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = Texts.of(meta, "text")
        self._tokenizer = arrays.get(TOKENIZER)
        self.num_classes = len(meta["classes"])
        weight = meta.get("positive_weight", 1.0)
        self._weights = None if weight == 1 else torch.tensor([1.0, weight])

    @staticmethod
    def check(name: str, train: checks.Part, test: checks.Part, meta: Mapping[str, Any]) -> None:
        """Raise UserError if token ids or labels are invalid for this task."""
        checks.check_texts(name, train, test, meta)
        checks.check_classes(name, train, test, meta)

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["y"]

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        return {
            "ids": torch.from_numpy(arrays["ids"][indices]).to(device),
            "y": torch.from_numpy(arrays["y"][indices]).to(device),
        }

    def preprocess(self, raw: Any) -> Tensor:
        """Return texts (a list of str), or token ids [N, L], as the network takes them: ids, filled up with the pad."""
        return token_ids(raw, self.input_shape, self._tokenizer)

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        return model(trimmed(batch["ids"], self.input_shape.pad))

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        weights = None if self._weights is None else self._weights.to(output.logits)
        smoothing = self.label_smoothing
        return functional.cross_entropy(output.logits, batch["y"], weight=weights, label_smoothing=smoothing)

    def distance(self, reference: Output, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return kl_divergence(reference.logits, output.logits)

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        predicted, y = output.logits.argmax(1), batch["y"]
        found, actual = predicted == POSITIVE, y == POSITIVE
        counts = (found & actual).sum(), found.sum(), actual.sum(), (predicted == y).sum()
        return np.array([*map(int, counts), y.numel()], np.float64)

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        *positives, correct, seen = sums
        return precision_recall_f1(*positives) | {"accuracy": correct / seen if seen else float("nan")}
