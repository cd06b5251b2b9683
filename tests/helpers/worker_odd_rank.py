"""Runs the command with arguments of its own on one rank: worker_odd_rank.py RANK ARGUMENT ... -- ARGUMENT ...

The odd rank raises an exception before MPI if its argument is `raise`.
"""

import os
import sys

from fedkd_mpi import run

odd, *arguments = sys.argv[1:]
cut = arguments.index("--")
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
own = arguments[:cut] if rank == odd else []
if own == ["raise"]:
    run.pairs.check = None
    own = []
sys.exit(run.main(arguments[cut + 1 :] + own))
