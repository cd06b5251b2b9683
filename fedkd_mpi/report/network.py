"""--network: replay of logged bytes over other links, to estimate the time of a run on the internet or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.report.links import Profile
from fedkd_mpi.report.runs import Run, Target
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report


@dataclass(frozen=True)
class Replay:
    """Seconds of every round and their parts; `to_target` is None if the target was never reached."""

    rounds: np.ndarray  # float64 [rounds]
    training: float  # training seconds of each round's slowest client, summed over rounds
    transfer: float  # transfer seconds of each round's slowest client, summed over rounds
    left_out: float  # share of client updates that failed or arrived after the timeout
    spread_evenly: bool  # whether the log does not tell whose the bytes of catch-up are
    to_target: float | None

    def row(self) -> dict[str, float]:
        """Return the exact numbers for CSV and JSON."""
        reached = float("nan") if self.to_target is None else self.to_target
        return {"seconds_total": float(self.rounds.sum()), "seconds_to_target": reached, "left_out": self.left_out}


def replay(run: Run, links: Profile, target: Target) -> Replay:
    """Return the time of the rounds of a run over other links.

    A round lasts until its last client has received, trained and sent, at least until the server has moved all bytes,
    plus the logged seconds of aggregation. The time of a client is
        latency + down bytes / down rate + slowdown * (train + encode) + latency + up bytes / up rate
    where the down bytes include what the client fetches because it missed rounds before. Scores are those of the log:
    failed clients affect the time but not the accuracy.
    """
    training, uplink, rounds = run.log["training"], run.log["uplink"], run.rounds
    of_round, client = training["round"], training["client"]
    work = np.nan_to_num(training["seconds_train"] + training["seconds_encode"])
    sent = _sent(uplink["round"], uplink["client"], uplink["bytes"], of_round, client)
    cohort = np.maximum(rounds["cohort_size"], 1)
    known = fetched(run)
    evenly = np.repeat(rounds["catchup_bytes"] / cohort, np.bincount(of_round, minlength=len(cohort))[: len(cohort)])
    received = (rounds["downlink_bytes"] / cohort)[of_round] + (evenly if known is None else known)
    first = np.searchsorted(of_round, rounds["round"])
    last = np.searchsorted(of_round, rounds["round"], side="right")
    own = _devices(links, run.clients, -1)
    seconds, parts, missing, asked = np.zeros(len(cohort)), np.zeros(2), 0, 0
    for index, number in enumerate(rounds["round"]):
        rows = np.arange(first[index], last[index])
        up, down, slow = own[:, client[rows]]
        if links.cohort and len(rows):
            rows = generator(links.seed, "replay cohort", int(number)).choice(rows, links.cohort)
            up, down, slow = _devices(links, links.cohort, int(number))
        if len(rows) == 0:
            continue
        trained = slow * work[rows]
        moved = 2e-3 * links.latency_ms * (sent[rows].sum() > 0) + received[rows] / down + sent[rows] / up
        path = trained + moved
        if links.dropout:
            failed = generator(links.seed, "replay dropout", int(number)).random(len(rows)) < links.dropout
            path = np.where(failed, np.inf, path)
        late = path > (links.timeout_seconds or np.finfo(float).max)
        missing, asked = missing + int(late.sum()), asked + len(rows)
        slowest = int(np.where(late, -1.0, path).argmax())
        seconds[index] = path[slowest] if not late[slowest] else 0.0
        if late.any() and links.timeout_seconds:
            seconds[index] = links.timeout_seconds
        if links.server_mbit:
            moves = received[rows].sum() + sent[rows].sum()
            seconds[index] = max(seconds[index], moves / (links.server_mbit * 125e3))
        parts += trained[slowest], moved[slowest]
        seconds[index] += rounds["seconds_aggregate"][index]
    at = run.reached(target)
    reached = None if at is None else float(seconds[: at + 1].sum())
    return Replay(seconds, float(parts[0]), float(parts[1]), missing / asked if asked else 0.0, known is None, reached)


def fetched(run: Run) -> np.ndarray | None:
    """Return the bytes that the client of every local training fetches because it missed rounds: float64 [trainings].

    They are the broadcasts that it missed, at most the dense state, of which the log keeps the sum over the cohort
    alone: the limit is the one at which the sum is that of the log. None if there is none, or if the log lacks the
    local training of a member of the cohort.
    """
    training, rounds, downlink = run.log["training"], run.rounds, run.log["downlink"]
    of_round, clients, logged = training["round"], training["client"], rounds["catchup_bytes"]
    found = np.zeros(len(of_round))
    if not logged.any():
        return found
    if not np.array_equal(np.bincount(of_round, minlength=len(logged)), rounds["cohort_size"]):
        return None
    message = np.bincount(downlink["round"], downlink["bytes"], minlength=len(logged))
    before = np.concatenate([[0.0], message.cumsum()])  # bytes of all broadcasts before each round
    next_due = np.zeros(run.clients, np.int64)  # by client, the first broadcast that it has not received
    starts = np.searchsorted(of_round, np.arange(len(logged) + 1))
    for number, due in enumerate(logged):
        rows = slice(starts[number], starts[number + 1])
        members = clients[rows]
        missed = before[number] - before[next_due[members]]
        next_due[members] = number + 1
        if due > missed.sum():
            return None
        found[rows] = np.minimum(missed, _limit(missed, float(due)))
    return found


def _limit(parts: np.ndarray, total: float) -> float:
    """Return the limit at which the parts, cut at it, have the given sum, which is not above their own sum."""
    left = total
    for rank, part in enumerate(np.sort(parts)):
        share = left / (len(parts) - rank)
        if part > share:
            return share
        left -= part
    return np.inf


def sheet(report: Report, links: Profile, replays: Mapping[Path, Replay], form: str) -> Sheet:
    """Return the table of a profile's replays."""
    target, results = report.target, [[replays[run.path] for run in group] for group in report.groups]

    def by_group(of: Callable[[Replay], float]) -> list[list[float]]:
        return [[of(result) for result in group] for group in results]

    columns = [
        ("all rounds", "seconds", by_group(lambda found: float(found.rounds.sum()))),
        (
            "median\nround",
            "seconds",
            by_group(lambda found: float(np.median(found.rounds)) if len(found.rounds) else np.nan),
        ),
        (
            "transfer in the\nslowest client's time",
            "share",
            by_group(lambda found: found.transfer / (found.training + found.transfer or 1)),
        ),
        ("updates\nleft out", "share", by_group(lambda found: found.left_out)),
    ]
    if target.value is not None:
        times = by_group(lambda found: np.nan if found.to_target is None else found.to_target)
        columns.insert(0, (f"time to {target.score.replace('_', ' ')}\n{target.value:g}", "seconds", times))
    note = links.text()
    if any(found.spread_evenly for group in results for found in group):
        note += " Catch-up is spread evenly over each cohort, because a log does not tell who fetched it."
    return report.measured(f"Replay over {links.name}", columns, form, note)


def _devices(links: Profile, count: int, number: int) -> np.ndarray:
    """Return uplink and downlink rates in bytes per second and the slow-down of `count` clients: float64 [3, count]."""
    random = generator(links.seed, "replay devices", number + 1)
    quality, pace = random.standard_normal((2, count))
    rate = np.exp(links.spread * quality) * 125e3  # bytes per second of 1 Mbit/s
    return np.stack(
        [links.up_mbit * rate, links.down_mbit * rate, links.slowdown * np.exp(links.slowdown_spread * pace)]
    )


def _sent(
    round_of: np.ndarray, client_of: np.ndarray, size: np.ndarray, rounds: np.ndarray, clients: np.ndarray
) -> np.ndarray:
    """Return the uplink bytes of every local training, 0 if it sent nothing."""
    if not len(size) or not len(rounds):
        return np.zeros(len(rounds))
    many = max(client_of.max(), clients.max()) + 1
    keys, wanted = round_of * many + client_of, rounds * many + clients
    order = np.argsort(keys)
    at = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    found = order[at]
    return np.where(keys[found] == wanted, size[found], 0).astype(float)
