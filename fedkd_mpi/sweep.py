"""python -m fedkd_mpi.sweep SWEEP.yaml: many runs and their table; runs with a completed log are not run again.

python -m fedkd_mpi.sweep configs/table1/digits.yaml --jobs 2                     two at a time, one process each
python -m fedkd_mpi.sweep configs/table1/digits.yaml --launch "mpirun -n 33"      one after another
python -m fedkd_mpi.sweep configs/table1/digits.yaml --index $SLURM_ARRAY_TASK_ID as a task of sbatch --array=0-35
python -m fedkd_mpi.sweep configs/table1/digits.yaml --dry-run                    how long it takes, without training

SWEEP.yaml: `config` (the base of every run), `runs` (name -> changed keys) and/or `grid` (key -> values, all
combinations), `set` (keys changed in all runs), `seeds`, `output` (the folder of the logs), `published` (figures that
the report prints beside the runs).
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from os import EX_TEMPFAIL  # exit code of a run that stopped early with a checkpoint
from pathlib import Path
from typing import Any

from fedkd_mpi.common.command_line import Parser, add_json, count, json_text
from fedkd_mpi.common.console import say, tell
from fedkd_mpi.common.units import seconds_text
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config import pairs, sweep_file
from fedkd_mpi.config.sections import NAME
from fedkd_mpi.config.shipped import shipped
from fedkd_mpi.config.sweep_file import MOST, Sweep
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.fault_tolerance.log_lock import HeldError, Lock
from fedkd_mpi.simulation.course import Course
from fedkd_mpi.simulation.forecasts import Planned, forecasts

PATIENCE = 1.0  # seconds between attempts to lock a log that another sweep is writing


@dataclass(frozen=True)
class Item:
    """One run of a sweep: the arguments of fedkd_mpi.run, the path of its log, and the digest of its configuration."""

    config: Path
    overrides: tuple[str, ...]
    log: Path
    digest: str
    run: str  # name of the run in the sweep
    name: str  # name of the run and its point of the grid
    content: str  # digest of the configuration without its name
    rounds: int

    def state(self) -> str:
        """Return done, to do or to resume; raises UserError if the log has another configuration."""
        if not self.log.exists():
            return "to do"
        from fedkd_mpi import costlog

        with costlog.open(self.log) as log:
            status, digest = log.attrs["status"], log.attrs["config_digest"]
        if digest != self.digest:
            raise UserError(f"{self.log} is the log of another configuration: move it, or change output")
        if status == "completed":
            return "done"
        checkpoints = self.log.with_name(f"{self.log.name}.checkpoints")
        return "to resume" if checkpoints.is_dir() and any(checkpoints.iterdir()) else "to do"

    def command(self, launch: Sequence[str]) -> list[str]:
        """Return the command that creates the log or resumes its run."""
        run = [*launch, sys.executable, "-m", "fedkd_mpi.run"]
        if self.state() == "to resume":  # the log has this configuration, so the code that it names is trusted
            return [*run, "--resume", str(self.log), "--trust-log"]
        return [*run, *self.overrides, "--config", str(self.config), "--output", str(self.log), "--overwrite"]


def read(path: Path) -> list[Item]:
    """Return the runs of a sweep, seed by seed, so that after an early stop some seeds are complete.

    Every configuration is validated before the first run. Raises UserError naming the run and the key.
    """
    path = shipped(path)
    sweep = sweep_file.read(path)
    total = len(sweep.seeds) * len(sweep.runs) * prod(map(len, sweep.grid.values()))
    if total > MOST:
        raise UserError(f"sweep {shown(path)}: {total} runs are more than {MOST}")
    beside = path.parent / sweep.config
    start = beside if beside.exists() else Path(sweep.config)
    folder = sweep.output or Path("runs") / path.stem
    items = [_item(start, folder, *point, seed) for seed in sweep.seeds for point in _runs(sweep)]
    _require_distinct(items)
    return items


def _runs(sweep: Sweep) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, keys in sweep.runs.items():
        for values in product(*sweep.grid.values()):
            point = dict(zip(sweep.grid, values, strict=True))
            label = "".join(f"-{key.rpartition('.')[2]}={value}" for key, value in point.items())
            yield name, name + label, sweep.set | keys | point


def _item(start: Path, folder: Path, run: str, name: str, keys: dict[str, Any], seed: int) -> Item:
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", name.replace("=", "")).strip("_")
    if "name" not in keys and len(label) > NAME:
        raise UserError(f"run {shown(name)}: the name of its log must be shorter than {NAME} characters")
    keys = {"name": label, **keys, "seed": seed}
    # JSON is valid YAML, so that a section or a list is also one override.
    overrides = tuple(f"{key}={json.dumps(value)}" for key, value in keys.items())
    try:
        config = configuration.load(start, overrides)
        pairs.check(config)
    except UserError as error:
        raise UserError(f"run {shown(name)}: {error}") from None
    content = config.model_copy(update={"name": ""}).digest()
    return Item(
        start, overrides, folder / f"{config.name}-s{seed}.h5", config.digest(), run, name, content, config.rounds
    )


def _require_distinct(items: Sequence[Item]) -> None:
    """Raise UserError naming two runs with the same log, or a run that is in a grid twice, such as 1 and 1.0."""
    logs: dict[str, Item] = {}
    contents: dict[tuple[str, str], Item] = {}
    for item in items:
        # Some file systems do not distinguish upper and lower case.
        other = logs.setdefault(item.log.name.casefold(), item)
        if other is not item:
            which = f"the runs {shown(other.name)} and {shown(item.name)} have the same log, {shown(item.log)}"
            if other.name == item.name:
                which = f"the run {shown(item.name)} is given twice with the same log, {shown(item.log)}"
            raise UserError(f"{which}: give them names, or seeds, of their own")
        other = contents.setdefault((item.run, item.content), item)
        if other is not item:
            raise UserError(f"the grid contains one run twice, as {shown(other.name)} and as {shown(item.name)}")


def play(items: Sequence[Item], launch: Sequence[str], jobs: int) -> int:
    """Run the runs that are not done, `jobs` at a time; returns 0, 1 if a run failed, or 75 if one stopped early."""
    waiting = [item for item in items if item.state() != "done"]
    say(f"{len(items) - len(waiting)} of {len(items)} logs are finished")
    with Course(len(waiting), jobs) as course, ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda item: _run(item, launch, course), waiting))
    return EX_TEMPFAIL if EX_TEMPFAIL in codes else int(any(codes))


def _run(item: Item, launch: Sequence[str], course: Course) -> int:
    with _alone(item):
        if item.state() == "done":
            say(f"{item.log}: done by another sweep")
            course.ends(item.log, 0.0)
            return 0
        course.begins(item.log, item.rounds, item.state())
        return _start(item, launch, course)


@contextmanager
def _alone(item: Item) -> Iterator[None]:
    """Let one sweep at a time write a log; a second sweep waits until the log is done."""
    with Lock(item.log.with_name(f"{item.log.name}.sweep")) as lock:
        announced = False
        while True:
            try:
                lock.take()
                break
            except HeldError:
                if not announced:
                    say(f"{item.log}: waiting for another sweep")
                announced = True
                time.sleep(PATIENCE)
        yield


def _start(item: Item, launch: Sequence[str], course: Course) -> int:
    began = time.monotonic()
    done = subprocess.run(item.command(launch), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    took, rest = seconds_text(seconds), course.ends(item.log, seconds)
    if done.returncode == 0:
        say(f"{item.log}: done in {took}; {rest}")
    else:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-20:]
        say("\n  ".join([f"{item.log}: exit code {done.returncode} after {took}", *last]), error=True)
    return done.returncode


def listed(items: Sequence[Item], *, as_json: bool) -> str:
    """Return index, state and log of every run, one line each or as JSON."""
    if not as_json:
        return "\n".join(f"{index:3}  {item.state():9}  {item.log}" for index, item in enumerate(items))
    runs = [
        {
            "index": index,
            "name": item.name,
            "state": item.state(),
            "log": str(item.log),
            "config": str(item.config),
            "overrides": list(item.overrides),
        }
        for index, item in enumerate(items)
    ]
    return json_text({"runs": runs})


def _planned(items: Sequence[Item], launch: Sequence[str]) -> list[Planned]:
    """Return what a dry run has to do: a run's seeds take the same time, so the first stands for all."""
    seeds = Counter(item.name for item in items)
    firsts = {item.name: item for item in reversed(items)}
    command = [*launch, sys.executable, "-m", "fedkd_mpi.run", "--dry-run", "--json", "--config"]
    return [
        Planned(name, item.rounds, seeds[name], [*command, str(item.config), *item.overrides])
        for name, item in reversed(firsts.items())
    ]


