"""The output type of every teacher and student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from torch import Tensor, nn


class Output(NamedTuple):
    """The result of a forward pass: logits [N, C]; per layer, hidden features [N, d_l] and attention maps.

    Layers are in order from input to output. Attention maps are [N, heads, L, L]. For texts, hidden is [N, L, d_l], the
    logits of a tagger are [N, L, C], and `mask` (bool [N, L]) is false for padding.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
    mask: Tensor | None = None


def hidden_sizes(model: nn.Module) -> Sequence[int]:
    """Return the widths of a model's hidden features, from input to output."""
    return cast("Sequence[int]", model.hidden_sizes)


class Texts(NamedTuple):
    """The input shape of a model of texts: token ids int64 [N, at most `length`], padded with the id `pad`.

    `head` determines the logits: "text" [N, C], "token" [N, L, C] or "candidate" [N, candidates] (news ranking).
    `tokenizer` is the fingerprint of the tokenizer (see datasets/tokens.py), None if it is unknown.
    """

    vocabulary: int
    length: int
    pad: int
    head: str
    tokenizer: str | None = None

    @classmethod
    def of(cls, meta: Mapping[str, Any], head: str) -> Texts:
        """Return the input shape from the meta of a data set."""
        return cls(meta["vocabulary"], meta["length"], meta["pad"], head, meta.get("tokenizer"))
