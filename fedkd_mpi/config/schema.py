"""The configuration of a run: frozen and typed, with checks across its sections."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config import differential_privacy, methods
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.config.privacy import PrivacyConfig
from fedkd_mpi.config.sections import (
    MANY,
    NAME,
    PART,
    YEARS,
    AveragingConfig,
    CheckpointConfig,
    DataConfig,
    DistillationConfig,
    EvaluateConfig,
    InitConfig,
    LocalConfig,
    LogConfig,
    MethodConfig,
    NetworkConfig,
    PartitionConfig,
    Section,
    TaskConfig,
    WatchdogConfig,
    seconds_of,
)
from fedkd_mpi.config.training import OptimizerConfig, ScheduleConfig, ServerConfig, StopConfig

# Keys that do not affect results; a resumed run may have other values.
CARE = ("checkpoint", "watchdog", "time_limit", "clients_in_memory", "balance")


class Config(Section):
    """Everything that determines the results of a run, apart from the build and the data files, and its safeguards."""

    name: str = Field(
        "run", max_length=NAME, pattern=r"^[A-Za-z0-9._-]+$", description="name of the run, and of its log"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all random streams")
    rounds: int = Field(ge=1, le=MANY, description="rounds of the run")
    num_clients: int = Field(ge=1, le=MANY, description="clients of the run")
    cohort_size: int | None = Field(None, ge=1, le=MANY, description="clients per round; null = all")
    sampler: str = Field(
        "uniform", pattern=PART, description="who takes part in a round: uniform, or package.module:function"
    )
    clients_in_memory: int | None = Field(
        None, ge=1, le=MANY, description="client states in memory per process, the others on disk; null = all"
    )
    method: MethodConfig = Field(
        MethodConfig(name="fedkd"),
        description="fedkd; fml: without equation 5 and D, with alpha and beta; lgfedavg: teachers that share layers;"
        " fedproto, feddistill: teachers that share means per class, with strength and weighting; local, centralized:"
        " teachers only; "
        + ", ".join(methods.AVERAGING)
        + ": no teacher; or package.module:Class, {name: package.module:Class, ...} with options",
    )
    exchange: Literal["delta", "gradient_sum"] = Field(
        "delta", description="the update a client sends: the student's change, or minus the sum of its gradients"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,4})?)$",
        description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one",
    )
    stack: int = Field(
        1, ge=1, le=MANY, description="clients trained at once in a process as one stacked network; for small networks"
    )
    compile: bool = Field(False, description="local training through torch.compile; on GPUs, CUDA graphs")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="bfloat16, float16 = autocast in local training; float16 with loss scaling"
    )
    threads_per_rank: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        1, description="at most the cores of a node; auto = cores per rank of the node, on which bits then depend"
    )
    portable_bits: bool = Field(
        False,
        description="code that every processor with AVX2 has, for the same bits on all of them; on CPUs only"
        " (docs/failures.md)",
    )
    balance: bool = Field(
        True, description="free processes of a node train any of its clients, not only their own; on CPUs only"
    )
    on_nonfinite: Literal["abort", "skip"] = Field(
        "abort", description="an update that is not finite ends the run, or is left out"
    )
    task: TaskConfig = Field(
        TaskConfig(name="image_classification"),
        description="what is learned (docs/images.md, docs/tasks.md); or package.module:Class,"
        " {name: package.module:Class, ...} with options",
    )
    data: DataConfig
    partition: PartitionConfig = PartitionConfig()
    teacher: NetworkConfig | None = Field(None, description="the same architecture for every client")
    teachers: list[NetworkConfig] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="instead of teacher: a list of architectures, assigned to the clients in turn",
    )
    student: NetworkConfig
    init: InitConfig = InitConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    local: LocalConfig
    server: ServerConfig = ServerConfig()
    distillation: DistillationConfig = DistillationConfig()
    compression: CompressionConfig = CompressionConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    stop: StopConfig = StopConfig()
    averaging: AveragingConfig = AveragingConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    time_limit: Annotated[float | None, BeforeValidator(seconds_of)] = Field(
        None, gt=0, le=YEARS, description="seconds or [D-]HH:MM:SS, within which the run stops with a checkpoint"
    )

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        if (self.teacher is None) == (self.teachers is None):
            raise ValueError(
                "give one of teacher (all clients have the same) and teachers (a list, in turn); set the other to null"
            )
        if self.averages and self.averaging.network == "teacher" and len(self.architectures) > 1:
            raise ValueError(
                f"method={self.method.name} with averaging.network=teacher averages teachers, which takes one"
                " architecture: give teacher instead of teachers, or set averaging.network=student"
            )
        if self.cohort_size is not None and self.cohort_size > self.num_clients:
            raise ValueError(f"cohort_size ({self.cohort_size}) must not exceed num_clients ({self.num_clients})")
        if self.sampler != "uniform" and (":" not in self.sampler or self.cohort_size is None):
            raise ValueError("sampler is uniform, or package.module:function with cohort_size")
        if self.server.aggregator != "mean" and (
            ":" not in self.server.aggregator
            or self.compression.error_feedback == "ef21"
            or self.compression.codec == "fetchsgd"
            or self.method.name == "scaffold"
        ):
            raise ValueError(
                "server.aggregator is mean, or package.module:function; error_feedback=ef21, codec=fetchsgd and"
                " method=scaffold are defined with the mean alone"
            )
        if self.compression.error_feedback == "ef21" and self.server.weighting != "uniform":
            raise ValueError("compression.error_feedback=ef21 needs server.weighting=uniform")
        if self.schedule.warmup_rounds >= self.rounds:
            raise ValueError(
                f"schedule.warmup_rounds ({self.schedule.warmup_rounds}) must be below rounds ({self.rounds})"
            )
        if self.stack > self.num_clients:
            raise ValueError(f"stack ({self.stack}) must not exceed num_clients ({self.num_clients})")
        together = {
            "local.accumulate": self.local.accumulate > 1,
            "precision=float16": self.precision == "float16",
            f"optimizer.name={self.optimizer.name}": ":" in self.optimizer.name,
        }
        if self.stack > 1 and any(together.values()):
            alone = next(key for key, chosen in together.items() if chosen)
            raise ValueError(f"{alone} trains clients one at a time: set stack=1")
        if self.precision == "float16" and (self.exchange == "gradient_sum" or self.method.name == "scaffold"):
            raise ValueError(
                "precision=float16 leaves steps out whose gradients overflow, which exchange=gradient_sum and"
                " method=scaffold would count: set precision=bfloat16 or float32"
            )
        if self.compile and self.stack > 1:
            raise ValueError("compile=true trains clients one at a time: set stack=1, or compile=false")
        native = {
            f"device={self.device}": self.device.startswith("cuda"),
            "compile=true": self.compile,
            "threads_per_rank=auto": self.threads_per_rank == "auto",
        }
        if self.portable_bits and any(native.values()):
            key = next(key for key, chosen in native.items() if chosen)
            raise ValueError(f"portable_bits=true: with {key} bits depend on the machine; change one of the two")
        if self.stop.metric and self.evaluate.global_teachers:
            raise ValueError(
                "evaluate.global_teachers scores after the last round, before which stop.metric may end the run: set"
                " one of them alone"
            )
        if self.method.name == "centralized" and self.num_clients != 1:
            raise ValueError("method=centralized trains one model on all data: set num_clients=1")
        if self.method.name == "scaffold" and (self.server.weighting != "uniform" or self.server.buffers != "average"):
            raise ValueError("method=scaffold needs server.weighting=uniform and server.buffers=average")
        if self.method.name == "scaffold" and (self.exchange != "delta" or self.server.optimizer != "sgd"):
            raise ValueError("method=scaffold needs exchange=delta and server.optimizer=sgd")
        if self.method.name == "scaffold" and self.server.momentum:
            raise ValueError("method=scaffold needs server.momentum=null")
        problem = self.privacy.problem(self.method.name) or _class_means_problem(self)
        if problem := problem or differential_privacy.problem(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _files_have_a_network(self) -> Config:
        exchanged = self.averaging.network if self.averages else "student"
        if self.init.student and not methods.has_student(self.method.name):
            raise ValueError(f"init.student: method={self.method.name} has no student; give init.teacher")
        if self.init.student and exchanged == "teacher":
            raise ValueError(f"init.student: method={self.method.name} exchanges the teacher here; give init.teacher")
        if self.init.teacher and self.averages and exchanged == "student":
            raise ValueError(f"init.teacher: method={self.method.name} has no teacher; give init.student")
        if self.init.teacher and self.teachers:
            raise ValueError("init.teacher is one network's: give teacher in place of teachers")
        return self

    @property
    def averages(self) -> bool:
        """Whether the method trains and exchanges one network, without a teacher."""
        return methods.averages(self.method.name)

    @property
    def clients_per_round(self) -> int:
        """The number of clients in a round."""
        return self.cohort_size or self.num_clients

    @property
    def architectures(self) -> list[NetworkConfig]:
        """The architectures of the teachers, one or more."""
        return self.teachers or ([self.teacher] if self.teacher else [])

    def architecture(self, client: int) -> int:
        """Return the index of the architecture of a client's teacher; clients have the architectures in turn."""
        return client % len(self.architectures)

    def by_client(self, values: Sequence[int]) -> list[int]:
        """Return one value per client from one value per architecture."""
        return [values[self.architecture(client)] for client in range(self.num_clients)]

    def network(self, role: str) -> NetworkConfig:
        """Return the section of a network that is the same for all clients: the student, or the only teacher."""
        return self.student if role == "student" else self.architectures[0]

    def threshold(self, round_index: int) -> float:
        """Return the energy threshold T of a round (0-based) by schedule linear.

        T is t_start in the first round and t_end in the last.
        """
        share = round_index / max(self.rounds - 1, 1)
        return self.compression.t_start + (self.compression.t_end - self.compression.t_start) * share

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML text that load() reads back."""
        return yaml_loader.dump(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Return the SHA-256 of the resolved configuration, as hexadecimal text."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()

    def identity(self) -> str:
        """Return the SHA-256 of what may not change while a run goes on: all but the number of rounds, and CARE."""
        return identity_of(self.model_dump(mode="json"))


def identity_of(tree: Mapping[str, Any]) -> str:
    """Return the identity of a resolved configuration as it was written, by a version with other keys perhaps."""
    kept = {key: value for key, value in tree.items() if key not in ("rounds", *CARE)}
    return hashlib.sha256(yaml_loader.dump(kept).encode()).hexdigest()


def _class_means_problem(config: Config) -> str | None:
    """Return in one line what a method that exchanges statistics of classes cannot do, None where there is nothing."""
    name = config.method.name
    if methods.has_codec(name) or not methods.exchanges(name):
        return None
    tasks, task = methods.METHODS[name].tasks or (), config.task.name
    if ":" not in task and task not in tasks:
        known = ", ".join(tasks)
        return f"method={name} exchanges a mean per class, but samples of task={task} have no class: it takes {known}"
    needed = {
        "server.weighting=uniform": config.server.weighting == "uniform",
        "server.buffers=average": config.server.buffers == "average",
        "server.aggregator=mean": config.server.aggregator == "mean",
        "server.optimizer=sgd": config.server.optimizer == "sgd",
        "server.learning_rate=1": config.server.learning_rate == 1,
        "server.momentum=null": not config.server.momentum,
        "exchange=delta": config.exchange == "delta",
        "compression.error_feedback=none": config.compression.error_feedback == "none",
        "compression.byte_budget=null": config.compression.byte_budget is None,
        "compression.run_budget=null": config.compression.run_budget is None,
        "compile=false": not config.compile,
        "stack=1": config.stack == 1,
    }
    lacking = [key for key, given in needed.items() if not given]
    return f"method={name} exchanges values, not changes of a network: it needs {lacking[0]}" if lacking else None
