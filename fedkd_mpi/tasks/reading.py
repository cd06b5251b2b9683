"""What the tasks on texts have in common."""

from __future__ import annotations

import math

from torch import Tensor


def trimmed(ids: Tensor, pad: int) -> Tensor:
    """Return token ids int64 [N, L] of [N, length], without the columns that are padding in every row (one stays)."""
    longest = int((ids != pad).sum(1).max().clamp_min(1)) if len(ids) else 1
    return ids[:, :longest].long()


def precision_recall_f1(right: float, predicted: float, there: float) -> dict[str, float]:
    """Return the scores of `right` among `predicted` and among `there`; NaN where nothing was predicted nor is there.

    F1 is 2 right / (predicted + there), the harmonic mean of the two. Where it is 0 because one of them is 0 / 0, that
    one counts as 0 too, so that means over clients are means over the same clients.
    """
    if not predicted + there:
        return dict.fromkeys(("f1", "precision", "recall"), math.nan)
    return {
        "f1": 2 * right / (predicted + there),
        "precision": right / predicted if predicted else 0.0,
        "recall": right / there if there else 0.0,
    }
