"""How far a list of runs has come: what runs at present and for how long, how many are done, and the time left.

On a terminal one live line says so, drawn again every second. Elsewhere, and above that line, there is a plain line
where a run begins and where it ends.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from fedkd_mpi.common.console import say
from fedkd_mpi.common.units import seconds_text
from fedkd_mpi.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

REFRESH_SECONDS = 1.0  # between two drawings of the live line
READ_SECONDS = 5.0  # between two looks into the logs, at least
READ_SHARE = 0.02  # of the time for these looks, at most: the runs need the cores
ENDING = 10.0  # seconds to wait for the thread's end


@dataclass
class _Running:
    """A run that goes on: its log, the rounds it will have and has, and when it began."""

    log: Path
    rounds: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)


class Course:
    """Counts the runs of a sweep as they begin and end, for the user; `jobs` run at a time.

    Used as a context: while it lasts there is a live line, where stderr is a terminal.
    """

    def __init__(self, total: int, jobs: int):
        self._total, self._jobs, self._begun, self._done, self._seconds = total, jobs, 0, 0, 0.0
        self._running: dict[Path, _Running] = {}
        self._started = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Course:
        from fedkd_mpi.communication import terminal
        from fedkd_mpi.simulation.progress import live

        if self._total and (found := terminal.find()):
            self._live = live(found, self)
            self._live.start()
            self._threads = [threading.Thread(target=work, daemon=True) for work in (self._draw, self._read)]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(ENDING)
        if self._threads:
            self._live.stop()

    def begins(self, log: Path, rounds: int, state: str) -> None:
        """Say which run begins, and in which state it is: to do or to resume."""
        with self._lock:
            self._begun += 1
            self._running[log] = _Running(log, rounds)
            text = f"{log}: run {self._begun} of {self._total} begins ({state})"
        say(text)  # above the live line, whose drawing takes the lock

    def ends(self, log: Path, seconds: float) -> str:
        """Return how many runs are done after one that took so long, and about how long the others will take."""
        with self._lock:
            self._running.pop(log, None)
            self._done, self._seconds = self._done + 1, self._seconds + seconds
            left = self._seconds / self._done * (self._total - self._done) / self._jobs
            rest = f", about {seconds_text(left)} left" if self._done < self._total else ""
            return f"{self._done} of {self._total} runs{rest}"

    def line(self, width: int) -> list[tuple[str, bool]]:
        """Return the texts of the live line that fit a width in columns, in order, and which of them are emphasised.

        Runs that do not fit are counted. How many are done and the time left are kept to the last.
        """
        with self._lock:
            running = sorted(self._running.values(), key=lambda run: run.began)
        first, last = f"{self._done} of {self._total} runs done", self._left(running)
        texts = [_text(run) for run in running]
        room = width - len(first) - len(last) - 4
        shown = len(texts)
        while shown and len("  ".join(_some(texts, shown))) + 2 > room:
            shown -= 1
        return [(first, True), *((text, False) for text in _some(texts, shown) if len(text) + 2 <= room), (last, True)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment
        from rich.style import Style

        for place, (text, strong) in enumerate(self.line(options.max_width - 1)):
            yield Segment(f"{'  ' if place else ''}{text}", Style(bold=True) if strong else None)

    def _left(self, running: list[_Running]) -> str:
        """Return the time left: as the rounds since the beginning have it, and not less than a running run takes."""
        done = self._done + sum(run.done / run.rounds for run in running)
        if not done:
            return "-- left"
        now = time.monotonic()
        left = (now - self._started) / done * (self._total - done)
        alone = [(now - run.began) / run.done * (run.rounds - run.done) for run in running if run.done]
        return f"about {seconds_text(max(left, *alone, 0.0))} left"

    def _draw(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            self._live.refresh()

    def _read(self) -> None:
        """Look into the logs of the running runs for the rounds that they have."""
        from fedkd_mpi import costlog

        pause = READ_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            with self._lock:
                running = list(self._running.values())
            for run in running:
                with suppress(UserError, OSError), costlog.open(run.log) as log:  # it may be being made at present
                    if log.attrs["status"] == "running":  # else it is the one that will be replaced or resumed
                        run.done = min(log.rounds_completed, run.rounds)
            pause = max(READ_SECONDS, (time.monotonic() - began) / READ_SHARE)


def _text(run: _Running) -> str:
    went = seconds_text(time.monotonic() - run.began)
    return f"{run.log.stem} round {min(run.done + 1, run.rounds)}/{run.rounds}, {went}"


def _some(texts: list[str], shown: int) -> list[str]:
    left_out = len(texts) - shown
    return [*texts[:shown], f"{left_out} more" if shown else f"{left_out} running"] if left_out else texts
