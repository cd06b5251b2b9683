"""python -m fedkd_mpi.run: configure, launch, simulate.

mpirun -n 33 python -m fedkd_mpi.run                                       rank 0 is the server, one client each on 32
mpirun -n 5  python -m fedkd_mpi.run --config fashion_mnist.yaml rounds=9  8 clients per rank
python -m fedkd_mpi.run                                                    the same in one process, the same bits
"""

from __future__ import annotations

from fedkd_mpi.fault_tolerance import early_signals

if __name__ == "__main__":
    early_signals.listen()  # before slow imports

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedkd_mpi.common.command_line import add_json
from fedkd_mpi.common.console import open_standard_streams, say
from fedkd_mpi.communication.launch import LaunchedParser, end_job_on_exceptions, launched, leave
from fedkd_mpi.config import explain, pairs
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import RunFault, UserError, shown

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.costlog import Writer
    from fedkd_mpi.fault_tolerance.log_lock import Lock
    from fedkd_mpi.fault_tolerance.stopping import StopRequests
    from fedkd_mpi.simulation.accounting import Accounting

EX_TEMPFAIL = 75  # exit code of a run that stopped early with a checkpoint and can be requeued


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; exits with code 2 and one line if it is invalid."""
    parser = LaunchedParser("run", "Simulate FedKD over MPI and log every exchanged byte.")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="override a key, e.g. rounds=50 compression.t_end=0.99"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file, or the name of a shipped one (default digits.yaml)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the log (default runs/<name>-<date>.h5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    parser.add_argument("--resume", type=Path, metavar="LOG", help="continue the run of this log")
    parser.add_argument(
        "--trust-log", action="store_true", help="with --resume: run the code that the log names (package.module:Name)"
    )
    parser.add_argument(
        "--save-partition", type=Path, metavar="FILE", help="write who holds what, as partition.kind=file reads it"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print-config", action="store_true", help="print the resolved configuration, explained")
    action.add_argument(
        "--print-schema", action="store_true", help="print the JSON schema of a configuration, for editors"
    )
    action.add_argument(
        "--dry-run", action="store_true", help="print sizes, placement, bytes per round and memory, and stop"
    )
    parser.add_argument("--bare", action="store_true", help="with --print-config: without explanations")
    add_json(parser, "with --dry-run: print JSON, for programs")
    chosen = parser.parse_intermixed_args(argv)
    if chosen.bare and not chosen.print_config:
        parser.error("--bare belongs to --print-config")
    if chosen.json and not chosen.dry_run:
        parser.error("--json belongs to --dry-run")
    if chosen.resume and (chosen.config or chosen.output or chosen.overwrite):
        parser.error("--resume takes configuration and output from the log: omit --config, --output, --overwrite")
    if chosen.resume and chosen.save_partition:
        parser.error("--save-partition belongs to a new run, or to --dry-run")
    if chosen.trust_log and not chosen.resume:
        parser.error("--trust-log belongs to --resume")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code.

    0: completed, 2: invalid usage, configuration or data, 75: stopped with a checkpoint. A fault aborts with 1.
    """
    open_standard_streams()
    end_job_on_exceptions()
    chosen = arguments(argv)
    if chosen.print_schema:
        early_signals.let_go()
        leave(0, explain.schema_text(), {"mode": "--print-schema"})
    try:
        check_names(chosen)
        if chosen.resume:
            config = configuration_of(chosen.resume, chosen.overrides, trusted=chosen.trust_log)
        else:
            config = configuration.load(chosen.config, chosen.overrides)
        pairs.check(config)
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    if chosen.print_config or chosen.dry_run:
        early_signals.let_go()
    if chosen.print_config:
        text = config.to_yaml() if chosen.bare else explain.commented(config)
        leave(0, text.rstrip(), started(config, chosen, "--print-config"))
    if chosen.dry_run:
        dry_run(config, chosen)
    return run(config, chosen)


def configuration_of(path: Path, overrides: Sequence[str], *, trusted: bool = False) -> Config:
    """Return the configuration of a log to resume; exits with code 0 if all its rounds are completed."""
    from fedkd_mpi import costlog
    from fedkd_mpi.simulation import extension, trust

    with costlog.open(path) as log:
        attrs = log.attrs
    trust.require_one_name(path)
    config = trust.configuration_in(path, attrs)
    longer, others = extension.split(path, config, overrides)
    if attrs["status"] == "completed" and longer.rounds == config.rounds:
        done = f"fedkd_mpi: {path} is completed: there is nothing to resume; rounds=N adds rounds"
        leave(0, done, {"mode": f"--resume {path}, which is completed"})
    return configuration.with_care(longer, trust.accept(path, config, others, trusted))


LONGEST = 255 - len(".checkpoints")  # bytes of a log's name: the limit of the system minus the longest suffix


def check_names(chosen: argparse.Namespace) -> None:
    """Raise UserError if an argument is not a valid name for a log and the files beside it."""
    for name in ("output", "resume"):
        path = getattr(chosen, name)
        if path is None:
            continue
        if not str(path).isprintable():
            raise UserError(f"--{name} {shown(path)}: the name contains unprintable characters: choose another")
        if len(os.fsencode(path.name)) > LONGEST or len(os.fsencode(path)) > 4000:
            raise UserError(f"--{name} {shown(path)}: the name is too long: choose one of at most {LONGEST} bytes")


