"""What one client gives to a round: a message for the server, a row for the log."""

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
    """What one client did in a round; `message` is None without an exchange, `outcome` None after a fault.

    `report` is what the log is told of it, one row; where another process did it for this one, only that is known.
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
