"""Small simulations in this very process."""

from __future__ import annotations

from typing import Any

from worker_simulation import SMALL

from fedkd_mpi import simulation
from fedkd_mpi.config import load
from fedkd_mpi.ledger import Ledger
from fedkd_mpi.prepare import Simulation, load_data, prepare
from fedkd_mpi.world import World


class Recorder:
    """Takes the place of the log's writer."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.tables: list[tuple[dict[str, Any], ...]] = []
        self.events: list[tuple[int, int | None, str, str]] = []

    def append_round(self, rounds: dict[str, Any], *tables: dict[str, Any]) -> None:
        self.rounds.append(rounds)
        self.tables.append(tables)

    def event(self, *event: Any) -> None:
        self.events.append(event)


def start(*overrides: str) -> Simulation:
    """Return a small run as it begins."""
    config, world = load(overrides=[*SMALL, *overrides]), World()
    return prepare(config, world, load_data(config, world))


def play(*overrides: str) -> tuple[Simulation, Recorder]:
    """Simulate in this process; return the run as it ends, and what it logged."""
    run, recorder = start(*overrides), Recorder()
    simulation.simulate(run, Ledger(run, recorder, lambda row: None))
    return run, recorder
