"""python -m fedkd_mpi.run: configure, launch, simulate.

mpirun -n 33 python -m fedkd_mpi.run                                       rank 0 is the server, one client each on 32
mpirun -n 5  python -m fedkd_mpi.run --config fashion_mnist.yaml rounds=9  8 clients a rank
python -m fedkd_mpi.run                                                    the same in one process, the same bits
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedkd_mpi import config as configuration
from fedkd_mpi.config import Config
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.mpi import leave

if TYPE_CHECKING:
    from fedkd_mpi.costlog import Writer
    from fedkd_mpi.prepare import Simulation
    from fedkd_mpi.world import World


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        leave(2, f"{self.prog}: {message}; --help shows the usage")

    def print_help(self, file: object = None) -> None:
        leave(0, self.format_help())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; leaves with code 2 and one line where it is wrong."""
    parser = _Parser(
        prog="python -m fedkd_mpi.run", description="Simulate FedKD over MPI and log every exchanged byte."
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="override a key, e.g. rounds=50 compression.t_end=0.99"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file, or the name of a shipped one (default digits.yaml)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the log (default runs/<name>-<date>.h5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    action.add_argument(
        "--dry-run", action="store_true", help="print sizes, placement, bytes a round and memory, and stop"
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 bad usage, configuration or data; a fault aborts with 1)."""
    chosen = arguments(argv)
    try:
        config = configuration.load(chosen.config, chosen.overrides)
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    if chosen.print_config:
        leave(0, config.to_yaml().rstrip())
    if chosen.dry_run:
        return dry_run(config)
    return run(config, chosen.output or default_output(config), chosen.overwrite)


def default_output(config: Config) -> Path:
    """Return runs/<name>-<date>.h5 of this moment."""
    return Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}.h5"


def dry_run(config: Config) -> int:
    """Print what a run would be, from rank 0 alone and without MPI."""
    from fedkd_mpi.mpi import launched

    mpi_rank, world_size = launched()
    if mpi_rank == 0:
        from fedkd_mpi.forecast import forecast

        try:
            print(forecast(config, world_size))
        except UserError as error:
            leave(2, f"fedkd_mpi: {error}")
    return 0


def run(config: Config, output: Path, overwrite: bool) -> int:
    """Simulate and log; collective."""
    from fedkd_mpi.mpi import install_excepthook, open_world

    try:
        world = open_world()
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    install_excepthook(world, partial(describe, world))
    try:
        simulation, writer = begin(config, world, output, overwrite)
    except UserError as error:
        if world.is_root:
            print(f"fedkd_mpi: {error}", file=sys.stderr, flush=True)
        world.close()
        return 2
    from fedkd_mpi.ledger import Ledger
    from fedkd_mpi.screen import Progress, summary
    from fedkd_mpi.simulation import simulate

    world.on_fault = lambda _: _interrupt(writer)
    progress = Progress(config)
    simulate(simulation, Ledger(simulation, writer, progress.round))
    if writer:
        progress.stop()
        writer.finish("completed")
        print(summary(output))
    world.close()
    return 0


def begin(config: Config, world: World, output: Path, overwrite: bool) -> tuple[Simulation, Writer | None]:
    """Read the data, build everything and create the log; raises the same UserError on every process."""
    from fedkd_mpi.costlog import check_output

    world.together(lambda: check_output(output, overwrite) if world.is_root else None)
    from fedkd_mpi.prepare import load_data, prepare

    data = load_data(config, world)
    simulation = world.together(lambda: prepare(config, world, data))
    return simulation, world.together(lambda: create_log(simulation, output, overwrite) if world.is_root else None)


def create_log(run: Simulation, output: Path, overwrite: bool) -> Writer:
    """Create the cost log of a run."""
    import numpy as np

    from fedkd_mpi import __version__
    from fedkd_mpi.costlog import Writer

    config, clients = run.config, run.data.clients
    columns = {
        "train_samples": np.array([len(train) for train, _ in clients]),
        "test_samples": np.array([len(test) for _, test in clients]),
        "mpi_rank": np.array([rank for rank, block in enumerate(run.placement) for _ in block]),
    }
    labels = run.task.labels(run.data.train)
    if run.task.num_classes and labels.ndim == 1:
        counts = [np.bincount(labels[np.concatenate(split)], minlength=run.task.num_classes) for split in clients]
        columns["label_histogram"] = np.array(counts)
    attrs = {
        "config": config.to_yaml(),
        "config_digest": config.digest(),
        "package_version": __version__,
        "mpi_library": run.world.library,
        "hostnames": run.world.hostnames,
        "seed": config.seed,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    layers = [tuple(layer) for layer in run.student.exchanged_layers] if run.student else []
    spectra = config.log.spectra
    return Writer.create(output, attrs, layers, columns, run.task.metrics, run.world.world_size, overwrite, spectra)


def describe(world: World, error: BaseException) -> str:
    """Return what ended a run: rank and host, round, client and layer, and for a programming error its trace."""
    where = f"rank {world.mpi_rank} on {world.hostname}"
    if isinstance(error, RunFault):
        return f"fedkd_mpi: {', '.join(filter(None, (where, error.place())))}: {error}"
    return f"fedkd_mpi: {where}: {''.join(traceback.format_exception(error)).rstrip()}"


def _interrupt(writer: Writer | None) -> None:
    """Leave a readable log behind; that it cannot even be marked has been said by the fault itself."""
    if writer:
        with suppress(RunFault):
            writer.finish("interrupted")


if __name__ == "__main__":
    sys.exit(main())