def default_output(config: Config) -> Path:
    """Return runs/<name>-<date>.h5 with the current time."""
    return Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}.h5"


def started(config: Config, chosen: argparse.Namespace, mode: str) -> dict[str, str]:
    """Return what a process among others was started with, to compare; nothing for a process alone."""
    if launched()[1] == 1:
        return {}
    from fedkd_mpi.simulation.sameness import start

    options = ("output", "overwrite", "resume", "trust_log", "save_partition", "bare", "json")
    return start(config, {name: getattr(chosen, name) for name in options}, mode)


def dry_run(config: Config, chosen: argparse.Namespace) -> NoReturn:
    """Print the dry run on rank 0, without MPI in a process alone."""
    mpi_rank, world_size = launched()
    text = ""
    if mpi_rank == 0:
        from fedkd_mpi.simulation.dry_run import forecast

        try:
            text = forecast(config, world_size, chosen.save_partition, chosen.overwrite, as_json=chosen.json)
        except UserError as error:
            leave(2, f"fedkd_mpi: {error}")
    leave(0, text, started(config, chosen, "--dry-run"))


def run(config: Config, chosen: argparse.Namespace) -> int:
    """Run or resume a simulation and return the exit code. Collective.

    Without --output, rank 0 chooses a name that no other run uses.
    """
    from fedkd_mpi.communication.agreement import agreed
    from fedkd_mpi.communication.launch import install_excepthook, open_world
    from fedkd_mpi.costlog.files import real
    from fedkd_mpi.fault_tolerance.log_lock import Lock, reserve
    from fedkd_mpi.fault_tolerance.stopping import StopRequests, slurm_end

    end = slurm_end() if launched()[0] == 0 else None  # starts a process, which is safer before MPI is initialised
    given = chosen.resume or chosen.output
    mode = "--resume" if chosen.resume else "a new run"
    try:
        output = None if given is None else real(given)
        world = open_world()
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    install_excepthook(world, partial(describe, world))
    if not agreed(world, started(config, chosen, mode)):
        return 2
    reserved = reserve(real(default_output(config))) if output is None and world.is_root else None
    output = Path(world.from_root(str(reserved.log if reserved else output)))
    with StopRequests(world, output, config.time_limit, end) as stop, reserved or Lock(output) as lock:
        return play(config, world, stop, lock, output, chosen)


def play(config: Config, world: World, stop: StopRequests, lock: Lock, output: Path, chosen: argparse.Namespace) -> int:
    """Start or resume a run, run its rounds and return the exit code. Collective."""
    from fedkd_mpi.communication.agreement import refuse
    from fedkd_mpi.fault_tolerance.watchdog import Watchdog
    from fedkd_mpi.simulation.boundary import Boundary

    watchdog = Watchdog(world, config.watchdog)
    world.on_fault = lambda _: lock.release()
    from fedkd_mpi import costlog
    from fedkd_mpi.simulation import session as sessions

    try:
        world.collectively(lambda: lock.take() if world.is_root else None)
        if chosen.resume:
            session = sessions.resume(config, world, output)
        else:
            session = sessions.begin(config, world, output, chosen.overwrite, chosen.save_partition)
    except UserError as error:
        code = refuse(world, error)
        watchdog.stop()
        return code
    from fedkd_mpi.doctor import at_start
    from fedkd_mpi.simulation.accounting import Accounting
    from fedkd_mpi.simulation.progress import Progress, summary
    from fedkd_mpi.simulation.rounds import simulate

    writer, simulation = session.writer, session.simulation
    progress = Progress(config, session.first)

    def on_round(row: dict[str, Any]) -> None:
        progress.round(row)
        session.best.logged(row)

    accounting = Accounting(simulation, writer, on_round)
    world.on_fault = lambda _: _interrupt(writer, accounting, lock)
    watchdog.on_warning = lambda text: _note(writer, world.status.round, text)
    watchdog.on_abort = lambda: costlog.mark(output, "interrupted", {"started": session.started})
    for finding in at_start(simulation, output.parent):
        say(f"fedkd_mpi: {finding.status}: {finding.found}: {finding.remedy}", error=True)
    boundary = Boundary(simulation, session.checkpoints, stop, session.saved, accounting.settle, session.best)
    reason = simulate(simulation, accounting, boundary, session.first)
    if writer:
        progress.stop()
        if reason:
            say(f"fedkd_mpi: {stopped(writer, config, reason)}")
        writer.finish("interrupted" if reason else "completed")
        if not reason:
            say(summary(output))
    world.close()
    watchdog.stop()
    return EX_TEMPFAIL if reason else 0


def stopped(writer: Writer, config: Config, reason: str) -> str:
    """Log that a run stops early, and return the message for the user."""
    from fedkd_mpi.simulation import trust

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


def _interrupt(writer: Writer | None, accounting: Accounting, lock: Lock) -> None:
    """Mark the log as interrupted and release the lock; errors are ignored, because the first fault is reported."""
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


if __name__ == "__main__":
    sys.exit(main())
