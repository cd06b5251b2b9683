"""What a run is asked to do: its configuration, and the log with which it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError, shown

HDF5 = b"\x89HDF\r\n\x1a\n"
LONGEST = 255 - len(".checkpoints")  # bytes of a log's name: the limit of the system minus the longest suffix


class Completed(Exception):
    """The log to resume has all its rounds; the text says so."""


@dataclass(frozen=True)
class Start:
    """How a run starts: with a new log or, with `resume`, from the log that there is.

    `log` is its real path, None for a name that no other run uses, which rank 0 chooses. `commits` are those of the
    code, on rank 0.
    """

    log: Path | None = None
    overwrite: bool = False
    resume: bool = False
    save_partition: Path | None = None
    commits: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Path | None, overwrite: bool, resume: Path | None, save_partition: Path | None = None) -> Start:
        """Return the start for the arguments of the command line; raises UserError if the log cannot be reached.

        It starts processes (git), which is safer before MPI is initialised.
        """
        from fedkd_mpi.communication.launch import launched
        from fedkd_mpi.costlog.files import real
        from fedkd_mpi.simulation import provenance

        given = resume or output
        log = None if given is None else real(given)
        commits = provenance.commits() if launched()[0] == 0 else {}
        return cls(log, overwrite, resume is not None, save_partition, commits)

    @property
    def mode(self) -> str:
        """A text that is the same on all ranks if they start the same kind of run."""
        return "--resume" if self.resume else "a new run"


def default_output(config: Config) -> Path:
    """Return runs/<name>-<date>.h5 with the current time."""
    return Path("runs") / f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}.h5"


def check_names(output: Path | None, resume: Path | None) -> None:
    """Raise UserError if an argument is not a valid name for a log and the files beside it."""
    for name, path in (("output", output), ("resume", resume)):
        if path is None:
            continue
        if not str(path).isprintable():
            raise UserError(f"--{name} {shown(path)}: the name contains unprintable characters: choose another")
        if len(os.fsencode(path.name)) > LONGEST or len(os.fsencode(path)) > 4000:
            raise UserError(f"--{name} {shown(path)}: the name is too long: choose one of at most {LONGEST} bytes")


def loaded(path: Path | None, overrides: Sequence[str], *, trusted: bool = False) -> Config:
    """Return the configuration of a file, or of a log whose run is to be run again, with overrides of any key.

    Raises UserError; also where a log names code that is not trusted, or where what is trusted is no log.
    """
    if path is None or not _is_hdf5(path):
        if trusted:
            raise UserError(f"--trust-log: {shown(path)} is no log")
        return configuration.load(path, overrides)
    from fedkd_mpi import costlog
    from fedkd_mpi.simulation import trust

    with costlog.open(path) as log:
        config = trust.configuration_in(path, log.attrs)
    fresh = trust.accept(path, config, overrides, trusted, "--config")
    return configuration.of(config.model_dump(mode="json"), fresh)


def _is_hdf5(path: Path) -> bool:
    """Whether a file begins as a log does; h5py, which the answer needs not, takes long to load."""
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5)) == HDF5
    except OSError:
        return False


def resumed(path: Path, overrides: Sequence[str], *, trusted: bool = False) -> Config:
    """Return the configuration of a log to resume; raises UserError, and Completed if it has all its rounds."""
    from fedkd_mpi import costlog
    from fedkd_mpi.simulation import extension, trust

    with costlog.open(path) as log:
        attrs, ended = log.attrs, log.rounds_completed if log.attrs["status"] == "completed" else None
    trust.require_one_name(path)
    config = trust.configuration_in(path, attrs)
    longer, others = extension.split(path, config, overrides, ended)
    if attrs["status"] == "completed" and longer.rounds == config.rounds:
        raise Completed(f"{path} is completed: there is nothing to resume; rounds=N adds rounds")
    return configuration.with_care(longer, trust.accept(path, config, others, trusted))
