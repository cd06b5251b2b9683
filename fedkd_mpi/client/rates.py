"""The factor on the learning rates of teacher and student in every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fedkd_mpi.common.registry import function_of, resolve
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError, one_line, shown


class Rates:
    """A pure function of round, step and the number of steps, so that it is the same on every process.

    Raises UserError naming schedule.name if a user's function cannot be loaded, or fails for the first or last round.
    """

    def __init__(self, config: Config):
        self._schedule, self._rounds = config.schedule, config.rounds
        self._own: Callable[..., Any] | None = None
        if ":" in self._schedule.name:
            kind = function_of("round_index", "rounds", "step", "steps")
            self._own = resolve(self._schedule.name, {}, "schedule.name", kind)
            for round_index in (0, config.rounds - 1):
                self.factor(round_index, 0, 1)

    def factor(self, round_index: int, step: int, steps: int) -> float:
        """Return the factor in a step of a round, both counted from 0, of `steps` steps of the client in the round."""
        if self._schedule.every == "round":
            step, steps = 0, 1
        if self._own is None:
            return self._schedule.factor(round_index, self._rounds, step, steps)
        key = f"schedule.name={self._schedule.name}"
        try:
            value = self._own(round_index, self._rounds, step, steps)
        except Exception as error:
            raise UserError(f"{key}: {one_line(error)}") from error
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            where = f"step {step + 1} of round {round_index + 1}"
            raise UserError(f"{key} returned {shown(value)} for {where}: it must return a number of at least 0")
        return float(value)
