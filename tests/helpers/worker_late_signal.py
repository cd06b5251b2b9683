"""Gets the warning of a time limit after its run is done."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.fault_tolerance.stopping import StopRequests

with StopRequests(SingleProcessWorld(), Path("log.h5"), None):
    pass
os.kill(os.getpid(), signal.SIGUSR1)
