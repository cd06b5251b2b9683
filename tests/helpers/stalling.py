"""A program for the watchdog's tests: collectives for ever. Arguments: warn and abort seconds, folder, what.

`what` is barrier, bulk (a blocking broadcast of 64 MB, large enough to block) or native (one rank holds the interpreter
lock inside C code for ever).
"""

from __future__ import annotations

import ctypes
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from fedkd_mpi.communication.launch import install_excepthook, open_world
from fedkd_mpi.config.sections import WatchdogConfig as Settings
from fedkd_mpi.fault_tolerance.watchdog import Watchdog

warn, abort, folder, what = float(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
world = open_world()
install_excepthook(world, repr)
watchdog = Watchdog(world, Settings(seconds=warn, abort_seconds=abort))
world.on_fault = lambda _: (folder / "interrupted").write_text("by rank 0")
watchdog.on_abort = partial((folder / "interrupted").write_text, "by rank 1")
watchdog.on_warning = (folder / "warning").write_text
numbers = np.zeros(2**26 if what == "bulk" else 1, np.uint8)
for turn in range(1_000_000):
    world.status.at(turn, "training", 7)
    if what == "native" and world.mpi_rank == 1 and turn == 200:
        time.sleep(1)
        ctypes.PyDLL(None).sleep(10_000)  # PyDLL keeps the interpreter lock: no thread of this process runs
    time.sleep(0.01)
    world.status.at(turn, "uplink")
    if what != "bulk":
        world.barrier()
    world.broadcast(numbers)
    (folder / f"ready-{world.mpi_rank}").touch()
