"""Runs the command with arguments of its own on one rank: worker_odd_rank.py RANK ARGUMENT ... -- ARGUMENT ..."""

import os
import sys

from fedkd_mpi.run import main

odd, *arguments = sys.argv[1:]
cut = arguments.index("--")
rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"]
sys.exit(main(arguments[cut + 1 :] + (arguments[:cut] if rank == odd else [])))
