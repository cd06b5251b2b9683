"""What runs cost and what they reached, from their HDF5 logs; `python -m fedkd_mpi.report --help`, docs/report.md.

Neither MPI nor torch is needed; matplotlib (extra `report`) only for --plot and --html.
"""
