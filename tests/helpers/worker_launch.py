"""What each process does in the tests of the launch: worker_launch.py CASE [ARGUMENT ...]."""

from __future__ import annotations

import sys
import time

from fedkd_mpi.communication import launch
from fedkd_mpi.errors import UserError


def open_or_leave() -> None:
    """Open the world and print it, or leave with the reason."""
    try:
        world = launch.open_world()
    except UserError as error:
        launch.leave(2, f"REFUSED: {error}")
    print("OPEN", world.mpi_rank, world.world_size)


def compare_with_mpi() -> None:
    """Check that the launcher's variables and MPI tell the same."""
    told = launch.launched()
    world = launch.open_world()
    assert told == (world.mpi_rank, world.world_size) == (world.mpi_rank, 3)
    world.close()


def leave(code: str) -> None:
    """Leave, rank 0 last: the others must not end the job before it has spoken."""
    time.sleep(launch.launched()[0] == 0)
    launch.leave(int(code), "GOOD BYE")


def leave_alone() -> None:
    """Rank 1 leaves with an error that the others, who open the world, do not share."""
    launch.ROOT_SPEAKS_FIRST = 0.5
    if launch.launched()[0] == 1:
        launch.leave(2, "no such file on this node")
    launch.open_world()


if __name__ == "__main__":
    case, *arguments = sys.argv[1:]
    {"open": open_or_leave, "compare": compare_with_mpi, "leave": leave, "leave alone": leave_alone}[case](*arguments)
