"""What each process does in the tests of a world: worker_world.py CASE."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from fedkd_mpi.communication import abort
from fedkd_mpi.communication.launch import World, install_excepthook, open_world

SHORT_GRACE = 0.5  # seconds


def count(world: World) -> None:
    """Call every collective, and print what the world counted."""
    world.take_counters()
    ranks = range(world.world_size)
    for _ in range(3):
        world.allgather_small(np.zeros(50 * world.mpi_rank, np.uint8), [50 * rank for rank in ranks])
        counts = [1000 + rank for rank in ranks]
        world.gather(np.zeros(counts[world.mpi_rank], np.uint8), counts, payload=True)
        world.gather(np.zeros(10 * world.mpi_rank, np.uint8))
        world.broadcast_small(np.zeros(7, np.uint8))
        world.broadcast(np.zeros(70_001, np.uint8), payload=True)
        world.broadcast(np.zeros(3, np.uint8))
    world.first_message("mine" if world.mpi_rank == 2 else None)
    print("COUNTED", *vars(world.take_counters()).values(), flush=True)
    world.close()


def fail(text: str = "boom") -> NoReturn:
    """Raise what nobody catches."""
    raise ValueError(text)


def fault_of_the_root(world: World) -> None:
    """Rank 0 fails."""
    if world.is_root:
        fail()


def fault_of_several(world: World) -> None:
    """All but rank 0 fail."""
    if not world.is_root:
        fail()


def fault_of_all(_: World) -> None:
    """All fail."""
    fail()


def fault_with_a_long_text(world: World) -> None:
    """Rank 1 fails with a text that no pipe takes at once."""
    if world.mpi_rank == 1:
        fail("boom" + " " * 100_000)


def fault_while_the_root_is_busy(world: World) -> None:
    """All but rank 0 fail while rank 0 computes and hears nothing."""
    abort.GRACE = SHORT_GRACE
    if not world.is_root:
        fail()
    while True:
        np.ones(1000).sum()


def fault_in_a_blocking_call(world: World) -> None:
    """Rank 1 fails while the others are inside MPI."""
    abort.GRACE = SHORT_GRACE
    if world.mpi_rank == 1:
        fail()
    world.gather(np.ones(10**7), [8 * 10**7] * 3)


def fault_with_a_log_that_cannot_be_closed(world: World) -> None:
    """Rank 1 fails, and so does what rank 0 does about it."""

    def close(_: str) -> None:
        raise OSError("disk full")

    world.on_fault = close
    fault_with_a_long_text(world)


def exit_silently(world: World) -> None:
    """Rank 1 leaves without a word."""
    if world.mpi_rank == 1:
        os._exit(3)


def die_of_a_signal(world: World) -> None:
    """Rank 1 is killed."""
    if world.mpi_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def agree_on_an_error(world: World) -> None:
    """All leave with the code of an error that rank 2 alone has seen."""
    error = world.first_message("label 10 of 10 classes" if world.mpi_rank == 2 else None)
    if world.is_root:
        print(error, file=sys.stderr)
    world.close()
    sys.exit(2)


def be_alone(world: World) -> None:
    """Call every collective in a world of one process, and end it by a fault."""
    whole = world.gather(np.arange(3.0), [24], payload=True, sleeping=True)
    assert (whole.view(float) == np.arange(3.0)).all()
    world.broadcast(whole)
    assert (world.allgather_small(whole, [24]) == whole).all()
    world.broadcast_small(whole)
    arrays, meta = world.share({"x": np.arange(3)}, {"a": 1})
    assert (arrays["x"].tolist(), arrays["x"].flags.writeable, meta) == ([0, 1, 2], False, {"a": 1})
    assert world.first_message("mine") == "mine"
    assert world.first_message(None) is None
    assert not any(vars(world.take_counters()).values())
    world.fault("over")


CASES: dict[str, Callable[[World], None]] = {
    "open and close": lambda world: world.close(),
    "count": count,
    "root": fault_of_the_root,
    "several": fault_of_several,
    "all": fault_of_all,
    "long": fault_with_a_long_text,
    "root busy": fault_while_the_root_is_busy,
    "in a blocking call": fault_in_a_blocking_call,
    "log not closed": fault_with_a_log_that_cannot_be_closed,
    "exit": exit_silently,
    "kill": die_of_a_signal,
    "agreed error": agree_on_an_error,
    "alone": be_alone,
}
ENDS_ITSELF = ("open and close", "count")


def main(case: str) -> None:
    """Open the world, do what the case says, then wait until the job is ended by others."""
    world = open_world()
    install_excepthook(world, lambda error: f"FAULT on {world.mpi_rank}: {error}")
    world.on_fault = lambda text: print("LOG CLOSED", flush=True)
    world.barrier()
    CASES[case](world)
    if case not in ENDS_ITSELF:
        world.barrier()
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
