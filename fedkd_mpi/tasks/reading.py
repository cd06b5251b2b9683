"""Functions that several tasks on texts use."""

from __future__ import annotations

import math

from torch import Tensor


def trimmed(ids: Tensor, pad: int) -> Tensor:
    """Return token ids int64 [N, L] of [N, length] without columns that are padding in every row; L is at least 1."""
    longest = int((ids != pad).sum(1).max().clamp_min(1)) if len(ids) else 1
    return ids[:, :longest].long()


def precision_recall_f1(correct: float, predicted: float, actual: float) -> dict[str, float]:
    """Return F1, precision and recall from counts; NaN if nothing was predicted and nothing is actual.

    F1 is 2 correct / (predicted + actual), the harmonic mean of precision and recall. If one of these is 0 / 0 and F1
    is 0, it counts as 0, so that the means of all three are over the same clients.
    """
    if not predicted + actual:
        return dict.fromkeys(("f1", "precision", "recall"), math.nan)
    return {
        "f1": 2 * correct / (predicted + actual),
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / actual if actual else 0.0,
    }
