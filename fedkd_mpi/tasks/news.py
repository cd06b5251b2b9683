"""News recommendation: ranks the news shown to a user; trained with one clicked and four other news per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd_mpi.datasets import checks
from fedkd_mpi.datasets.tokens import TOKENIZER
from fedkd_mpi.distillation import kl_divergence
from fedkd_mpi.models.output import Output, Texts
from fedkd_mpi.tasks.reading import token_ids, trimmed

NEGATIVES = 4


class NewsRecommendation:
    """Samples are impressions: "history", "candidates" and "clicked" as in fedkd_mpi.datasets.mind, and "titles".

    In training, one of the clicks and 4 of the other news are drawn each time an impression is used; they are the five
    classes of cross-entropy and KL divergence. Scores use all shown news and are means over impressions.
    """

    metrics = ("auc", "mrr", "ndcg5", "ndcg10")
    sums = 5  # sum of each metric over impressions; number of impressions
    num_classes = 0  # the task has no classes
    check = staticmethod(checks.check_impressions)

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
        self.input_shape = Texts.of(meta, "candidate")
        self._titles, self._tokenizer = arrays["titles"], arrays.get(TOKENIZER)

    def labels(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.zeros(len(arrays["history"]), np.int64)

    def prepare(self, arrays: Mapping[str, np.ndarray], indices: np.ndarray, device: str) -> dict[str, Tensor]:
        names = ("history", "candidates", "clicked")
        return {name: torch.from_numpy(arrays[name][indices]).to(device) for name in names}

    def preprocess(self, raw: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the network takes of "titles" (a list of str, or token ids), "history" and "candidates".

        "history" [N, H] and "candidates" [N, C] are places in the titles, -1 where there is none.
        """
        nothing = torch.full((1, self.input_shape.length), self.input_shape.pad)
        ids = token_ids(raw["titles"], self.input_shape, self._tokenizer, trim=False)
        history, candidates = (torch.as_tensor(raw[name]).long() + 1 for name in ("history", "candidates"))
        return trimmed(torch.cat([nothing, ids]), self.input_shape.pad), history, candidates

    def predict(self, model: nn.Module, batch: dict[str, Tensor]) -> Output:
        candidates = batch["candidates"]
        if model.training:
            if "drawn" not in batch:  # teacher and student must rank the same news
                batch["drawn"] = draw(batch)
            candidates = batch["drawn"]
        news, places = torch.unique(torch.cat([batch["history"], candidates], 1), return_inverse=True)
        titles = torch.from_numpy(self._titles[news.cpu().numpy()]).to(news.device)
        history, candidates = places.split([batch["history"].shape[1], candidates.shape[1]], 1)
        return model(trimmed(titles, self.input_shape.pad), history, candidates)

    def loss(self, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return -output.logits.log_softmax(1)[:, 0].mean()

    def distance(self, reference: Output, output: Output, batch: dict[str, Tensor]) -> Tensor:
        return kl_divergence(reference.logits, output.logits)

    def score(self, output: Output, batch: dict[str, Tensor]) -> np.ndarray:
        scores, clicked, real = (
            part.cpu().numpy() for part in (output.logits, batch["clicked"] > 0, batch["candidates"] > 0)
        )
        rows = [ranking(s[r], c[r]) for s, c, r in zip(scores, clicked, real, strict=True)]
        return np.append(np.sum(rows, axis=0), len(rows))

    def finish(self, sums: np.ndarray) -> dict[str, float]:
        *totals, seen = sums
        return {name: total / seen if seen else float("nan") for name, total in zip(self.metrics, totals, strict=True)}


def draw(batch: dict[str, Tensor]) -> Tensor:
    """Return news [N, 5]: a random click of every impression, then 4 other news, repeated if there are fewer.

    Random numbers come from torch's default generator, which is seeded by client and round in local training.
    """
    clicked, real = batch["clicked"] > 0, batch["candidates"] > 0
    chance = torch.rand(clicked.shape, device=clicked.device)
    click = chance.where(clicked, -1.0).argmax(1, keepdim=True)
    others = chance.where(real & ~clicked, -1.0).sort(dim=1, descending=True, stable=True).indices
    count = (real & ~clicked).sum(1, keepdim=True)
    places = torch.arange(NEGATIVES, device=clicked.device) % count
    return batch["candidates"].gather(1, torch.cat([click, others.gather(1, places)], 1))


def ranking(scores: np.ndarray, clicked: np.ndarray) -> tuple[float, float, float, float]:
    """Return AUC, MRR, nDCG@5 and nDCG@10 of one impression, scores [C] and clicked bool [C], as defined by MIND.

    Ties count half in AUC; in the other metrics they are ranked in the given order. MRR is the mean of 1/rank over the
    clicks.
    """
    higher = scores[clicked][:, np.newaxis] - scores[~clicked]
    auc = float((np.sign(higher) + 1).mean() / 2)
    hits = clicked[np.argsort(-scores, kind="stable")]
    places = np.arange(1, len(hits) + 1)
    mrr = float((hits / places).sum() / hits.sum())
    discount = hits / np.log2(places + 1)
    ideal = np.sort(hits)[::-1] / np.log2(places + 1)
    five, ten = (float(discount[:k].sum() / ideal[:k].sum()) for k in (5, 10))
    return auc, mrr, five, ten
