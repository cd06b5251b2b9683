"""Functions that several tasks use: raw samples and texts as tensors, scores of entities and classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedkd_mpi.errors import UserError
from fedkd_mpi.models.output import Texts


def as_batch(raw: Any, shape: Sequence[int | None]) -> Tensor:
    """Return samples of `shape` (None: any) as a tensor [N, *shape], a single one as a batch of one.

    Raises UserError where they are of another shape.
    """
    batch = torch.as_tensor(raw)
    if batch.dim() == len(shape):
        batch = batch[None]
    fits = batch.dim() == len(shape) + 1
    if not fits or any(due not in (None, side) for due, side in zip(shape, batch.shape[1:], strict=True)):
        due = ", ".join("any" if side is None else str(side) for side in shape)
        raise UserError(f"the network takes samples [N, {due}], these are {list(batch.shape)}")
    return batch


def token_ids(raw: Any, shape: Texts, tokenizer: np.ndarray | None, *, trim: bool = True) -> Tensor:
    """Return texts (list of str), or token ids [N, L], as token ids int64 [N, L] that are filled up with the pad.

    `tokenizer` is the JSON of the data set's, uint8. Raises UserError where texts come without one, or ids are none of
    the vocabulary.
    """
    if isinstance(raw, str):
        raw = [raw]
    if len(raw) and isinstance(raw[0], str):
        if tokenizer is None:
            raise UserError("the data set of this network has kept no tokenizer: give token ids in place of texts")
        from tokenizers import Tokenizer

        reader = Tokenizer.from_str(tokenizer.tobytes().decode())
        ids = torch.full((len(raw), shape.length), shape.pad)
        for row, encoding in zip(ids, reader.encode_batch(list(raw)), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    else:
        ids = torch.as_tensor(raw).long()
        if ids.dim() != 2 or (ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < shape.vocabulary):
            raise UserError(f"the network takes token ids [N, L] from 0 to {shape.vocabulary - 1}")
    return trimmed(ids, shape.pad) if trim else ids


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
