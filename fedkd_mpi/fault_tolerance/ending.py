"""How a run ended, by its log: launchers return 0 when they have lost a node, and 137 when one rank was killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance import log_lock

Kind = Literal["completed", "stopped", "cut off", "given up", "refused"]
CODES: dict[Kind, int] = {
    "completed": 0,
    "stopped": os.EX_TEMPFAIL,
    "cut off": os.EX_TEMPFAIL,
    "given up": 1,
    "refused": 2,
}
MOST_RESTARTS = 3  # launches in a row that complete no further round
LEAVING = 60.0  # seconds in which the ranks of a launcher that has ended should end too
LOOKING = 2.0  # seconds between two looks at a log


@dataclass(frozen=True)
class Ending:
    """How a run ended, and one line about it. `code` is what the command that asked returns: 75 to start it again."""

    kind: Kind
    text: str

    @property
    def code(self) -> int:
        """The exit code of the kind."""
        return CODES[self.kind]


class Attempts(BaseModel):
    """What is remembered between two launches, in `<log>.restarts`.

    `run` is when the run in the log was begun, `starts` how often it was started or resumed, `rounds` the most rounds
    that it had, `in_vain` the number of launches in a row without a further round.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    run: str = Field("", max_length=100)
    starts: int = Field(0, ge=0, lt=2**31)
    rounds: int = Field(0, ge=0, lt=2**31)
    in_vain: int = Field(0, ge=0, lt=2**31)


@dataclass(frozen=True)
class _Found:
    """What a log says; `stopped` is the message of a run that stopped by itself before its last round."""

    run: str
    status: str
    starts: int
    rounds: int
    stopped: str | None

    @property
    def attempts(self) -> Attempts:
        return Attempts(run=self.run, starts=self.starts, rounds=self.rounds)


def memory_of(log: Path) -> Path:
    """Return the file that remembers the launches of a log's run; it is removed when the run needs none any more."""
    return Path(f"{log}.restarts")


def begin(log: Path) -> None:
    """Remember what is in a log before its run is launched for the first time by this user's command."""
    if found := _look(log):
        _remember(log, found.attempts)
    else:
        memory_of(log).unlink(missing_ok=True)


def judge(log: Path, code: int, most: int = MOST_RESTARTS) -> Ending:
    """Return how the run of `log` ended, whose launcher has ended with `code`; it is called once after every launch.

    A run that was cut off is to be started again, but not after more than `most` launches in a row that have completed
    no further round. The exit code counts only where that launch left nothing in the log: 2 is a refusal. Raises
    UserError if the log cannot be read.
    """
    _await_ranks(log)
    found, past = _look(log), _remembered(log)
    if found and found.run != past.run:
        past = Attempts(run=found.run, in_vain=past.in_vain)
    begun = found is not None and found.starts > past.starts
    if found and found.status == "completed" and begun:
        memory_of(log).unlink(missing_ok=True)
        return Ending("completed", f"{log} is completed: {found.rounds} rounds")
    if not begun and code == 2:
        return Ending("refused", f"{log}: the run was refused, see its message above: it is not started again")
    if found and begun and found.stopped is not None:
        _remember(log, found.attempts)
        return Ending("stopped", f"{log}: {found.stopped}")
    rounds = max(found.rounds if found else 0, past.rounds)
    in_vain = 0 if rounds > past.rounds else past.in_vain + 1
    what = f"{log} was cut off {_where(found)}; the launcher ended with {code}"
    if in_vain > most:
        memory_of(log).unlink(missing_ok=True)
        return Ending("given up", f"{what}: it is not started again, after {in_vain} launches without a further round")
    starts = found.starts if found else 0
    _remember(log, Attempts(run=past.run, starts=starts, rounds=rounds, in_vain=in_vain))
    count = f", in vain {in_vain} of at most {most} times" if in_vain else ""
    return Ending("cut off", f"{what}: it is to be started again{count}")


def _where(found: _Found | None) -> str:
    if found is None:
        return "before it had a log"
    return f"after round {found.rounds}" if found.rounds else "before its first round was completed"


def _await_ranks(log: Path) -> None:
    """Wait until nobody writes the log any more, so that it can be read and resumed."""
    end = time.monotonic() + LEAVING
    while log_lock.held(log) and time.monotonic() < end:
        time.sleep(0.2)


def _look(log: Path) -> _Found | None:
    if not log.exists():
        return None
    from fedkd_mpi import costlog  # h5py takes long to load, and --help needs no log

    with costlog.open(log, sums=False) as opened:
        status, rounds = str(opened.attrs["status"]), opened.rounds_completed
        starts = max(1, len(opened["starts"]["started"]) if "starts" in opened else 0)
        messages = opened["events"]["message"]
        last = str(messages[-1]) if len(messages) else ""
        run = str(opened.attrs["started"])
    stopped = last if status == "interrupted" and last.startswith("stopped after") else None
    return _Found(run, status, starts, rounds, stopped)


def _remembered(log: Path) -> Attempts:
    try:
        return Attempts.model_validate_json(memory_of(log).read_bytes())
    except (FileNotFoundError, ValidationError):  # none, or not what this module writes: it only counts
        return Attempts()
    except OSError as error:
        raise UserError(f"cannot read {memory_of(log)}: {error.strerror}") from None


def _remember(log: Path, attempts: Attempts) -> None:
    file = memory_of(log)
    new = file.with_name(f"{file.name}-new")
    try:
        new.write_text(attempts.model_dump_json(), encoding="utf-8")
        new.replace(file)
    except OSError as error:  # without it a run that never gets further would be started again for ever
        raise UserError(f"cannot write {file}: {error.strerror}: the run is not started again by itself") from None


class Watch:
    """Tells when a run has ended whose launcher has not; created when it is launched, then asked again and again."""

    def __init__(self, log: Path):
        self.log, self._seen = log, False
        self._before = self._start()

    def begun(self) -> bool:
        """Whether the run was begun in the log, or resumed in it, since this was created."""
        return self._start() != self._before

    def over(self) -> bool:
        """Whether the run has begun and ended: rank 0 has released the lock of the log."""
        if log_lock.held(self.log):
            self._seen = True
            return False
        if self._seen:
            return True
        # There may be no locks here, or the run was over between two looks.
        return self.begun() and self._status in ("completed", "interrupted")

    def _start(self) -> tuple[str, int]:
        self._status = ""
        with suppress(UserError):  # it cannot be read: whoever judges it says so
            if found := _look(self.log):
                self._status = found.status
                return found.run, found.starts
        return "", 0


def await_launcher(watch: Watch, alive: Callable[[], bool], end: Callable[[int], None], grace: float = 60.0) -> None:
    """Return when a launcher has ended; one that lives `grace` seconds longer than its run is ended.

    Open MPI's mpirun waits for ever for the daemon of a node that it has lost. `end` sends the launcher a signal:
    SIGTERM, and SIGKILL after as many seconds more.
    """
    over: float | None = None
    warned = False
    while alive():
        if over is None and watch.over():
            over = time.monotonic()
        late = 0.0 if over is None else time.monotonic() - over
        if late > 2 * grace:
            end(signal.SIGKILL)
        elif late > grace and not warned:
            warned = True
            end(signal.SIGTERM)
        time.sleep(min(LOOKING, grace))
