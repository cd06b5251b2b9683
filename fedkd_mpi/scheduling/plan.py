"""The cohort and the energy threshold of each round, by the rules of this package or by a user's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError, one_line, shown
from fedkd_mpi.scheduling import cohort


class Plan:
    """A pure function of configuration, sample counts and round, so that every process has the same plan.

    `samples` are the training samples of each client. Raises UserError naming the key if a user's function cannot be
    loaded or fails for the first or the last round.
    """

    def __init__(self, config: Config, samples: Sequence[int]):
        self._config, self._samples = config, np.array(samples, np.int64)
        self._samples.flags.writeable = False
        self._sampler = self._schedule = None
        if config.sampler != "uniform":
            self._sampler = _own(config.sampler, "sampler", "rng", "round_index", "samples", "size")
        if config.compression.schedule != "linear":
            key, names = "compression.schedule", ("round_index", "rounds", "t_start", "t_end")
            self._schedule = _own(config.compression.schedule, key, *names)
        for round_index in (0, config.rounds - 1):  # a rule that fails is refused before the first round
            self.cohort(round_index)
            self.threshold(round_index)

    def cohort(self, round_index: int) -> list[int]:
        """Return the ids of the clients of a round in ascending order.

        Raises UserError if a user's sampler does not return `size` different clients.
        """
        config, size = self._config, self._config.clients_per_round
        if self._sampler is None:
            return cohort.sample(config.seed, round_index, config.num_clients, size)
        rng = generator(config.seed, "cohort", round_index)
        chosen = _called("sampler", config.sampler, self._sampler, rng, round_index, self._samples, size)
        try:
            found = sorted(int(client) for client in chosen)
        except (TypeError, ValueError):
            found = []
        if len(set(found)) != size or len(found) != size or not 0 <= found[0] <= found[-1] < config.num_clients:
            raise UserError(
                f"sampler={config.sampler} returned {shown(chosen)} for round {round_index + 1}: it must return {size}"
                f" different clients from 0 to {config.num_clients - 1}"
            )
        return found

    def threshold(self, round_index: int) -> float:
        """Return the energy threshold T of a round; raises UserError if a user's schedule returns none in (0, 1]."""
        config = self._config
        if self._schedule is None:
            return config.threshold(round_index)
        key, name, ends = "compression.schedule", config.compression.schedule, config.compression
        value = _called(key, name, self._schedule, round_index, config.rounds, ends.t_start, ends.t_end)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 < value <= 1:
            raise UserError(
                f"{key}={name} returned {shown(value)} for round {round_index + 1}: it must return T in (0, 1]"
            )
        return float(value)


def _own(name: str, key: str, *parameters: str) -> Callable[..., Any]:
    found: Callable[..., Any] = resolve(name, {}, key, function_of(*parameters))
    return found


def _called(key: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise UserError(f"{key}={name}: {one_line(error)}") from error
