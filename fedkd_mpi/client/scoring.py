"""The score of a network on samples, as the sums of its task."""

from __future__ import annotations

import numpy as np
import torch

from fedkd_mpi.tasks import Task

Arrays = dict[str, np.ndarray]
EVALUATION_BATCH = 512  # samples; not configurable, because another batch size could change the bits of scores


@torch.no_grad()
def score(task: Task, model: torch.nn.Module, arrays: Arrays, indices: np.ndarray, device: str) -> np.ndarray:
    """Return the task's sums of a model on the samples `indices` of `arrays`: float64 [task.sums].

    All sums are NaN if a logit is NaN.
    """
    model.eval()
    sums = np.zeros(task.sums)
    for start in range(0, len(indices), EVALUATION_BATCH):
        batch = task.prepare(arrays, indices[start : start + EVALUATION_BATCH], device)
        output = task.predict(model, batch)
        logits = getattr(output, "logits", None)
        if logits is not None and torch.isnan(logits).any():  # argmax would return class 0
            sums[:] = np.nan
            break
        sums += task.score(output, batch)
    model.train()
    return sums
