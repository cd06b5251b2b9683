"""Runs from Python, for scripts and notebooks: fedkd_mpi.run(), with the names of the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd_mpi import costlog
from fedkd_mpi.communication.agreement import require_same
from fedkd_mpi.communication.launch import launched, mpi_library, open_world
from fedkd_mpi.communication.world import SingleProcessWorld, World
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config import pairs
from fedkd_mpi.config.schema import Config
from fedkd_mpi.costlog.files import real
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.simulation import launching, lifecycle, sameness, trained, trust
from fedkd_mpi.simulation.request import Completed, Start, check_names, loaded, resumed

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from fedkd_mpi.simulation.state import Simulation

ROLES = ("global_student", "student", "teacher", "global_teacher")
Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Result:
    """A run that has ended: its log and its configuration.

    `reason` says why it stopped early with a checkpoint, and is None if it is completed.
    """

    log: Path
    config: Config = field(repr=False)
    reason: str | None = None

    @property
    def status(self) -> str:
        """completed or interrupted."""
        return "interrupted" if self.reason else "completed"

    @property
    def scores(self) -> dict[str, float]:
        """The last known scores, by their columns of the log's table `rounds`, e.g. global_student_accuracy."""
        with costlog.open(self.log) as log:
            rounds = log["rounds"]
            columns = [f"{role}_{metric}" for role in ROLES for metric in log.attrs["metrics"]]
            known = {name: [x for x in rounds[name].tolist() if not math.isnan(x)] for name in columns}
        return {name: values[-1] for name, values in known.items() if values}

    def frames(self) -> dict[str, pandas.DataFrame]:
        """Return the tables of the log as pandas data frames, as fedkd_mpi.costlog.frames() does."""
        return costlog.frames(self.log)

    def load_student(self, round: int | str = "last") -> nn.Module:
        """Return the global student, as fedkd_mpi.load_student() does."""
        return trained.student(trained.find(self.log, round, trust_log=True))

    def load_teacher(self, client: int, round: int | str = "last") -> nn.Module:
        """Return the teacher of a client, as fedkd_mpi.load_teacher() does."""
        return trained.teacher(trained.find(self.log, round, trust_log=True), client)


def run(
    config: str | Path | Mapping[str, Any] | Config | None = None,
    overrides: Overrides = (),
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: str | Path | None = None,
    trust_log: bool = False,
    save_partition: str | Path | None = None,
    ranks: int | None = None,
    launch: str = "mpirun",
    check: Callable[[Simulation, Path], Iterable[str]] = lambda run, folder: (),
) -> Result:
    """Run or resume a simulation and return its result; the arguments are those of the command line.

    `config` is a shipped configuration's name, a file, a log to run again, a mapping, or a Config; the default is
    digits.yaml. `overrides` are KEY=VALUE texts or a mapping of dotted keys to values. The run takes place in this
    process, or together with the other processes if a launcher started this one; then all call run() alike. With
    `ranks` so many new processes are started by the command `launch`, followed by -n. The bits are the same. `check`
    is called before the first round, for messages about this machine.

    A signal or a STOP file ends the run early, with a checkpoint. Raises UserError for what the user can correct,
    RunFault for a fault during the run, and what user code raises.
    """
    paths = {"output": output, "resume": resume, "save_partition": save_partition}
    given = {name: None if path is None else Path(path) for name, path in paths.items()}
    check_names(given["output"], given["resume"])
    words = words_of(overrides)
    if given["resume"]:
        if config is not None or given["output"] or overwrite or save_partition:
            raise UserError("resume takes configuration and output from the log: give no config, output or overwrite")
        try:
            resolved = resumed(given["resume"], words, trusted=trust_log)
        except Completed:
            with costlog.open(given["resume"]) as log:
                return Result(real(given["resume"]), trust.configuration_in(given["resume"], log.attrs))
    else:
        resolved = resolve(config, words, trusted=trust_log)
    pairs.check(resolved)
    if ranks is not None:
        arguments = ["--overwrite" for _ in range(overwrite)]
        for name in ("output", "save_partition"):
            arguments += [] if given[name] is None else [f"--{name.replace('_', '-')}", str(given[name])]
        if given["resume"]:
            arguments = ["--resume", str(given["resume"]), "--trust-log", *words]
        written, reason = launching.run(resolved, arguments, ranks, launch, resumes=resume is not None)
        return Result(written, resolved, reason)
    start = Start.of(given["output"], overwrite, given["resume"], given["save_partition"])
    ending = _here(resolved, start, check)
    return Result(ending.log or Path(), resolved, ending.reason)


def resolve(
    config: str | Path | Mapping[str, Any] | Config | None, words: Sequence[str] = (), *, trusted: bool = False
) -> Config:
    """Return the configuration that run() means by its first argument, with KEY=VALUE overrides; raises UserError."""
    if config is None or isinstance(config, str | Path):
        return loaded(None if config is None else Path(config), words, trusted=trusted)
    if isinstance(config, Config):
        return configuration.of(config.model_dump(mode="json"), words)
    if isinstance(config, Mapping):
        return configuration.of(_plain(dict(config), "config"), words)
    raise UserError(f"config={shown(config)} is not a name, a file, a mapping or a Config")


def words_of(overrides: Overrides) -> list[str]:
    """Return overrides as the texts KEY=VALUE of the command line; raises UserError."""
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(_plain(value, f'overrides: {key}'))}" for key, value in overrides.items()]
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise UserError(f"overrides={shown(overrides)}: give a list of KEY=VALUE texts, or a mapping of keys to values")
    return list(overrides)


def _plain(value: Any, where: str) -> Any:
    """Return a copy of a value as YAML has it: mappings, lists, texts, numbers and None; raises UserError."""

    def simple(part: Any) -> Any:
        if isinstance(part, Path):
            return str(part)
        if hasattr(part, "tolist"):  # numbers and arrays of NumPy
            return part.tolist()
        if isinstance(part, Config):
            return part.model_dump(mode="json")
        raise TypeError(f"{shown(part)} is no value of a configuration")

    try:
        return json.loads(json.dumps(deepcopy(value), default=simple))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _here(config: Config, start: Start, check: Callable[[Simulation, Path], Iterable[str]]) -> lifecycle.Ending:
    """Run in this process and those that the launcher started with it; collective among these."""
    import torch

    from fedkd_mpi.fault_tolerance.stopping import slurm_end

    world = open_world(again=True) if launched()[1] > 1 else SingleProcessWorld(_library())
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if world.world_size > 1:
            _require_same_call(world, config, start)
        end = slurm_end() if world.is_root else None
        ending = lifecycle.run(config, start, world, end, lifecycle.Callers(check, lambda error: None, goes_on=True))
    except UserError:
        raise  # the same on all processes
    except BaseException as error:
        _give_up(world, error)
        raise
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    if ending.error:
        raise ending.error
    return ending


def _require_same_call(world: World, config: Config, start: Start) -> None:
    options = {"output": start.log, "overwrite": start.overwrite, "save_partition": start.save_partition}
    try:
        texts = sameness.start(config, options, start.mode)
        require_same(world, texts, "call run() with the same arguments in every process")
    except UserError:
        world.close()
        raise


def _give_up(world: World, error: BaseException) -> None:
    """Leave the log as interrupted after a fault; with other processes, which wait for this one, end the job."""
    if world.world_size > 1:
        world.fault(lifecycle.describe(world, error))
    world.on_fault("")
    world.close()


def _library() -> str:
    try:
        return mpi_library()
    except UserError:
        return "none"
