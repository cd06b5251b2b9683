"""The HDF5 cost log of a run: `Writer` on rank 0, `open`, `read` and `frames` for everyone; docs/hdf5.md is its page.

Importable with NumPy and h5py alone: neither MPI nor torch is needed to read a log.
"""

from fedkd_mpi.costlog.files import check_output
from fedkd_mpi.costlog.reader import Log, Table, frames, open, read
from fedkd_mpi.costlog.writer import Writer, mark

__all__ = ["Log", "Table", "Writer", "check_output", "frames", "mark", "open", "read"]
