"""Draws figures into files, on all cores: python -m fedkd_mpi.report.drawing reads a list of figures from stdin."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
SHEETS = ("png", "pdf")  # kinds of the figures of single runs: one to look at, one for print
ALONE = 6  # figures for which starting another process takes longer than drawing
MOST = 16  # processes


def save(
    groups: Sequence[Sequence[Run]],
    target: Target,
    folder: Path,
    said: Callable[[str], None],
    workers: int | None = None,
    kinds: Sequence[str] = (),
    meanwhile: Callable[[Mapping[str, bytes]], None] | None = None,
) -> list[Path]:
    """Write all figures of all runs to a folder and return their paths.

    The figures are those of plots.overview(), and those of PARTS for the first log of each group. `kinds` are some of
    canvas.KINDS; by default those of the overview are all, and the others are SHEETS. `said` gets a line per figure.
    `workers` is the number of processes that draw; by default one per core that the process may use. `meanwhile` is
    called with the overview as SVG by name, while other processes draw.
    Raises UserError if the folder cannot be written or matplotlib is not installed.
    """
    with canvas.style():  # refuses where there is no matplotlib
        jobs = [
            job | {"kinds": list(kinds or SHEETS)}
            for known, group in zip(name(groups), groups, strict=True)
            for job in _jobs(known, group[0], target)
        ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the plots to {folder}: {error.strerror}") from None
    paths, stems = list[Path](), list[str]()

    def done(stem: str, made: Sequence[str], total: int) -> None:
        stems.append(stem)
        paths.extend(folder / f"{stem}.{kind}" for kind in made)
        ending = made[0] if len(made) == 1 else f"{{{','.join(made)}}}"
        said(f"[{len(stems)}/{total}] {folder / stem}.{ending}")

    workers = min(_cores() if workers is None else workers, MOST, -(-len(jobs) // ALONE))
    # Neighbours share a log, so a process gets neighbours.
    ends = [len(jobs) * number // max(workers, 1) for number in range(workers + 1)]
    shares = [jobs[first:last] for first, last in itertools.pairwise(ends)] if workers > 1 else []
    with _Workers(shares, folder) as others:
        figures, drawn = plots.overview(groups, target), dict[str, bytes]()
        total = len(figures) + len(jobs)
        for stem, figure in figures.items():
            made = {kind: canvas.render(figure, kind) for kind in kinds or canvas.KINDS}
            _write(made, folder, stem)
            if meanwhile is not None:
                drawn[stem] = made.get("svg") or canvas.render(figure, "svg")
            done(stem, kinds or canvas.KINDS, total)
        if meanwhile is not None:
            meanwhile(drawn)
        for stem in others if workers > 1 else _each(jobs, folder):
            done(stem, kinds or SHEETS, total)
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
        _write({kind: canvas.render(figure, kind) for kind in job["kinds"]}, folder, job["stem"])
        yield job["stem"]


def _write(made: Mapping[str, bytes], folder: Path, stem: str) -> None:
    try:
        for kind, content in made.items():
            (folder / f"{stem}.{kind}").write_bytes(content)
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
