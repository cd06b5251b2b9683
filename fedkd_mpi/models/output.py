"""What every teacher and student returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Output(NamedTuple):
    """One forward pass: logits [N, C]; from input to output, hidden [N, d_l] and attention maps [N, heads, L, L]."""

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()
