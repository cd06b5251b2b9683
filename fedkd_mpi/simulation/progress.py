"""Console output while a run goes on: one live line on a terminal, else plain lines now and then.

On a terminal the line is drawn again twice per second: the round, what happens in it, the newest scores and bytes, and
the time left. What does not fit the width is left out; the round and the time left are kept to the last.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console, ConsoleDimensions, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style

from fedkd_mpi.common.console import say
from fedkd_mpi.common.units import bytes_text, seconds_text
from fedkd_mpi.communication import terminal

if TYPE_CHECKING:
    from fedkd_mpi.communication.world import World
    from fedkd_mpi.config.schema import Config

QUIET_SECONDS = 5.0  # between the plain lines of two rounds
LONG_SECONDS = 60.0  # between two plain lines inside a round
REFRESH_SECONDS = 0.5  # between two drawings of the live line
PAUSE_SECONDS = 2.0
NOTICEABLE = 5.0  # seconds of a phase from which on they are shown
BAR = 10  # columns of the bar at least
LONGEST_BAR = 40
PRINTING = 0.2  # seconds for a launcher, which reads stderr and stdout apart, to print the end of the line
ENDING = 10.0  # seconds to wait for the thread's end


class Progress:
    """Shows on rank 0 how a run goes on; does nothing on other ranks.

    `trained_elsewhere` returns how many clients the other ranks have trained in a round. stop() ends the output.
    """

    def __init__(self, config: Config, world: World, trained_elsewhere: Callable[[int], int]):
        self._config, self._status, self._trained_elsewhere = config, world.status, trained_elsewhere
        self._started = self._ended = self._spoke = self._since = time.monotonic()  # _ended: of the last round
        self._first: int | None = None  # the first round of this process; None before the rounds
        self._done, self._moved = 0, 0
        self._scores: list[str] = []
        self._phase = ("", 0)
        self._paused_until = 0.0
        self._live: Live | None = None
        self._behind_launcher = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        if not world.is_root:
            return
        if found := terminal.find():
            self._behind_launcher = found.path is not None
            self._live = live(found, _Line(self))
            self._live.start()
        self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    @property
    def live(self) -> bool:
        """Whether a person watches on a terminal."""
        return self._live is not None

    def begin(self, first: int, moved: int) -> None:
        """Begin with the round `first`; `moved` are the bytes of the rounds before it."""
        self._started = self._ended = self._spoke = time.monotonic()
        self._first, self._done, self._moved = first, first, moved
        self._spoke -= QUIET_SECONDS  # so that the first round is shown however fast it was

    def round(self, row: dict[str, Any]) -> None:
        """Show a row of the table `rounds`."""
        self._moved += row["uplink_bytes"] + row["downlink_bytes"] + row["catchup_bytes"]
        self._done = row["round"] + 1
        scores = {name: value for name, value in row.items() if name.startswith(("global_student_", "teacher_"))}
        known = [
            f"{name} {value:.4f}"
            for name, value in scores.items()
            if not name.endswith(("bytes", "loss", "_weighted", "_all")) and value == value
        ]
        self._scores = [*(known or self._scores[:-1]), f"T {row['threshold']:.3f}"]
        last, now = self._done == self._config.rounds, time.monotonic()
        self._ended = now
        if not self.live and (last or now - self._spoke > QUIET_SECONDS):
            self._spoke = now
            words = [f"round {self._done}/{self._config.rounds}", *known, self._scores[-1], bytes_text(self._moved)]
            say("  ".join([*words, self._left()]))

    def stop(self) -> None:
        """End the output and remove the live line."""
        atexit.unregister(self.stop)
        if self._over.is_set():
            return
        self._over.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(ENDING)
        if self._live:
            self._live.stop()
            if self._behind_launcher:
                time.sleep(PRINTING)

    def pause(self) -> None:
        """Leave the terminal as it is for PAUSE_SECONDS, in which a launcher may end this process."""
        self._paused_until = time.monotonic() + PAUSE_SECONDS

    def line(self, width: int) -> list[tuple[str, bool]]:
        """Return the texts of the live line that fit a width in columns, in order, and which of them are emphasised.

        A text of spaces stands for the bar.
        """
        rounds = self._config.rounds
        if self._first is None:
            return [(self._status.phase[:width], False)]
        # Text and importance: the least important are left out first, of scores those of the global student last.
        parts = [(f"round {min(self._done + 1, rounds)}/{rounds}", 100), (self._activity(), 50)]
        parts += [(text, 40 - place - 20 * (not text.startswith("global"))) for place, text in enumerate(self._scores)]
        parts += [(bytes_text(self._moved), 45), (self._left(), 100)]
        while sum(len(text) + 2 for text, _ in parts) - 2 > width and min(parts, key=_weight)[1] < 100:
            parts.remove(min(parts, key=_weight))
        room = width - sum(len(text) + 2 for text, _ in parts)
        if room >= BAR:
            parts.insert(1, (" " * min(room, LONGEST_BAR), 0))
        return [(text, weight == 100) for text, weight in parts]

    def _activity(self) -> str:
        """Return what happens in the round at present, with the clients that are trained and the seconds so far."""
        status = self._status
        phase, index = status.phase, status.round
        clients, trained = self._config.clients_per_round, status.trained + self._trained_elsewhere(index)
        # The server begins to aggregate when the first clients are trained.
        if phase in ("training", "uplink", "aggregation") and trained < clients:
            phase = f"training {trained}/{clients}"
        if self._phase != (status.phase, index):
            self._phase, self._since = (status.phase, index), time.monotonic()
        seconds = time.monotonic() - self._since
        return f"{phase}, {seconds_text(seconds)}" if seconds >= NOTICEABLE else phase

    def _left(self) -> str:
        """Return the time left, as the mean of the rounds so far has it."""
        done = self._done - (self._first or 0)
        if done <= 0:
            return "-- left"
        mean, rounds = (self._ended - self._started) / done, self._config.rounds - self._done
        left = max(mean * rounds - (time.monotonic() - self._ended), mean * (rounds - 1), 0.0) if rounds else 0.0
        return f"{seconds_text(left) if left >= 60 else f'{left:.0f} s'} left"

    def _tick(self) -> None:
        while not self._over.wait(REFRESH_SECONDS):
            if self._live:
                if time.monotonic() > self._paused_until:
                    self._live.refresh()
            elif self._first is not None and time.monotonic() - self._spoke > LONG_SECONDS:
                self._spoke = time.monotonic()
                number = min(self._done + 1, self._config.rounds)
                say(f"round {number}/{self._config.rounds}  {self._activity()}  {self._left()}")


def _weight(part: tuple[str, int]) -> int:
    return part[1]


class _Screen(Console):
    """The console of a terminal whose width is asked for at each drawing, as behind a launcher it may be elsewhere.

    The cursor is not hidden: a launcher that kills this process would leave it so.
    """

    def __init__(self, found: terminal.Terminal):
        super().__init__(file=cast("IO[str]", found.stream()), force_terminal=True, soft_wrap=True, highlight=False)
        self._found = found

    @property  # type: ignore[misc]  # rich's has a setter, which nobody calls here
    def size(self) -> ConsoleDimensions:
        return ConsoleDimensions(self._found.width(), 24)

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _Line:
    """The live line as rich draws it."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for place, (text, strong) in enumerate(self._progress.line(options.max_width - 1)):
            yield Segment("  " if place else "")
            if text.isspace():
                config = self._progress._config
                bar = ProgressBar(config.rounds, self._progress._done, width=len(text))
                yield from bar.__rich_console__(console, options)
            else:
                yield Segment(text, Style(bold=True) if strong else None)


def live(found: terminal.Terminal, line: ConsoleRenderable) -> Live:
    """Return a live line on a terminal, above which all that is printed appears; it is drawn by refresh()."""
    return Live(
        line,
        console=_Screen(found),
        auto_refresh=False,
        transient=True,
        redirect_stdout=found.shows_stdout,
        redirect_stderr=sys.stderr is not None,
    )
