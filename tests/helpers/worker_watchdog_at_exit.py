"""Ends while its watchdog's thread frees what torch left in cycles: worker_watchdog_at_exit.py (stop | leave)."""

from __future__ import annotations

import gc
import sys
import time

import numpy as np
import torch

from fedkd_mpi.communication.process_status import ProcessStatus
from fedkd_mpi.config.sections import WatchdogConfig
from fedkd_mpi.fault_tolerance.watchdog import Watchdog


class Cycle:
    """An object that only a garbage collection frees, and with it a graph of torch's autograd."""

    def __init__(self) -> None:
        self.own = self
        self.loss = (torch.ones(3, requires_grad=True) * 2).sum()


class World:
    """What a watchdog needs of rank 1 of two; to ask for its status takes two seconds of garbage collections."""

    world_size, mpi_rank, is_root, one_node = 2, 1, False, True
    addresses, hostnames, key = ["127.0.0.1"] * 2, ["here"] * 2, bytes(32)
    asked = False

    @property
    def status(self) -> ProcessStatus:
        """The place of a process that has just begun."""
        self.asked, end = True, time.monotonic() + 2
        while time.monotonic() < end:
            Cycle()
            gc.collect()
        return ProcessStatus()

    def allgather(self, row: np.ndarray) -> np.ndarray:
        """Both ranks' bytes."""
        return np.stack([row.view(np.uint8)] * 2)


world = World()
watchdog = Watchdog(world, WatchdogConfig())
while not world.asked:
    time.sleep(0.01)
if sys.argv[1] == "stop":
    watchdog.stop()
sys.exit(0)
