"""What the tasks on texts have in common."""

from __future__ import annotations

import math

from torch import Tensor


def trimmed(ids: Tensor, pad: int) -> Tensor:
    """Return token ids int64 [N, L] of [N, length], without the columns that are padding in every row (one stays)."""
    longest = int((ids != pad).sum(1).max().clamp_min(1)) if len(ids) else 1
    return ids[:, :longest].long()


def precision_recall_f1(right: float, predicted: float, there: float) -> dict[str, float]:
    """Return the scores of `right` among `predicted` and among `there`; NaN where they would be 0 / 0.

    F1 is 2 right / (predicted + there), which is the harmonic mean of the two wherever both are defined.
    """

    def share(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    scores = {"f1": share(2 * right, predicted + there)}
    return scores | {"precision": share(right, predicted), "recall": share(right, there)}
