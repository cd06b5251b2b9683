"""Runs that go on beyond the rounds that they were planned for, where what they have done would have been the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd_mpi.config import load as configuration
from fedkd_mpi.config.methods import has_codec
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError, shown
from fedkd_mpi.simulation import trust

BY_ENERGY = ("svd", "rdsvd")  # the codecs that follow the threshold T


def split(
    path: Path, config: Config, overrides: Sequence[str], completed: int | None = None
) -> tuple[Config, list[str]]:
    """Return the configuration of a log with the rounds that overrides ask for, and the other overrides.

    `completed` is the number of rounds of a run that has ended.
    Raises UserError where there are fewer rounds than before, or where the rounds that were played depend on how many
    there are to be.
    """
    asked = [text for text in overrides if text.partition("=")[0] == "rounds"]
    others = [text for text in overrides if text.partition("=")[0] != "rounds"]
    if not asked:
        return config, others
    tree = config.model_dump(mode="json")
    for text in asked:
        configuration.apply(tree, text)
    rounds = configuration.parse(tree).rounds
    if rounds < config.rounds:
        raise UserError(f"--resume {shown(path)} rounds={rounds}: the run has {config.rounds} rounds, and only grows")
    if rounds > config.rounds and completed is not None and completed < config.rounds:
        raise UserError(
            f"--resume {shown(path)} rounds={rounds}: {_ended_by(config)} ended the run after {completed}"
            f" of {config.rounds} rounds, and would end it again: begin one anew (--config, rounds={rounds})"
        )
    if rounds > config.rounds and (reason := why_not(config)):
        raise UserError(
            f"--resume {shown(path)} rounds={rounds}: {reason}, so the {config.rounds} rounds of this log are not the"
            f" first ones of a run of {rounds}: begin that one anew (--config, rounds={rounds})"
        )
    return config.model_copy(update={"rounds": rounds}), others


def _ended_by(config: Config) -> str:
    """Return the keys that may end a run before its last round, with their values."""
    keys = {"stop.metric": config.stop.metric, "privacy.max_epsilon": config.privacy.max_epsilon}
    return " or ".join(f"{key}={value}" for key, value in keys.items() if value is not None)


def why_not(config: Config) -> str | None:
    """Return what ties the rounds of a run to their number, None where nothing does."""
    if config.privacy.target_epsilon is not None:
        return f"privacy.target_epsilon={config.privacy.target_epsilon:g} sets the noise for all rounds together"
    if config.schedule.name == "cosine":
        return "schedule.name=cosine spreads the fall of the learning rates over all rounds"
    if ":" in config.schedule.name:
        return f"schedule.name={config.schedule.name} is given the number of rounds"
    if not has_codec(config.method.name):
        return None
    settings = config.compression
    if settings.schedule != "linear":
        return f"compression.schedule={settings.schedule} is given the number of rounds"
    if settings.run_budget is not None:
        return "compression.run_budget is spread over all rounds"
    follows = settings.codec in BY_ENERGY or ":" in settings.codec
    if follows and settings.byte_budget is None and settings.t_start != settings.t_end:
        return (
            f"T rises over the rounds of a run, from compression.t_start={settings.t_start} to t_end={settings.t_end}"
        )
    return None


def attributes(output: Path, attrs: Mapping[str, Any], rounds: int) -> dict[str, str]:
    """Return the attributes of a log that is to have so many rounds in all, where it was planned for fewer."""
    planned = trust.configuration_in(output, attrs)
    if planned.rounds == rounds:
        return {}
    config = planned.model_copy(update={"rounds": rounds})
    return {"config": config.to_yaml(), "config_digest": config.digest()}
