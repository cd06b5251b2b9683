"""Runs the command, each rank a second later than the one before: worker_late_ranks.py [ARGUMENT ...]."""

from __future__ import annotations

import sys
import time

from fedkd_mpi import run
from fedkd_mpi.communication.launch import launched

time.sleep(1.1 * launched()[0])
sys.exit(run.main(sys.argv[1:]))
