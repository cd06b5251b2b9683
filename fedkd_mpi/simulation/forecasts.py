"""The dry runs of a sweep: time and memory of each of its runs, and of all together."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedkd_mpi.common.command_line import json_text
from fedkd_mpi.common.console import say, tell
from fedkd_mpi.common.units import bytes_text, seconds_text
from fedkd_mpi.errors import UserError


class Planned(NamedTuple):
    """A run of a sweep: its name, its rounds, how many seeds it has, and the command of its dry run with --json."""

    name: str
    rounds: int
    seeds: int
    command: Sequence[str]


def forecasts(runs: Sequence[Planned], *, as_json: bool) -> None:
    """Print the dry run of each run, one line each as soon as it is known, and the sum; or all as JSON.

    Raises UserError with the last line of a dry run that fails.
    """
    found: list[dict[str, Any]] = []
    for run in runs:
        facts = _facts(run)
        facts |= {"run": run.name, "rounds": run.rounds, "seeds": run.seeds}
        facts["seconds"] = run.rounds * run.seeds * facts["seconds_per_round"]
        found.append(facts)
        if not as_json:
            tell(_line(facts))
    whole = sum(facts["seconds"] for facts in found)
    if as_json:
        tell(json_text({"runs": found, "seconds": whole}))
    else:
        say(f"all runs, one after another: about {seconds_text(whole)} of training and encoding, without evaluation")


def _facts(run: Planned) -> dict[str, Any]:
    done = subprocess.run(run.command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(f"run {run.name}: {last}")
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        raise UserError(f"run {run.name}: its dry run printed no JSON") from None
    assert isinstance(facts, dict)
    return facts


def _line(facts: dict[str, Any]) -> str:
    """Return one run's line."""
    where = f"{facts['device']}, {facts['processes']} process{'es' * (facts['processes'] > 1)}"
    many = f" of {facts['seeds']} seeds" if facts["seeds"] > 1 else ""
    blank = "; made-up samples in place of missing files" if facts["stand_in"] else ""
    return (
        f"{facts['run']}: {seconds_text(facts['seconds_per_round'])} per round, {facts['rounds']} rounds{many}: about"
        f" {seconds_text(facts['seconds'])} ({where}); {bytes_text(facts['process_bytes'])} of memory{blank}"
    )
