"""The methods by name: the one table that the configuration, the code that trains and the report read."""

from __future__ import annotations

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """Where a method's class is, and whether it trains and exchanges one network, with no teacher beside it."""

    path: str
    averages: bool


METHODS = {
    "fedkd": MethodEntry("fedkd_mpi.methods.fedkd:FedKD", averages=False),
    "fedavg": MethodEntry("fedkd_mpi.methods.fedavg:FedAvg", averages=True),
    "fedprox": MethodEntry("fedkd_mpi.methods.fedprox:FedProx", averages=True),
    "scaffold": MethodEntry("fedkd_mpi.methods.scaffold:Scaffold", averages=True),
    "feddropout": MethodEntry("fedkd_mpi.methods.feddropout:FedDropout", averages=True),
    "local": MethodEntry("fedkd_mpi.methods.local:Local", averages=False),
    "centralized": MethodEntry("fedkd_mpi.methods.local:Local", averages=False),
}
AVERAGING = tuple(name for name, entry in METHODS.items() if entry.averages)


def known(name: str) -> str:
    """Return the name of a method; raises ValueError listing all, as pydantic does for a Literal, if it is none."""
    if name not in METHODS:
        *others, last = (f"'{method}'" for method in METHODS)
        raise ValueError(f"must be {', '.join(others)} or {last}")
    return name


def averages(name: str) -> bool:
    """Return whether a method trains and exchanges one network; a name that a foreign log has made up does not."""
    return name in AVERAGING
