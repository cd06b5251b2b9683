"""The description of an exchanged tensor, known to sender and receiver."""

from __future__ import annotations

import math
from typing import NamedTuple


class Layer(NamedTuple):
    """One tensor of the exchanged student; sender and receiver have the same list of layers."""

    name: str
    shape: tuple[int, ...]
    compressible: bool

    @property
    def numel(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """P x Q with P = first dimension (conv O,I,kh,kw -> O x I*kh*kw)."""
        rows = self.shape[0] if self.shape else 1
        return rows, self.numel // rows if rows else 0
