"""A run from its start to its end, whoever asked for it: the log and its lock, all rounds, the messages at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd_mpi.common.console import say
from fedkd_mpi.costlog.files import real
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.fault_tolerance.log_lock import Lock, reserve
from fedkd_mpi.fault_tolerance.stopping import StopRequests
from fedkd_mpi.privacy import aes_gcm
from fedkd_mpi.simulation import trust
from fedkd_mpi.simulation.request import Start, default_output

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.config.schema import Config
    from fedkd_mpi.costlog import Writer
    from fedkd_mpi.fault_tolerance.watchdog import Watchdog
    from fedkd_mpi.simulation.accounting import Accounting
    from fedkd_mpi.simulation.progress import Progress
    from fedkd_mpi.simulation.session import Session
    from fedkd_mpi.simulation.state import Simulation


@dataclass(frozen=True)
class Ending:
    """How a run ended: its log, and why it stopped early (None: it is completed) or did not begin (`error`).

    The error is the same on all processes.
    """

    log: Path | None
    reason: str | None = None
    error: UserError | None = None


@dataclass(frozen=True)
class Callers:
    """What the caller of a run does in it.

    `check` returns what the user should know of this machine before the first round; it is called by all processes.
    `refuse` is called on rank 0 with the error for which a run does not begin. With `goes_on` the process goes on after
    the run and gets its signal handlers back.
    """

    check: Callable[[Simulation, Path], Iterable[str]]
    refuse: Callable[[UserError], None]
    goes_on: bool = False


def run(config: Config, start: Start, world: World, slurm_end: float | None, callers: Callers) -> Ending:
    """Run or resume a simulation, close the world, and return how it ended. Collective.

    `slurm_end` is the time at which the Slurm job ends, in seconds since 1970. Raises RunFault and what user code
    raises, with the log marked as interrupted and the world open.
    """
    reserved = reserve(real(default_output(config))) if start.log is None and world.is_root else None
    output = Path(world.from_root(str(reserved.log if reserved else start.log)))
    requests = StopRequests(world, output, config.time_limit, slurm_end, goes_on=callers.goes_on)
    with requests as stop, reserved or Lock(output) as lock:
        return _play(config, start, world, stop, lock, callers)


def _play(config: Config, start: Start, world: World, stop: StopRequests, lock: Lock, callers: Callers) -> Ending:
    from fedkd_mpi.fault_tolerance.watchdog import Watchdog
    from fedkd_mpi.simulation.progress import Progress
    from fedkd_mpi.simulation.summary import summary

    watchdog = Watchdog(world, config.watchdog)
    progress = Progress(config, world, watchdog.trained)
    world.on_fault = lambda _: _release(progress, lock)
    stop.notice = lambda: f"log: {lock.log}; the first round has not begun"
    try:
        if progress.live:
            _greet(config, world, lock.log)
        session = _open(config, start, world, lock)
    except UserError as error:
        progress.stop()
        ending = _refused(world, lock.log, error, callers)
        watchdog.stop()
        return ending
    if not progress.live:
        _greet(config, world, lock.log)
    try:
        reason = _rounds(config, session, stop, lock, watchdog, progress, callers)
    finally:
        progress.stop()
    if writer := session.writer:
        if reason:
            say(f"fedkd_mpi: {stopped(writer, config, reason)}")
        writer.finish("interrupted" if reason else "completed")
        if not reason:
            say(summary(lock.log))
    world.close()
    watchdog.stop()
    return Ending(lock.log, reason)


def _greet(config: Config, world: World, output: Path) -> None:
    from fedkd_mpi.simulation.summary import opening

    if world.is_root:
        say(opening(config, world, output))


def _open(config: Config, start: Start, world: World, lock: Lock) -> Session:
    from fedkd_mpi.simulation import portable_bits
    from fedkd_mpi.simulation import session as sessions

    world.collectively(lambda: portable_bits.require(config))
    world.collectively(lambda: aes_gcm.library() if config.privacy.encrypts else None)
    world.collectively(lambda: lock.take() if world.is_root else None)
    if start.resume:
        return sessions.resume(config, world, lock.log, start.commits)
    return sessions.begin(config, world, lock.log, start.overwrite, start.save_partition, start.commits)


def _rounds(
    config: Config,
    session: Session,
    stop: StopRequests,
    lock: Lock,
    watchdog: Watchdog,
    progress: Progress,
    callers: Callers,
) -> str | None:
    """Run the rounds of an open session; return the reason to stop early, None if the run is complete. Collective."""
    from fedkd_mpi import costlog
    from fedkd_mpi.simulation.accounting import Accounting
    from fedkd_mpi.simulation.boundary import Boundary
    from fedkd_mpi.simulation.rounds import simulate
    from fedkd_mpi.simulation.summary import moved_before, resources

    writer, simulation, world, output = session.writer, session.simulation, session.simulation.world, lock.log

    def on_round(row: dict[str, Any]) -> None:
        progress.round(row)
        session.best.logged(row)

    accounting = Accounting(simulation, writer, on_round)
    world.on_fault = lambda _: _interrupt(writer, accounting, progress, lock)
    watchdog.on_warning = lambda text: _note(writer, world.status.round, text)
    watchdog.on_abort = lambda: costlog.mark(output, "interrupted", {"started": session.started})
    if world.is_root:
        say("\n".join([resources(simulation), *(f"fedkd_mpi: {note}" for note in session.notes)]))
    for text in callers.check(simulation, output.parent):
        say(f"fedkd_mpi: {text}", error=True)
    boundary = Boundary(simulation, session.checkpoints, stop, session.saved, accounting.settle, session.best)
    if writer:
        progress.begin(session.first, moved_before(output))
        stop.notice = lambda: _hint(writer, config, boundary.saved, progress)
    reason = simulate(simulation, accounting, boundary, session.first)
    if boundary.enough is None:
        return reason
    if writer:
        progress.stop()
        say(f"fedkd_mpi: {boundary.enough}")
        writer.event(max(writer.rounds_completed - 1, 0), None, "info", boundary.enough)
    return None


def _refused(world: World, log: Path | None, error: UserError, callers: Callers) -> Ending:
    """End a run that does not begin: rank 0 says so first, as some launchers end the job with the first process."""
    if world.is_root:
        callers.refuse(error)
    world.close()
    return Ending(log, error=error)


def stopped(writer: Writer, config: Config, reason: str) -> str:
    """Log that a run stops early, and return the message for the user."""
    done = writer.rounds_completed
    writer.event(max(done - 1, 0), None, "info", f"stopped after {done} rounds: {reason}")
    again = trust.again(writer.path, config)
    return f"stopped after {done} of {config.rounds} rounds with a checkpoint: {reason}; to continue: {again}"


def describe(world: World, error: BaseException) -> str:
    """Return the message for the error that ended a run: rank, host, location, and the trace of a programming error."""
    where = f"rank {world.mpi_rank} on {world.hostname}"
    if isinstance(error, RunFault):
        return f"fedkd_mpi: {', '.join(filter(None, (where, error.location())))}: {error}"
    return f"fedkd_mpi: {where}: {''.join(traceback.format_exception(error)).rstrip()}"


def _hint(writer: Writer, config: Config, saved: int | None, progress: Progress) -> str:
    """Return what the user needs if the launcher ends the run before it can stop by itself."""
    progress.pause()
    kept = f"after round {saved}" if saved else "none yet"
    return f"log: {writer.path} (checkpoint: {kept}); to continue: {trust.again(writer.path, config)}"


def _release(progress: Progress, lock: Lock) -> None:
    progress.stop()
    lock.release()


def _interrupt(writer: Writer | None, accounting: Accounting, progress: Progress, lock: Lock) -> None:
    """Mark the log as interrupted and release the lock; errors are ignored, because the first fault is reported."""
    progress.stop()
    if writer:
        with suppress(RunFault):
            accounting.settle()
        with suppress(RunFault):
            writer.finish("interrupted")
    lock.release()


def _note(writer: Writer | None, round_index: int, text: str) -> None:
    """Log a warning of the watchdog, which was also printed; an error is ignored here and raised by the next round."""
    if writer:
        with suppress(RunFault):
            writer.event(round_index, None, "warning", text)
