"""Reports of scores and costs from the HDF5 logs of runs; `python -m fedkd_mpi.report --help`, docs/report.md.

The package needs neither MPI nor torch; matplotlib (extra `report`) is only needed for --plot and --html.
"""
