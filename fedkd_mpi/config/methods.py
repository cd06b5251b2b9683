"""The table of methods, which configuration, training and report use."""

from __future__ import annotations

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """The path of a method's class, and whether the method trains and exchanges one network without a teacher.

    `exchanges` is False where teachers learn alone. `options` are the keys that the method has beside its name.
    """

    path: str
    averages: bool
    exchanges: bool = True
    options: tuple[str, ...] = ()


METHODS = {
    "fedkd": MethodEntry("fedkd_mpi.methods.fedkd:FedKD", averages=False),
    "fml": MethodEntry("fedkd_mpi.methods.fml:FML", averages=False, options=("alpha", "beta")),
    "fedavg": MethodEntry("fedkd_mpi.methods.fedavg:FedAvg", averages=True),
    "fedprox": MethodEntry("fedkd_mpi.methods.fedprox:FedProx", averages=True),
    "scaffold": MethodEntry("fedkd_mpi.methods.scaffold:Scaffold", averages=True),
    "feddropout": MethodEntry("fedkd_mpi.methods.feddropout:FedDropout", averages=True),
    "local": MethodEntry("fedkd_mpi.methods.local:Local", averages=False, exchanges=False),
    "centralized": MethodEntry("fedkd_mpi.methods.local:Local", averages=False, exchanges=False),
}
AVERAGING = tuple(name for name, entry in METHODS.items() if entry.averages)


def known(name: str) -> str:
    """Return the name of a method, or a dotted path; raises ValueError listing all methods if it is neither."""
    if name not in METHODS and ":" not in name:
        *others, last = (f"'{method}'" for method in METHODS)
        raise ValueError(f"must be {', '.join(others)} or {last}")
    return name


def averages(name: str) -> bool:
    """Whether a method trains and exchanges one network without a teacher; False for unknown names in logs."""
    return name in AVERAGING


def exchanges(name: str) -> bool:
    """Whether a method exchanges a network; True for a user's own, of which only its class can tell."""
    return name not in METHODS or METHODS[name].exchanges
