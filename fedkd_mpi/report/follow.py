"""--follow: shows a running log round by round in the terminal until the run ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedkd_mpi.common.console import tell
from fedkd_mpi.common.units import bytes_text, seconds_text
from fedkd_mpi.errors import plain
from fedkd_mpi.report.runs import Run, Target

QUIET_SECONDS = 60.0  # without a new round, after which a line says so


def follow(path: Path, say: Callable[[str], None] | None = None, poll: float = 0.5) -> None:
    """Show the existing and all later rounds of a log until its status is no longer running.

    The log is reopened for every poll (SWMR), which does not disturb the run. Raises UserError as costlog.open() does.
    """
    say = say or tell
    began, shown, events, heard = False, 0, 0, time.monotonic()
    while True:
        run = Run(path, Target(), checked=not began)
        with run.log as log:
            if not began:
                size = f"{run.clients} clients, {run.planned} rounds"
                say(f"{run.name}: {run.method}, codec {run.codec}, {size}, started {plain(log.attrs['started'], 40)}")
                began = True
            for index in range(shown, log.rounds_completed):
                say(_line(run, index))
                heard = time.monotonic()
            messages = log["events"]["message"].tolist()
            for message in messages[events:]:
                say(f"  {plain(message)}")
            shown, events, status = log.rounds_completed, len(messages), log.attrs["status"]
        if status != "running":
            say(f"{status} after {shown} rounds")
            return
        if time.monotonic() - heard > QUIET_SECONDS:
            say(f"  no new round for {seconds_text(time.monotonic() - heard)}: slow, or killed")
            heard = time.monotonic()
        time.sleep(poll)


def _line(run: Run, index: int) -> str:
    done = int(run.rounds["round"][index]) + 1
    planned = max(run.planned, done)
    bar = "#" * (20 * done // planned)
    scores = [
        f"{name.replace('_', ' ')} {run.score(name)[index]:.4f}"
        for name in ("global_student", "teacher")
        if run.metrics
    ]
    known = [score for score in scores if not score.endswith("nan")]
    seconds = run.rounds["seconds_total"][index]
    left = float(np.mean(run.rounds["seconds_total"][: index + 1])) * (planned - done)
    share = f"{100 * run.rounds['seconds_wait'][index] / seconds:.0f} % waiting" if seconds > 0 else ""
    parts = [
        f"round {done:>{len(str(planned))}}/{planned} [{bar:<20}]",
        *known,
        bytes_text(float(run.total_bytes[index])),
    ]
    return "  ".join([*parts, f"{seconds_text(seconds)} per round, {share}", f"{seconds_text(left)} left"])
