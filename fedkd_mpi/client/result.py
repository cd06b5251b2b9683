"""The result of one client in one round: a message for the server and a row for the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedkd_mpi.codecs.message import Message
from fedkd_mpi.errors import RunFault

if TYPE_CHECKING:
    from fedkd_mpi.client.trainer import TrainingResult


@dataclass
class ClientResult:
    """The result of one client; `message` is None without an exchange, `outcome` is None after a fault.

    `report` is its row of the log, as bytes. Results from other processes have only `client`, `message` and `report`.
    """

    client: int
    message: Message | None
    outcome: TrainingResult | None = None
    energies: Sequence[float] = ()
    paper_ranks: Sequence[int] = ()
    spectrum: Sequence[float] = ()
    seconds_encode: float = 0.0
    fault: RunFault | None = None
    report: np.ndarray | None = None
