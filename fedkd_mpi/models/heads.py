"""Output heads of text encoders: a class per text, a class per token, or a score per news item."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextHead(nn.Module):
    """A linear map of the mean over the tokens of a text."""

    def __init__(self, width: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(width, num_classes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return self.out(self.dropout(mean))


class TokenHead(nn.Module):
    """A linear map of every token."""

    def __init__(self, width: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(width, num_classes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.dropout(hidden))


class NewsHead(nn.Module):
    """Additive attention pools titles into vectors and a user's clicked titles into one; a score is a product of two.

    forward() takes the titles' hidden states [U, L, width] and mask [U, L], and the row indices of the users' histories
    [N, H] and of the candidates [N, C]. A row without tokens represents no news. Returns scores [N, C]. Source: Wu et
    al. 2019, arXiv:1907.05576 (news and user encoder); 2021, arXiv:2104.07413 (on a language model).
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.title, self.user = _AdditiveAttention(width), _AdditiveAttention(width)

    def forward(self, hidden: Tensor, mask: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
        titles = self.title(self.dropout(hidden), mask)
        user = self.user(titles[history], mask.any(1)[history])
        return torch.einsum("ncd,nd->nc", titles[candidates], user)


class _AdditiveAttention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner, self.query = nn.Linear(width, width), nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = self.query(torch.tanh(self.inner(x)))[..., 0]
        lowest = torch.finfo(weight.dtype).min
        weight = weight.masked_fill(~mask, lowest).softmax(-1) * mask  # zero if the whole row is masked
        return (weight[..., None] * x).sum(-2)
