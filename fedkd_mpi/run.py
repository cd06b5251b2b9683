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
import sys
from collections.abc import Sequence
from functools import partial
from os import EX_TEMPFAIL  # exit code of a run that stopped early with a checkpoint and can be requeued
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fedkd_mpi.common.command_line import add_json, count
from fedkd_mpi.common.console import open_standard_streams, say
from fedkd_mpi.communication.launch import LaunchedParser, end_job_on_exceptions, launched, launcher, leave
from fedkd_mpi.config import explain, pairs
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.fault_tolerance.ending import MOST_RESTARTS


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; exits with code 2 and one line if it is invalid."""
    parser = LaunchedParser("run", "Simulate FedKD over MPI and log every exchanged byte.")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="override a key, e.g. rounds=50 compression.t_end=0.99"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file, shipped one's name (default digits.yaml), or a log"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the log (default runs/<name>-<date>.h5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    parser.add_argument("--resume", type=Path, metavar="LOG", help="continue the run of this log")
    parser.add_argument(
        "--trust-log", action="store_true", help="run the code that the log of --resume or --config names"
    )
    parser.add_argument(
        "--save-partition", type=Path, metavar="FILE", help="write who holds what, as partition.kind=file reads it"
    )
    parser.add_argument(
        "--supervise", metavar="LAUNCHER", help="start the run with e.g. 'mpirun -n 33', again whenever it is cut off"
    )
    parser.add_argument(
        "--restarts",
        type=count(0, 10**6),
        metavar="N",
        help=f"with --supervise: give up after more than N launches without a further round (default {MOST_RESTARTS})",
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
    if chosen.supervise is not None and (chosen.print_config or chosen.print_schema or chosen.dry_run):
        parser.error("--supervise starts a run: omit --print-config, --print-schema, --dry-run")
    if chosen.supervise is not None and launcher():
        parser.error(f"--supervise starts the launcher itself, but {launcher()} started this process")
    if chosen.restarts is not None and chosen.supervise is None:
        parser.error("--restarts belongs to --supervise")
    if chosen.trust_log and not (chosen.resume or chosen.config):
        parser.error("--trust-log belongs to --resume LOG or --config LOG")
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
        config = configuration_of(chosen)
        pairs.check(config)
        if config.portable_bits and not chosen.print_config:
            from fedkd_mpi.simulation import portable_bits

            portable_bits.enter()
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    if chosen.supervise is not None:
        return supervise(config, chosen)
    if chosen.print_config or chosen.dry_run:
        early_signals.let_go()
    if chosen.print_config:
        text = config.to_yaml() if chosen.bare else explain.commented(config)
        leave(0, text.rstrip(), started(config, chosen, "--print-config"))
    if chosen.dry_run:
        dry_run(config, chosen)
    return run(config, chosen)


def configuration_of(chosen: argparse.Namespace) -> Config:
    """Return the configuration of a run; exits with code 0 if the log to resume has all its rounds."""
    from fedkd_mpi.simulation.request import Completed, check_names, loaded, resumed

    check_names(chosen.output, chosen.resume)
    if not chosen.resume:
        return loaded(chosen.config, chosen.overrides, trusted=chosen.trust_log)
    try:
        return resumed(chosen.resume, chosen.overrides, trusted=chosen.trust_log)
    except Completed as done:
        leave(0, f"fedkd_mpi: {done}", {"mode": f"--resume {chosen.resume}, which is completed"})


def supervise(config: Config, chosen: argparse.Namespace) -> int:
    """Launch the run, again whenever it is cut off, and return the exit code."""
    from fedkd_mpi.simulation.supervisor import supervise

    restarts = MOST_RESTARTS if chosen.restarts is None else chosen.restarts
    try:
        return supervise(config, chosen, restarts)
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")


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
        except RunFault as fault:
            leave(1, f"fedkd_mpi: --dry-run: {fault.location()}: {fault}")
    leave(0, text, started(config, chosen, "--dry-run"))


def run(config: Config, chosen: argparse.Namespace) -> int:
    """Run or resume a simulation and return the exit code. Collective."""
    from fedkd_mpi.communication.agreement import agreed
    from fedkd_mpi.communication.launch import install_excepthook, open_world
    from fedkd_mpi.doctor import at_start
    from fedkd_mpi.fault_tolerance.stopping import slurm_end
    from fedkd_mpi.simulation import lifecycle
    from fedkd_mpi.simulation.request import Start

    end = slurm_end() if launched()[0] == 0 else None  # starts a process, which is safer before MPI is initialised
    try:
        start = Start.of(chosen.output, chosen.overwrite, chosen.resume, chosen.save_partition)
        world = open_world()
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    install_excepthook(world, partial(lifecycle.describe, world))
    if not agreed(world, started(config, chosen, start.mode)):
        return 2

    def refuse(error: UserError) -> None:
        say(f"fedkd_mpi: {error}", error=True)

    ending = lifecycle.run(config, start, world, end, lifecycle.Callers(at_start, refuse))
    return 2 if ending.error else EX_TEMPFAIL if ending.reason else 0


class _Callable(ModuleType):
    """This module, which is also the function fedkd_mpi.run()."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a simulation in Python: fedkd_mpi.simulation.in_python.run()."""
        from fedkd_mpi.doctor import at_start
        from fedkd_mpi.simulation import in_python

        return in_python.run(*arguments, **options, check=at_start)


sys.modules[__name__].__class__ = _Callable  # by whatever import the name fedkd_mpi.run is bound, it is this object

if __name__ == "__main__":
    sys.exit(main())
