"""The HDF5 cost log of a run: Writer on rank 0, and open(), read() and frames() for readers; described in docs/hdf5.md.

The package needs only NumPy and h5py: a log can be read without MPI and torch.
"""

from fedkd_mpi.costlog.files import check_output
from fedkd_mpi.costlog.reader import Log, Table, frames, open, read
from fedkd_mpi.costlog.writer import Writer, mark

__all__ = ["Log", "Table", "Writer", "check_output", "frames", "mark", "open", "read"]