def _words(launch: str) -> list[str]:
    try:
        return shlex.split(launch)
    except ValueError as error:
        raise UserError(f"--launch '{shown(launch)}': {str(error).lower()}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if a run failed, 2 for invalid usage, 75 if a run stopped early."""
    parser = Parser("sweep", "Run a list or grid of configurations.")
    parser.add_argument(
        "sweep", type=Path, metavar="SWEEP.yaml", help="file, or a shipped one such as table1/digits.yaml"
    )
    parser.add_argument("--list", action="store_true", help="print index, state and log of every run and stop")
    add_json(parser, "with --list or --dry-run: print JSON, for programs")
    parser.add_argument(
        "--index", type=count(0, MOST), metavar="I", help="run only this run, as a task of a Slurm array"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="time and memory of every run, measured by some steps of its first seed"
    )
    parser.add_argument("--jobs", type=count(1, 1000), default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--launch", default="", metavar="CMD", help="launcher of each run, e.g. 'mpirun -n 33'")
    chosen = parser.parse_args(argv)
    if chosen.json and not (chosen.list or chosen.dry_run):
        parser.error("--json belongs to --list or --dry-run")
    try:
        items = read(chosen.sweep)
        if chosen.list:
            tell(listed(items, as_json=chosen.json))
            return 0
        if chosen.index is not None and not 0 <= chosen.index < len(items):
            raise UserError(f"--index {chosen.index}: the sweep has the runs 0 to {len(items) - 1}")
        picked = items if chosen.index is None else [items[chosen.index]]
        if chosen.dry_run:
            forecasts(_planned(picked, _words(chosen.launch)), as_json=chosen.json)
            return 0
        code = play(picked, _words(chosen.launch), chosen.jobs)
    except UserError as error:
        say(f"fedkd_mpi.sweep: {error}", error=True)
        return 2
    if code == 0 and chosen.index is None:
        from fedkd_mpi.report.__main__ import main as report

        say("")
        beside = ["--published", str(chosen.sweep)] if sweep_file.read(shipped(chosen.sweep)).published else []
        return report([str(item.log) for item in items] + beside)
    return code


if __name__ == "__main__":
    sys.exit(main())
