"""What every teacher and student returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Output(NamedTuple):
    """One forward pass: logits [N, C]; from input to output, hidden [N, d_l] and attention maps [N, heads, L, L].

    Of texts, hidden is [N, L, d_l], the logits of a tagger are [N, L, C], and `mask` bool [N, L] is false for padding.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    mask: Tensor | None = None


class Texts(NamedTuple):
    """The input shape of a model that reads texts: token ids int64 [N, at most `length`], `pad` filling up short ones.

    `head` says what the logits are of: "text" [N, C], "token" [N, L, C] or "candidate" (news to rank: [N, candidates]).
    `tokenizer` is the fingerprint of what made the ids (see datasets/tokens.py), None where that is not known.
    """

    vocabulary: int
    length: int
    pad: int
    head: str
    tokenizer: str | None = None

    @classmethod
    def of(cls, meta: Mapping[str, Any], head: str) -> Texts:
        """Return the shape that a data set's meta tells."""
        return cls(meta["vocabulary"], meta["length"], meta["pad"], head, meta.get("tokenizer"))
