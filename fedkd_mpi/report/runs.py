"""Logs as runs: scores and costs of a run as one flat row, and groups of runs that differ only in their seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedkd_mpi import costlog
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config.methods import averages, has_codec
from fedkd_mpi.costlog import door
from fedkd_mpi.costlog.schema import ENCRYPT, PHASES, STRAGGLER
from fedkd_mpi.errors import UserError, plain

SCORES = {
    "global_student": "global student, global test set",
    "teacher": "teachers, own test samples",
    "student": "students after local training, own test samples",
    "teacher_weighted": "teachers, own test samples of all clients together",
    "global_teacher": "teachers, global test set",
}
LONGEST = 120  # characters of a displayed name or setting


@dataclass(frozen=True)
class Target:
    """The score up to which bytes and seconds are counted: a value of one of SCORES; metric None is the log's first."""

    value: float | None = None
    score: str = "global_student"
    metric: str | None = None


class Run:
    """One log, open for reading; `rounds` is its table of rounds.

    Raises UserError as costlog.open() does; with `checked`, every value in the log is validated.
    """

    def __init__(self, path: Path, target: Target, checked: bool = True):
        self.path, self.log = path, costlog.open(path, sums=checked)
        try:
            if checked:
                self.log.check()
            self.config = _config(path, self.log.attrs["config"])
            self.metrics, self.clients = self.log.attrs["metrics"], self.log.attrs["num_clients"]
            self.metric = target.metric or next(iter(self.metrics), "")
            self.unchanged = door.agrees(self.log.attrs)
            if self.metric not in self.metrics:
                raise UserError(f"{path} has no metric {self.metric}: it has {', '.join(self.metrics) or 'none'}")
            self.rounds = dict(self.log["rounds"])
        except BaseException:
            self.log.close()
            raise

    @property
    def name(self) -> str:
        """The name of the run in its configuration."""
        return self.setting("name") or plain(self.path.stem, LONGEST)

    @property
    def exchanges(self) -> bool:
        """Whether the run exchanges a network."""
        return len(self.log["layers"]["numel"]) > 0

    @property
    def method(self) -> str:
        """The method, with the network that it averages if there is a choice."""
        method = self.setting("method") or self.setting("method", "name")
        network = self.setting("averaging", "network")
        return f"{method} ({network})" if network and averages(method) else method

    @property
    def codec(self) -> str:
        """The codec, "-" if nothing is exchanged or what is exchanged passes none."""
        return self.setting("compression", "codec") if self.compresses else "-"

    @property
    def compresses(self) -> bool:
        """Whether what the run exchanges passes a codec."""
        return self.exchanges and has_codec(self.setting("method") or self.setting("method", "name"))

    @property
    def phases(self) -> list[str]:
        """The phases of a round that the log has."""
        return [*PHASES, *(phase for phase in (ENCRYPT,) if f"seconds_{phase}" in self.rounds)]

    @property
    def planned(self) -> int:
        """The number of rounds in its configuration; if that is missing, the number of completed rounds."""
        planned = self.config.get("rounds")
        return planned if type(planned) is int and 0 < planned < 2**31 else self.log.rounds_completed

    def setting(self, *keys: str) -> str:
        """Return a value of the configuration as sanitised text, "" if it is missing; logs may come from outside."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return plain(str(value), LONGEST) if isinstance(value, str | int | float) else ""

    @property
    def group(self) -> str:
        """A text that is the same for runs whose configurations differ only in the seed."""
        return repr({key: value for key, value in self.config.items() if key != "seed"})

    @cached_property
    def sent_bytes(self) -> np.ndarray:
        """Cumulative bytes of the messages, up and down, of all clients after every round: int64 [rounds]."""
        return (self.rounds["uplink_bytes"] + self.rounds["downlink_bytes"]).cumsum()

    @cached_property
    def total_bytes(self) -> np.ndarray:
        """Cumulative bytes up, down and to catch up on missed rounds, after every round: int64 [rounds]."""
        return self.sent_bytes + self.rounds["catchup_bytes"].cumsum()

    @cached_property
    def partial(self) -> bool:
        """Whether some clients missed rounds, so that a mean over a cohort is not a mean over all clients."""
        return bool((self.rounds["cohort_size"] < self.clients).any())

    @property
    def less_is_better(self) -> bool:
        """Whether less is better for the metric."""
        return self.metric in self.log.attrs["lower_is_better"]

    def score(self, name: str, metric: str | None = None) -> np.ndarray:
        """Return one of SCORES after every round: float64 [rounds], NaN for rounds without an evaluation.

        `metric` is the run's own by default. With partial participation, scores of the clients' own networks are means
        over all clients' latest scores.
        """
        metric = metric or self.metric
        if name == "teacher_weighted":
            column = self.rounds[f"teacher_{metric}_weighted"]
            return np.full(len(column), np.nan) if self.partial else column
        suffix = "_all" if self.partial and name in ("teacher", "student") else ""
        return self.rounds[f"{name}_{metric}{suffix}"]

    def reached(self, target: Target) -> int | None:
        """Return the index of the first round whose score reaches the target (at most, if less is better), or None."""
        if target.value is None:
            return None
        sign = -1 if self.less_is_better else 1
        good = sign * self.score(target.score) >= sign * target.value  # False for NaN
        return int(good.argmax()) if good.any() else None

    def status(self) -> str:
        """Return completed, interrupted or running, with the number of rounds if they are not all completed."""
        done, planned = self.log.rounds_completed, self.planned
        status = {"running": "running or killed"}.get(self.log.attrs["status"], self.log.attrs["status"])
        return status if done == planned else f"{status}, {done} of {planned} rounds"

    def row(self, target: Target) -> dict[str, Any]:
        """Return the scores and costs of the run as one flat row: text, exact integers, floats (NaN: unknown)."""
        rounds = self.rounds
        identity = {
            "log": plain(str(self.path)),
            "name": self.name,
            "method": self.method,
            "codec": self.codec,
            "seed": self.log.attrs["seed"],
            "status": self.log.attrs["status"],
            "rounds": self.log.rounds_completed,
            "clients": self.clients,
            "mpi_processes": self.log.attrs["world_size"],
            "metric": self.metric,
        }
        sums = {name: int(column.sum()) for name, column in rounds.items() if name.endswith("_bytes")}
        total = sums["uplink_bytes"] + sums["downlink_bytes"] + sums["catchup_bytes"]
        per_client = total / self.clients if self.clients else np.nan
        costs: dict[str, float] = {"total_bytes": total, "bytes_per_client": per_client}
        costs["encryption_bytes"] = sum(sums.get(f"{leg}_encryption_bytes", 0) for leg in ("uplink", "downlink"))
        for leg in ("uplink", "downlink", "catchup"):
            costs[f"{leg}_bytes_per_client"] = sums[f"{leg}_bytes"] / self.clients if self.clients else np.nan
        costs["saving"] = 1 - total / sums["teacher_dense_bytes"] if total else np.nan
        costs["factor"] = sums["teacher_dense_bytes"] / total if total else np.nan
        at = self.reached(target)
        goal = {
            "target": np.nan if target.value is None else target.value,
            "rounds_to_target": np.nan if at is None else at + 1,
            "bytes_to_target": np.nan if at is None else int(self.total_bytes[at]),
        }
        seconds = {f"seconds_{phase}": float(rounds[f"seconds_{phase}"].sum()) for phase in (*self.phases, "total")}
        seconds.setdefault(f"seconds_{ENCRYPT}", 0.0)
        seconds |= {"trainings": len(self.log["training"]["round"]), "stragglers": self.stragglers()}
        seconds["skipped"] = int(rounds["skipped_clients"].sum())
        return identity | self._scores() | sums | costs | goal | seconds

    @cached_property
    def late(self) -> np.ndarray:
        """Which local trainings took more than STRAGGLER times the median of their round: bool [trainings]."""
        training = self.log["training"]
        seconds, of_round = training["seconds_train"], training["round"]
        starts = np.flatnonzero(np.diff(of_round, prepend=-1))
        parts = np.split(seconds, starts[1:])
        medians = [np.nan if np.isnan(part).all() else np.nanmedian(part) for part in parts]
        return seconds > STRAGGLER * np.repeat(medians, [len(part) for part in parts])

    def stragglers(self) -> int:
        """Return the number of local trainings that took more than STRAGGLER times the median of their round."""
        return int(self.late.sum())

    def _scores(self) -> dict[str, float]:
        best = np.min if self.less_is_better else np.max
        scores = {}
        for name in SCORES:
            known = self.score(name)
            known = known[~np.isnan(known)]
            scores[f"{name}_last"] = float(known[-1]) if len(known) else np.nan
            scores[f"{name}_best"] = float(best(known)) if len(known) else np.nan
        return scores


def load(paths: Iterable[Path], target: Target) -> tuple[list[Run], list[str]]:
    """Return the runs of all readable logs, and one line per problem."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(Run(path, target))
            if not runs[-1].unchanged:
                problems.append(plain(f"{path}: its configuration was changed: config_digest is not that of the text"))
        except UserError as error:
            problems.append(str(error))
    return runs, problems


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return lists of runs that differ only in the seed, in order of first appearance.

    A second run of the same seed begins another list: it is a repetition, not another seed.
    """
    found: dict[tuple[str, int], list[Run]] = {}
    repeated: Counter[tuple[str, int]] = Counter()
    for run in runs:
        of_seed = run.group, int(run.log.attrs["seed"])
        found.setdefault((run.group, repeated[of_seed]), []).append(run)
        repeated[of_seed] += 1
    return list(found.values())


def _config(path: Path, text: str) -> dict[str, Any]:
    try:
        config = yaml_loader.parse(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: its configuration is not YAML")
    return config
