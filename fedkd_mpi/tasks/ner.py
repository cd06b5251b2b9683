"""Named-entity recognition: losses on labelled tokens only; precision, recall and F1 of complete entities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

Entity = tuple[int, int, int]  # first word, the word after the last, type


class NamedEntityRecognition:
    """Samples are "ids" int32 and "tags" int8 [n, length], "missed" int64 [n]: see fedkd_mpi.datasets.corpora.

    An entity counts as found if its words and its type are predicted exactly. `missed` entities, which are beyond the
    length that the model reads, count as not found. The class of a sample, which the partition may use, is the type of
    its first entity.
    """

    metrics = ("f1", "precision", "recall")
    sums = 3  # entities: correctly predicted, predicted, true
    label_smoothing = 0.0
    check = staticmethod(checks.check_entities)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = Texts.of(meta, "token")
        self._tokenizer = arrays.get(TOKENIZER)
        self.num_classes = 1 + 2 * len(meta["kinds"])

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        tags = arrays["tags"]
        first = np.take_along_axis(tags, (tags > 0).argmax(1)[:, np.newaxis], 1)[:, 0].astype(np.int64)
        return np.where(first > 0, (first + 1) // 2, 0)

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        return {name: torch.from_numpy(arrays[name][indices]).to(device) for name in ("ids", "tags", "missed")}

    def preprocess(self, raw: Any) -> Tensor:
        """Return texts (a list of str), or token ids [N, L], as the network takes them: ids, filled up with the pad."""
        return token_ids(raw, self.input_shape, self._tokenizer)

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        return model(trimmed(batch["ids"], self.input_shape.pad))

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        tags = _tags(output, batch)
        logits, labels = output.logits[tags >= 0], tags[tags >= 0]
        total = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)
        return total / (tags >= 0).sum().clamp_min(1)

    def distance(self, reference: Output, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return kl_divergence(reference.logits, output.logits, _tags(output, batch) >= 0)

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        tags = _tags(output, batch).cpu().numpy()
        sums = np.array([0, 0, int(batch["missed"].sum())], np.float64)
        for predicted, true in zip(output.logits.argmax(-1).cpu().numpy(), tags, strict=True):
            found, actual = (set(entities(row[true >= 0])) for row in (predicted, true))
            sums += len(found & actual), len(found), len(actual)
        return sums

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        return precision_recall_f1(*sums)


def entities(tags: Iterable[int]) -> list[Entity]:
    """Return the entities in the tags of a text's words (0 is O, 1 + 2k is B and 2 + 2k is I of type k).

    An I that does not continue an entity of its type begins a new one, as in the CoNLL evaluation script.
    """
    found: list[Entity] = []
    start = kind = -1
    for word, tag in enumerate([*map(int, tags), 0]):
        continues = kind >= 0 and tag == 2 + 2 * kind
        if kind >= 0 and not continues:
            found.append((start, word, kind))
        if not continues:
            start, kind = word, (tag - 1) // 2 if tag else -1
    return found


def _tags(output: Output, batch: dict[str, Tensor]) -> Tensor:
    return batch["tags"][:, : output.logits.shape[1]].long()
