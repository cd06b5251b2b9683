"""python -m fedkd_mpi.info [LOG]: versions, hardware and data of this machine, or what a log says of its run.

python -m fedkd_mpi.info                 which versions, MPI library, GPUs, cores and data sets there are
python -m fedkd_mpi.info runs/a.h5       attributes, status and configuration of a run; needs neither MPI nor torch
python -m fedkd_mpi.info runs/a.h5 --ended $?          for job scripts: exit code 75 if the run is to be started again
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedkd_mpi import __version__
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.command_line import add_json, count, json_text
from fedkd_mpi.common.console import say
from fedkd_mpi.common.units import bytes_text
from fedkd_mpi.communication.launch import LaunchedParser, launched, launcher, leave, mpi_library
from fedkd_mpi.costlog.files import real
from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.fault_tolerance import ending

PACKAGES = ("torch", "numpy", "h5py", "mpi4py")


def machine() -> dict[str, Any]:
    """Return versions, MPI, GPUs, cores, memory and data of this machine; docs/reference.md describes the keys."""
    from fedkd_mpi.common.machine import memory

    try:
        library, missing = mpi_library(), None
    except UserError as error:
        library, missing = None, str(error)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "mpi": {"library": library, "problem": missing, "launcher": launcher()},
        "gpus": _gpus(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory(),
        "data": _data(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[dict[str, Any]]:
    """Return name and bytes of memory of each GPU that torch sees."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]


def _data() -> dict[str, Any]:
    """Return the folder that FEDKD_DATA names, and which data sets have their folders in it."""
    from fedkd_mpi.datasets import expanded
    from fedkd_mpi.datasets.folders import FOLDERS, found

    given = os.environ.get("FEDKD_DATA")
    root = expanded(given) if given else None
    there = found(root) if root else dict.fromkeys(FOLDERS, False)
    return {"folder": given or None, "exists": bool(root and root.is_dir()), "found": there}


def machine_text(facts: dict[str, Any]) -> str:
    """Return the facts of machine() as lines for readers."""
    mpi, data = facts["mpi"], facts["data"]
    there = [name for name, found in data["found"].items() if found]
    if data["folder"] is None:
        place = "FEDKD_DATA is not set"
    elif not data["exists"]:
        place = f"FEDKD_DATA={data['folder']} is not a folder"
    else:
        place = f"{', '.join(there) or 'no known data set'} in FEDKD_DATA={data['folder']}"
    gpus = [f"{gpu['name']}, {bytes_text(gpu['memory_bytes'])}" for gpu in facts["gpus"]]
    rows = {
        "fedkd_mpi": facts["version"],
        "Python": facts["python"],
        **{name: number or "is not installed" for name, number in facts["packages"].items()},
        "MPI": f"{mpi['library'] or mpi['problem']}, started by {mpi['launcher'] or 'no launcher'}",
        "GPUs": "; ".join(gpus) or "none that torch sees",
        "cores": str(facts["cores"]),
        "memory": bytes_text(facts["memory_bytes"]),
        "data": place,
    }
    return _lines(rows)


def of_log(path: Path) -> dict[str, Any]:
    """Return status, rounds, attributes, starts, data files and configuration of a log; raises UserError."""
    from fedkd_mpi import costlog

    with costlog.open(path) as log:
        attributes, rounds = dict(log.attrs), log.rounds_completed
        starts, files = _rows(log["starts"]), _rows(log["files"])
    config = yaml_loader.parse_mapping(attributes.pop("config"), f"the configuration in {path}")
    return {
        "log": str(path),
        "status": attributes.pop("status"),
        "rounds_completed": rounds,
        "attributes": attributes,
        "starts": starts,
        "files": files,
        "config": config,
    }


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table of a log as JSON can hold them."""
    names, columns = list(table), [values.tolist() for values in table.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def log_text(facts: dict[str, Any]) -> str:
    """Return the facts of of_log() as lines for readers: the configuration is YAML."""
    rows = {"log": facts["log"], "status": facts["status"], "rounds completed": facts["rounds_completed"]}
    rows |= facts["attributes"]
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in rows.items()
    }
    parts = [_lines(shown)]
    for number, start in enumerate(facts["starts"], 1):
        told = {name: str(value) for name, value in start.items() if value != "" and name != "environment"}
        parts.append(f"start {number} of {len(facts['starts'])}\n{_lines(told)}")
        if start["environment"]:
            parts[-1] += "\n" + "\n".join(map(plain, start["environment"].split("\n")))
    if facts["files"]:
        files = (f"{file['digest']}  {file['path']}  {bytes_text(file['bytes'])}" for file in facts["files"])
        parts.append("data files, with their SHA-256\n" + "\n".join(map(plain, files)))
    return "\n\n".join([*parts, yaml_loader.dump(facts["config"]).rstrip()])


def _lines(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {plain(text)}" for name, text in rows.items())


def await_launcher(log: Path, pid: int) -> None:
    """Return when the process `pid`, which launched the run of `log`, has ended; it is ended if it outlives the run."""

    def alive() -> bool:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return True
        return False

    def end(number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    ending.await_launcher(ending.Watch(log), alive, end)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is asked and return the exit code; only rank 0 prints."""
    parser = LaunchedParser("info", "Print versions, hardware and data of this machine, or what a log says of its run.")
    parser.add_argument("log", nargs="?", type=Path, metavar="LOG", help="the log of a run, of any status")
    add_json(parser)
    script = parser.add_argument_group("for job scripts, with LOG")
    script.add_argument(
        "--ended",
        type=count(0, 255),
        metavar="CODE",
        help="say how the run ended whose launcher returned CODE: exit code 0 completed, 75 stopped or to be started "
        "again, 1 given up, 2 refused",
    )
    script.add_argument(
        "--restarts",
        type=count(0, 10**6),
        default=ending.MOST_RESTARTS,
        metavar="N",
        help="with --ended: give up after more than N launches without a further round (default %(default)s)",
    )
    script.add_argument(
        "--await-launcher",
        type=count(2, 2**31),
        metavar="PID",
        help="wait for a launcher, and end it if it outlives its run by a minute",
    )
    chosen = parser.parse_args(argv)
    if chosen.log is None and (chosen.ended is not None or chosen.await_launcher):
        parser.error("--ended and --await-launcher need the LOG")
    started = {"mode": "fedkd info", "LOG": str(chosen.log)}
    if launched()[0]:
        leave(0, "", started)
    try:
        if chosen.await_launcher:
            await_launcher(real(chosen.log), chosen.await_launcher)
            return 0
        if chosen.ended is not None:
            found = ending.judge(real(chosen.log), chosen.ended, chosen.restarts)
            say(f"fedkd_mpi: {found.text}")
            return found.code
        facts = of_log(chosen.log) if chosen.log else machine()
    except UserError as error:
        leave(2, f"fedkd_mpi: {error}")
    text = log_text if chosen.log else machine_text
    leave(0, json_text(facts) if chosen.json else text(facts), started)


if __name__ == "__main__":
    sys.exit(main())
