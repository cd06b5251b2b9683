"""The HDF5 cost log of a run: Writer on rank 0, open(), read(), frames() and concat() for readers; docs/hdf5.md.

The package needs only NumPy and h5py: a log can be read without MPI and torch.
"""

from fedkd_mpi.costlog.files import check_output
from fedkd_mpi.costlog.reader import Log, Table, open, read
from fedkd_mpi.costlog.tables import concat, frames
from fedkd_mpi.costlog.writer import Writer, mark

__all__ = ["Log", "Table", "Writer", "check_output", "concat", "frames", "mark", "open", "read"]
