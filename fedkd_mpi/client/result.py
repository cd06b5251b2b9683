"""The result of one client in one round: a message for the server and a row for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.codecs.message import Message

if TYPE_CHECKING:
    from fedkd_mpi.client.trainer import Trained


@dataclass
class ClientResult:
    """The result of one client; `message` is None without an exchange.

    `report` is its row of the log, as bytes. Results from other processes have only `client`, `message` and `report`.
    """

    client: int
    message: Message | None
    outcome: Trained | None = None
    energies: Sequence[float] = ()
    paper_ranks: Sequence[int] = ()
    spectrum: Sequence[float] = ()
    seconds_encode: float = 0.0
    norm: float = float("nan")  # of the update before it was clipped, if it was
    report: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
