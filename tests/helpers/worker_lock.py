"""Holds the lock of a log until its standard input ends: worker_lock.py LOG."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from fedkd_mpi.fault_tolerance.log_lock import Lock

faulthandler.dump_traceback_later(180, exit=True)  # the test that waits for this process hears of its end
with Lock(Path(sys.argv[1])) as lock:
    lock.take()
    print("locked", flush=True)
    sys.stdin.read()
