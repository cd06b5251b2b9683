"""The table of methods, which configuration, training and report use."""

from __future__ import annotations

from typing import NamedTuple


class MethodEntry(NamedTuple):
    """The path of a method's class, and whether the method trains and exchanges one network without a teacher.

    `exchanges` is False where teachers learn alone, `student` where no network of the section `student` is exchanged,
    and `codec` where what travels are statistics, which no codec compresses. `options` are the keys that the method has
    beside its name. `tasks` are the tasks of this package that it has a meaning for, None for all.
    """

    path: str
    averages: bool
    exchanges: bool = True
    options: tuple[str, ...] = ()
    student: bool = True
    codec: bool = True
    tasks: tuple[str, ...] | None = None


CLASSES = ("image_classification", "text_classification", "tabular")  # tasks whose samples have one class each

METHODS = {
    "fedkd": MethodEntry("fedkd_mpi.methods.fedkd:FedKD", averages=False),
    "fml": MethodEntry("fedkd_mpi.methods.fml:FML", averages=False, options=("alpha", "beta")),
    "lgfedavg": MethodEntry("fedkd_mpi.methods.lgfedavg:LGFedAvg", averages=False, options=("layers",), student=False),
    "fedproto": MethodEntry(
        "fedkd_mpi.methods.fedproto:FedProto", False, True, ("strength", "weighting"), False, False, CLASSES
    ),
    "feddistill": MethodEntry(
        "fedkd_mpi.methods.feddistill:FedDistill", False, True, ("strength", "weighting"), False, False, CLASSES
    ),
    "fedavg": MethodEntry("fedkd_mpi.methods.fedavg:FedAvg", averages=True),
    "fedprox": MethodEntry("fedkd_mpi.methods.fedprox:FedProx", averages=True),
    "scaffold": MethodEntry("fedkd_mpi.methods.scaffold:Scaffold", averages=True),
    "feddropout": MethodEntry("fedkd_mpi.methods.feddropout:FedDropout", averages=True),
    "local": MethodEntry("fedkd_mpi.methods.local:Local", averages=False, exchanges=False, student=False),
    "centralized": MethodEntry("fedkd_mpi.methods.local:Local", averages=False, exchanges=False, student=False),
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


def has_student(name: str) -> bool:
    """Whether a method exchanges a network that predicts by itself; True for a user's own."""
    return name not in METHODS or METHODS[name].student


def has_codec(name: str) -> bool:
    """Whether what a method exchanges passes the codec; True for a user's own and for unknown names in logs."""
    return name not in METHODS or (METHODS[name].codec and METHODS[name].exchanges)
