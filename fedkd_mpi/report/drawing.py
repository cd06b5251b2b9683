"""Draws figures into files, on all cores: python -m fedkd_mpi.report.drawing reads a list of figures from stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd_mpi.common.console import tell
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import canvas, clients, layers, plots, times
from fedkd_mpi.report.names import Name, name
from fedkd_mpi.report.runs import Run, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS: dict[str, Callable[..., Figure]] = {
    "layers": layers.by_layer,
    "time": times.times,
    "clients": clients.clients,
}
ALONE = 6  # figures for which starting another process takes longer than drawing
MOST = 16  # processes


def save(
    groups: Sequence[Sequence[Run]],
    target: Target,
    folder: Path,
    said: Callable[[str], None],
    workers: int | None = None,
) -> list[Path]:
    """Write all figures of all runs as PNG, SVG and PDF to a folder and return their paths.

    The figures are those of plots.overview(), and those of PARTS for the first log of each group. `said` gets a line
    per figure. `workers` is the number of processes that draw; by default one per core that the process may use.
    Raises UserError if the folder cannot be written or matplotlib is not installed.
    """
    figures = plots.overview(groups, target)
    jobs = [job for known, group in zip(name(groups), groups, strict=True) for job in _jobs(known, group[0], target)]
    total, paths = len(figures) + len(jobs), list[Path]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the plots to {folder}: {error.strerror}") from None

    def done(stem: str) -> None:
        paths.extend(folder / f"{stem}.{kind}" for kind in canvas.KINDS)
        said(f"[{len(paths) // len(canvas.KINDS)}/{total}] {folder / stem}.{{{','.join(canvas.KINDS)}}}")

    workers = min(_cores() if workers is None else workers, MOST, -(-len(jobs) // ALONE))
    with _Workers([jobs[number::workers] for number in range(workers)] if workers > 1 else [], folder) as others:
        for stem, figure in figures.items():
            _write(figure, folder, stem)
            done(stem)
        for stem in others if workers > 1 else _each(jobs, folder):
            done(stem)
    return paths


class _Workers:
    """Processes that draw; iterate for the names of the figures in the order in which they are written.

    Raises UserError of a process, and UserError if a process was killed.
    """

    def __init__(self, shares: Sequence[Sequence[dict[str, Any]]], folder: Path):
        self._processes: list[subprocess.Popen[str]] = []
        self._shares, self._folder = shares, folder

    def __enter__(self) -> _Workers:
        reading, writing = os.pipe()  # one for all: lines that are this short do not mix
        self._names = os.fdopen(reading)
        try:
            for share in self._shares:
                self._processes.append(_start(share, self._folder, writing))
        finally:
            os.close(writing)
        return self

    def __iter__(self) -> Iterator[str]:
        for line in self._names:  # ends when the last process has ended
            found = json.loads(line)
            if "error" in found:
                raise UserError(found["error"])
            yield found["stem"]
        if any(process.wait() for process in self._processes):
            raise UserError("a process that draws figures was killed: not all figures are written")

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._names.close()


def main() -> int:
    """Draw the figures that stdin lists and print the name of each when it is written; returns 0, or 2 on an error."""
    asked = json.load(sys.stdin)
    try:
        for stem in _each(asked["jobs"], Path(asked["folder"])):
            tell(json.dumps({"stem": stem}))
    except UserError as error:
        tell(json.dumps({"error": str(error)}))
        return 2
    return 0


def _jobs(known: Name, run: Run, target: Target) -> Iterator[dict[str, Any]]:
    """Yield what a process needs to draw the figures of one run; nothing without a completed round."""
    if not run.log.rounds_completed:
        return
    codec = f", codec {run.codec}" if run.compresses else ""
    size = f"{run.clients} client{'s' * (run.clients != 1)}, seed {run.log.attrs['seed']}"
    more = f"{run.method}{codec}, {size}, MPI processes: {run.log.attrs['world_size']}"
    for part in PARTS:
        if part != "layers" or run.exchanges:
            heading = [canvas.label(known.label(110).partition(" (")[0], 200), canvas.label(more, 300)]
            yield {
                "path": str(run.path.absolute()),
                "metric": target.metric,
                "part": part,
                "stem": f"{known.id}-{part}",
                "heading": heading,
            }


def _each(jobs: Sequence[dict[str, Any]], folder: Path) -> Iterator[str]:
    """Draw figure after figure and yield the name of each that is written."""
    opened: dict[str, Run] = {}
    for job in jobs:
        if job["path"] not in opened:
            for run in opened.values():
                run.log.close()
            # The report has checked the log; a run that goes on may have more rounds by now.
            opened = {job["path"]: Run(Path(job["path"]), Target(metric=job["metric"]), checked=False)}
        with canvas.style():
            figure = PARTS[job["part"]](opened[job["path"]], *job["heading"])
        _write(figure, folder, job["stem"])
        yield job["stem"]


def _write(figure: Figure, folder: Path, stem: str) -> None:
    try:
        for kind in canvas.KINDS:
            (folder / f"{stem}.{kind}").write_bytes(canvas.render(figure, kind))
    except OSError as error:
        raise UserError(f"cannot write the plots to {folder}: {error.strerror}") from None


def _start(jobs: Sequence[dict[str, Any]], folder: Path, output: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedkd_mpi.report.drawing"]
    # One thread per process: they share the cores.
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | threads | {"PYTHONPATH": path}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, text=True, env=environment)
    assert process.stdin is not None
    json.dump({"jobs": jobs, "folder": str(folder.absolute())}, process.stdin)
    process.stdin.close()
    return process


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
