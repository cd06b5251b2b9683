"""Runs the command again and again in the same processes, until it fails: worker_commands.py [[ARGUMENT, ...], ...]"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("OMPI_MCA_osc", "^ucx")
from mpi4py import MPI  # noqa: F401  MPI starts here, so that it outlives the worlds of the runs

from fedkd_mpi.run import main

for arguments in json.loads(sys.argv[1]):
    if code := main(arguments):
        sys.exit(code)
