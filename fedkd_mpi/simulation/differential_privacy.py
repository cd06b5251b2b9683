"""Differential privacy of a run: its mechanism, its epsilon after every round, and what is refused with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from torch import Tensor

from fedkd_mpi.codecs import Codec
from fedkd_mpi.config.privacy import PrivacyConfig
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import Method
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.privacy.accountant import Accountant, Sampling, most_frequent, solve
from fedkd_mpi.privacy.mechanism import Mechanism
from fedkd_mpi.scheduling.plan import Plan
from fedkd_mpi.simulation.private_sum import PrivateSum

STATELESS = ("fedavg", "fedprox")  # methods whose clients keep nothing of their own between rounds


@dataclass(frozen=True)
class Protection:
    """A pure function of configuration and round, the same on every process; nothing of it is in a checkpoint."""

    settings: PrivacyConfig
    mechanism: Mechanism
    accountant: Accountant
    numbers: int  # of the exchanged network
    cohort: int

    @cached_property
    def rounds(self) -> int:
        """The rounds that privacy.max_epsilon admits, at most those of the run."""
        most = self.settings.max_epsilon
        return len(self.accountant.counts) if most is None else self.accountant.rounds_within(most)

    @cached_property
    def epsilon(self) -> float:
        """Epsilon of all the rounds that will be run."""
        return self.accountant.epsilon(self.rounds)

    @property
    def noise_to_signal(self) -> float:
        """The norm of the noise in the mean update as a multiple of C, which no mean update exceeds."""
        return self.mechanism.noise_to_signal(self.numbers, self.cohort)

    def on_update(self, student: FlatModel, update: Tensor, round_index: int, client: int) -> float:
        """Clip a client's update (flat) in place, add noise if clients do, and return its norm before."""
        trained = update[: student.trainable.numel()]
        return self.mechanism.on_update(trained, student.exchanged_parts(update)[0], round_index, client)

    def new_sum(self, student: FlatModel, codec: Codec, device: str) -> Callable[[], PrivateSum] | None:
        """Return what makes the server's sum of a round, None where clients add the noise."""
        if self.mechanism.at_clients:
            return None
        return partial(PrivateSum, codec, device, self.mechanism, student.parameter_layers, self.cohort)

    def columns(self, round_index: int, norms: np.ndarray) -> dict[str, float]:
        """Return epsilon up to this round, and the share of updates with these norms that were clipped, for the log."""
        clipped = float((norms > self.mechanism.clip_norm).mean()) if norms.size else np.nan
        return {"epsilon": self.accountant.epsilon(round_index + 1), "clipped_share": clipped}

    def enough(self, done: int) -> str | None:
        """Return why the run ends after so many rounds, None if it does not."""
        if done < self.rounds or done == len(self.accountant.counts):
            return None
        now, then = self.accountant.epsilon(done), self.accountant.epsilon(done + 1)
        return (
            f"ended after {done} of {len(self.accountant.counts)} rounds: epsilon is {now:.4g}, with the next round it"
            f" would be {then:.4g} (privacy.max_epsilon={self.settings.max_epsilon:g})"
        )

    def __str__(self) -> str:
        who = "each client" if self.mechanism.at_clients else "the server"
        noise = f"{self.mechanism.noise_multiplier:g} x {self.mechanism.clip_norm:g}"
        return (
            f"differential privacy: epsilon {self.epsilon:.4g} at delta {self.settings.delta:g} after {self.rounds}"
            f" rounds; {who} adds noise of {noise} per number, in the mean {self.noise_to_signal:.3g} times the largest"
            " update"
        )


def protection_of(config: Config, method: Method, plan: Plan, student: FlatModel, codec: Codec) -> Protection | None:
    """Return the protection of a run, None without differential privacy; raises UserError if it would not hold."""
    settings, n = config.privacy, config.num_clients
    if settings.clip_norm is None or settings.delta is None:
        return None
    if problem := _problem(config, method, student, codec):
        raise UserError(f"privacy.clip_norm: {problem}")
    cohort = config.clients_per_round
    sampling = Sampling(cohort, n) if settings.secret_cohorts else None
    cohorts = (plan.cohort(index) for index in range(config.rounds))
    counts = range(1, config.rounds + 1) if cohort == n else most_frequent(cohorts)
    noise = settings.noise_multiplier
    if settings.target_epsilon is not None:
        noise = solve(settings.target_epsilon, counts, settings.delta, sampling)
    mechanism = Mechanism(settings.clip_norm, noise or math.nan, settings.where == "client", config.seed)
    accountant = Accountant(counts, mechanism.noise_multiplier, settings.delta, sampling)
    numbers = sum(layer.numel for layer in student.parameter_layers)
    found = Protection(settings, mechanism, accountant, numbers, cohort)
    if not found.rounds:
        raise UserError(
            f"privacy.max_epsilon={settings.max_epsilon:g} admits no round: the first one has epsilon"
            f" {accountant.epsilon(1):.4g}; raise it, or the noise"
        )
    return found


def require_public_stop(config: Config, column: str) -> None:
    """Raise UserError if stop.metric would end a run by what clients' own samples say, which no noise covers."""
    public = config.data.pooled != 0 and column.startswith("global_student_")
    if config.privacy.differential and config.stop.metric and not public:
        raise UserError(
            f"stop.metric={config.stop.metric} ends the run by the clients' own samples, which epsilon does not cover:"
            " watch the global student on a test set apart (data.pooled), or remove stop.metric"
        )


def _problem(config: Config, method: Method, student: FlatModel, codec: Codec) -> str | None:
    if student.exchanged_buffers:
        return (
            f"buffer {student.exchanged_buffers[0].name} of the exchanged network travels as it is, neither clipped nor"
            f" noised: set {method.role}.norm=group, or server.buffers=local"
        )
    if codec.follows_loss:
        return f"compression.codec={config.compression.codec} follows losses of clients, which have no noise: set none"
    if config.privacy.where == "server" and type(codec).receive is not Codec.receive:
        return (
            f"compression.codec={config.compression.codec} has a receive() of its own, so that its messages cannot be"
            " clipped: set privacy.where=client"
        )
    if config.privacy.secret_cohorts and (memory := _memory(config, student, codec)):
        return (
            f"privacy.secret_cohorts=true is for clients that remember nothing, but {memory}: set it to false; epsilon"
            " then counts each client's rounds"
        )
    return None


def _memory(config: Config, student: FlatModel, codec: Codec) -> str | None:
    """Return what clients keep between rounds, by which later updates tell of earlier rounds; None for nothing."""
    kept = codec.sender_memory()
    optimizer = config.optimizer
    if config.method.name not in STATELESS:
        return f"with method={config.method.name} they keep networks of their own"
    if not optimizer.renew and (optimizer.name != "sgd" or optimizer.momentum):
        return "they keep their optimisers (set optimizer.renew=true)"
    if kept.tensors or not kept.complete:
        what = config.compression
        return f"compression.codec={what.codec} with error_feedback={what.error_feedback} keeps tensors of theirs"
    if student.local_buffers is not None or student.others.numel():
        return "they keep buffers of the network"
    return None
