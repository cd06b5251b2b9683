"""Texts with marked spans, the common ground of the corpora for named-entity recognition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Span(NamedTuple):
    """The characters start..end-1 of a text that are an entity of the type `kind`."""

    start: int
    end: int
    kind: str


class Tagged(NamedTuple):
    """Texts, their sorted spans, and the document int64 [n] that each text is from."""

    texts: Sequence[str]
    spans: Sequence[Sequence[Span]]
    document: np.ndarray
