"""Small simulations in this very process."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from worker_simulation import SMALL, observed

from fedkd_mpi import costlog
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import load
from fedkd_mpi.run import main
from fedkd_mpi.simulation.setup import load_data, prepare
from fedkd_mpi.simulation.state import Simulation


def start(*overrides: str) -> Simulation:
    """Return a small run as it begins."""
    config, world = load(overrides=[*SMALL, *overrides]), SingleProcessWorld()
    return prepare(config, world, load_data(config, world))


def play(*overrides: str) -> tuple[Simulation, dict[str, Any]]:
    """Run the command; return its run as it ends, and its log."""
    hook = sys.excepthook  # which the command replaces
    with tempfile.TemporaryDirectory() as folder, observed() as runs:
        path = Path(folder) / "log.h5"
        try:
            assert main(["--output", str(path), *SMALL, *overrides]) == 0
        finally:
            sys.excepthook = hook
        return runs[0], costlog.read(path)
