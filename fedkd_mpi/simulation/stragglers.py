"""Which local training of a round kept all others waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedkd_mpi.costlog.schema import STRAGGLER

NOTICEABLE = 5.0  # seconds above the median: short trainings differ by chance


class Straggler(NamedTuple):
    """The place of the slowest client in its cohort, and the text of its event."""

    place: int
    text: str


def straggler(seconds: np.ndarray, mpi_ranks: Sequence[int], hostnames: Sequence[str]) -> Straggler | None:
    """Return the slowest local training of a round if it is a straggler, else None.

    `seconds` and `mpi_ranks` are those of the cohort, NaN where a client was skipped; `hostnames` are those of all
    processes.
    """
    if np.isnan(seconds).all():
        return None
    place, median = int(np.nanargmax(seconds)), float(np.nanmedian(seconds))
    longest, mpi_rank = float(seconds[place]), mpi_ranks[place]
    if longest <= STRAGGLER * median or longest < median + NOTICEABLE:
        return None
    times = f", {longest / median:.1f} times" if median else ", where none was"
    where = f"on rank {mpi_rank} ({hostnames[mpi_rank]})"
    return Straggler(place, f"straggler: local training took {longest:.1f} s{times} the median of its round, {where}")
