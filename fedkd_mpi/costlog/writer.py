"""Writes a cost log round by round, so that after kill -9 at any time every completed round is readable."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from fedkd_mpi.costlog import checks, files, reader, schema
from fedkd_mpi.costlog.live import LiveFile
from fedkd_mpi.errors import RunFault, UserError


class Writer:
    """The log of one run, created by create() or resume() on rank 0.

    As a context manager it marks the log `interrupted` if the block ends without finish().
    """

    def __init__(self, path: Path):
        with reader.open(path, sums=False) as log:
            self.rounds_completed = log.rounds_completed
            self._world_size, numbers = log.attrs["world_size"], log["rounds"]["round"]
            declared = schema.growing(log.attrs["metrics"])
            columns = {
                table: {name: column for name, column in names.items() if name in log[table]}
                for table, names in declared.items()
            }
        self.path = path
        self._next = int(numbers[-1]) + 1 if len(numbers) else None
        self._lock, self._finished = threading.RLock(), False
        self._fault = f"the log {path} is closed"
        self._live = LiveFile(path, columns)
        self._file: LiveFile | None = self._live
        widths = self._live.widths
        self._columns = {
            table: {name: (column, np.dtype(column.dtype), widths[table][name]) for name, column in names.items()}
            for table, names in columns.items()
        }
        self._given: dict[str, AbstractSet[str]] = {table: self._columns[table].keys() for table in ("rounds", "mpi")}
        self._given |= {table: self._columns[table].keys() - {"round"} for table in ("uplink", "downlink", "training")}

    @classmethod
    def create(
        cls,
        path: str | Path,
        attrs: Mapping[str, Any],
        layers: Sequence[tuple[str, Sequence[int], bool]],
        clients: Mapping[str, np.ndarray],
        metrics: Sequence[str],
        world_size: int,
        overwrite: bool = False,
        spectra: bool = False,
        *,
        lower_is_better: Sequence[str] = (),
        paper: bool = True,
        encrypted: bool = False,
        differential: bool = False,
        sources: Mapping[str, np.ndarray] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> Writer:
        """Create a log, which exists completely or not at all, and open it for appending.

        `attrs` are the attributes of schema.ATTRS that the writer does not set itself (text, integers, lists of text).
        `layers` are (name, shape, compressible). `clients` are the columns [client] of schema.FIXED, and
        label_histogram [client, class] if there are classes. `spectra` adds the column spectrum to uplink and downlink,
        `paper` adds the paper's counts to rounds, `encrypted` what encryption adds to rounds and messages,
        `differential` the columns of differential privacy. `lower_is_better` are the metrics for which less is better.
        `sources` are the columns of the table files, `start` is the first row of the table starts; both tables may be
        empty. Raises UserError if the file exists without `overwrite` or cannot be written, ValueError on invalid
        names, shapes or types.
        """
        path = Path(path)
        checks.check_names("attrs", attrs, set(schema.ATTRS) - set(schema.OWN_ATTRS))
        checks.check_names("clients", clients, schema.FIXED["clients"], optional=schema.optional("clients"))
        if wrong := [metric for metric in metrics if not schema.is_metric(metric)]:
            raise UserError(
                f"the task's metric {wrong[0]!r} cannot be the name of a log column: it must be printable, without /"
            )
        count = len(clients["train_samples"])
        attrs = {"status": "running", "world_size": world_size, "num_clients": count, **attrs, "metrics": list(metrics)}
        attrs["lower_is_better"] = [metric for metric in metrics if metric in lower_is_better]
        width = {"layer": len(layers), "mpi_rank": world_size, "component": schema.components(layers)}
        tables = {table: checks.empty(columns, width) for table, columns in schema.growing(metrics).items()}
        if not (spectra and width["component"]):
            del tables["uplink"]["spectrum"], tables["downlink"]["spectrum"]
        unwanted = (set() if paper else schema.PAPER) | (set() if encrypted else schema.ENCRYPTION)
        unwanted |= set() if differential else schema.DIFFERENTIAL
        for table, column in unwanted:
            tables.get(table, {}).pop(column, None)
        tables["layers"] = {
            "name": np.array([name for name, _, _ in layers], dtype=str),
            "shape": np.array(["x".join(map(str, shape)) or "scalar" for _, shape, _ in layers], dtype=str),
            "numel": np.array([math.prod(shape) for _, shape, _ in layers], dtype=np.int64),
            "compressible": np.array([compressible for _, _, compressible in layers], dtype=bool),
        }
        tables["clients"] = {
            name: checks.checked(
                f"clients/{name}", schema.FIXED["clients"][name], values, (count, *np.shape(values)[1:])
            )
            for name, values in clients.items()
        }
        tables["files"] = checks.fixed("files", sources)
        tables["starts"] = checks.fixed("starts", checks.row(start) if start else None)
        files.check_output(path, overwrite)
        return cls._start(path, attrs, tables)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        completed_rounds: int,
        *,
        world_size: int | None = None,
        attrs: Mapping[str, Any] | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> Writer:
        """Continue a log of any status after its first `completed_rounds` rounds; later rows and events are removed.

        `world_size` and `attrs` (hostnames, mpi_library, ...) replace those of the log; `start` is a further row of the
        table starts. With more processes than before the table mpi becomes wider, with 0 bytes and NaN seconds for
        processes that did not exist. The old file remains until the new one is complete. Raises UserError if the log
        cannot be read or written, or has fewer rounds.
        """
        with reader.open(path, completed_rounds) as log:
            new = {"status": "running", "world_size": log.attrs["world_size"] if world_size is None else world_size}
            rows = dict(log["starts"])
            if start:
                further = checks.fixed("starts", checks.row(start))
                rows = {name: np.concatenate([values, further[name]]) for name, values in rows.items()}
            return cls._start(Path(path), log.attrs | dict(attrs or {}) | new, {**log, "starts": rows})

    @classmethod
    def _start(cls, path: Path, attrs: Mapping[str, Any], tables: files.Tables) -> Writer:
        try:
            files.replace(path, attrs, tables)
            return cls(path)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write the log {path}: {files.reason(error)}") from error

    def append_round(
        self,
        rounds: Mapping[str, float],
        uplink: Mapping[str, np.ndarray],
        downlink: Mapping[str, Any],
        mpi: Mapping[str, np.ndarray],
        training: Mapping[str, np.ndarray],
    ) -> None:
        """Append one round; it survives kill -9 once this returns.

        `rounds` are numbers, `uplink` is [update] and [update, layer], `downlink` are numbers and [layer], `training`
        is [client], `mpi` is [process]; the column `round` is only in `rounds`. Raises RunFault if the file cannot be
        written (earlier rounds remain readable) or byte sums do not agree, ValueError on invalid names, shapes or
        types, or if the round is not the next one.
        """
        with self._lock:
            given = {"rounds": rounds, "uplink": uplink, "downlink": downlink, "training": training, "mpi": mpi}
            for table, values in given.items():
                if values.keys() != self._given[table]:
                    checks.check_names(table, values, self._given[table])
            number = int(rounds["round"])
            if number != (max(0, number) if self._next is None else self._next):
                raise ValueError(f"round {number} in {self.path}, but round {self._next or 0} is next")
            rows = {
                "uplink": self._of_clients("uplink", uplink, number),
                "downlink": self._checked("downlink", checks.row({**downlink, "round": number}), 1),
                "training": self._of_clients("training", training, number),
                "mpi": self._checked("mpi", checks.row(mpi), 1),
                "rounds": self._checked("rounds", checks.row(rounds), 1),
            }
            checks.check_sums(number, rows)
            self._write(f"round {number + 1}", number, "rounds", rows)
            self.rounds_completed += 1
            self._next = number + 1

    def event(self, round: int, client: int | None, level: str, message: str) -> None:
        """Log an event immediately; it survives kill -9 once this returns. A long message is cut between characters.

        `client` is None if the event concerns no client; `level` is info, warning or error. Raises RunFault if the file
        cannot be written, ValueError on another level.
        """
        if level not in schema.LEVELS or round < 0:
            raise ValueError(f"event of level {level!r} in round {round}: the levels are {', '.join(schema.LEVELS)}")
        size = np.dtype(schema.GROWING["events"]["message"].dtype).itemsize
        text = message.replace("\0", " ").encode("utf-8", "replace")[:size].decode("utf-8", "ignore").encode()
        row = {"round": round, "client": -1 if client is None else client, "level": level.encode(), "message": text}
        with self._lock:
            self._write("an event", round, "events", {"events": self._checked("events", checks.row(row), 1)})

    def finish(self, status: str) -> None:
        """Close the log as `interrupted` or `completed`; a reader sees the old or the new status, never a partial file.

        A log that is already finished is not changed. Raises RunFault if the file cannot be written; its rounds remain
        readable with status `running`.
        """
        if status not in schema.STATUSES[1:]:
            raise ValueError(f"a log is finished as {' or '.join(schema.STATUSES[1:])}, not {status!r}")
        with self._lock:
            if self._finished:
                return
            self.require_in_place(max(0, self.rounds_completed - 1))
            self.close()
            mark(self.path, status)
            self._finished = True

    def close(self) -> None:
        """Close the file without changing its status; all logged rows are already in it."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def in_place(self) -> bool:
        """Whether the file that this run writes still has its name."""
        return self._live.in_place()

    def require_in_place(self, number: int) -> None:
        """Raise RunFault if the log's path no longer names the file that this run writes."""
        if not self.in_place():
            self.close()
            gone = f"the log {self.path} was replaced, moved or removed while this run wrote it"
            self._fault = f"{gone}: the {self.rounds_completed} earlier rounds are in the old file"
            raise RunFault(self._fault, round=number)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.finish("interrupted")
        except RunFault:
            # The error that ended the block is more informative than the failure to mark the log.
            if error is None:
                raise

    def _of_clients(self, table: str, given: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        count = len(given["client"])
        return self._checked(table, {**given, "round": np.full(count, number)}, count)

    def _checked(self, table: str, given: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
        rows = {}
        for name, (column, dtype, width) in self._columns[table].items():
            values, of_process = given[name], column.axis == "mpi_rank"
            shape = (count, self._world_size) if of_process else (count, *width)
            if type(values) is not np.ndarray or values.dtype != dtype or values.shape != shape:
                values = checks.checked(f"{table}/{name}", column, values, shape)
            rows[name] = files.widen(values, *width) if of_process and shape[1:] != width else values
        return rows

    def _write(self, what: str, number: int, last: str, rows: files.Tables) -> None:
        if self._file is None:
            raise RunFault(self._fault, round=number)
        try:
            self.require_in_place(number)
            self._file.append(rows, last)
        except (OSError, RuntimeError) as error:
            self.close()
            kept = f"the {self.rounds_completed} earlier rounds are safe"
            self._fault = f"cannot write {what} to the log {self.path}: {files.reason(error)}; {kept}"
            raise RunFault(self._fault, round=number) from error


def mark(path: Path, status: str, owner: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Set the status of a log that no process writes any more, if its attributes include those of `owner`.

    Its last start ends now. Raises RunFault if the log belongs to another run or cannot be written.
    """
    try:
        with reader.open(path, sums=False) as log:
            if any(log.attrs[name] != value for name, value in owner.items()):
                raise RunFault(f"the log {path} now belongs to another run and is not changed")
            starts = dict(log["starts"])
            if len(starts["ended"]):
                now = datetime.now().astimezone().isoformat(timespec="seconds")
                starts["ended"] = np.array([*starts["ended"][:-1], now])
            files.replace(path, log.attrs | {"status": status}, {**log, "starts": starts})
    except (OSError, RuntimeError, UserError) as error:
        raise RunFault(f"cannot mark the log {path} as {status}: {files.reason(error)}") from error
