"""--privacy: what secure aggregation and homomorphic encryption would add to the bytes of a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedkd_mpi.privacy.protocols import PROTOCOLS, Legs, Parameters, described
from fedkd_mpi.report.columns import spreads
from fedkd_mpi.report.names import ABSENT
from fedkd_mpi.report.runs import Run
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report

# Codecs whose messages add up number by number, as all clients send them in one order.
DENSE = ("none", "float16", "fetchsgd")
_FACTORS = "each client sends factors of a subspace of its own"
_OWN_STEPS = "each client rounds to steps of its own"
# Why the messages of the others do not.
REASONS = {
    "svd": _FACTORS,
    "rdsvd": _FACTORS,
    "powersgd": _FACTORS,
    "topk": "each client sends entries at places of its own",
    "submatrix": "each client leaves out rows and columns of its own",
    "quantize": f"{_OWN_STEPS}: the largest magnitude of each tensor",
    "eden": f"{_OWN_STEPS}, after a rotation of its own",
    "dadaquant": f"{_OWN_STEPS}: the scale of each tensor",
    "sign": f"{_OWN_STEPS}: the mean magnitude of each tensor",
    "ternary": f"{_OWN_STEPS}: the scale of each tensor",
    "sz3": "each client sends a compressed stream of its own",
}


@dataclass(frozen=True)
class Cost:
    """The bytes of a whole run, all clients and rounds, under a protocol: up and down.

    `refused` says why the codec's messages cannot be added; then the bytes are those of a dense exchange instead.
    """

    protocol: str
    up: int
    down: int
    refused: str = ""


def refusal(run: Run, protocol: str) -> str:
    """Return why the sum of a run's messages cannot be made without the messages, "" if it can."""
    codec, aggregator = run.setting("compression", "codec"), run.setting("server", "aggregator")
    if aggregator not in ("", "mean"):
        return f"server.aggregator={aggregator} needs each client's update"
    if run.setting("privacy", "clip_norm") and run.setting("privacy", "where") == "server":
        return "the server clips each client's update (privacy.where=server)"
    if not run.compresses:
        return "each client leaves out the classes that it does not have"
    if codec == "fetchsgd" and protocol == "ckks":
        return "the server chooses the largest entries of the sum, which it cannot see"
    if codec in DENSE:
        return ""
    return REASONS.get(codec, "whether messages of an own codec add up is not known")


def costs(run: Run, given: Parameters) -> list[Cost]:
    """Return the bytes of a run under each protocol; [] if it exchanges nothing."""
    if not run.exchanges:
        return []
    cohort = run.rounds["cohort_size"].tolist()
    dense = int(run.log["layers"]["numel"].sum())
    numbers = dense
    if run.codec == "fetchsgd" and len(run.log["uplink"]["round"]):  # a sketch, and buffers
        numbers = int(run.log["uplink"]["layer_bytes"].sum(axis=1).max()) // 4
    headers = Legs(*(_around(run, leg) for leg in ("uplink", "downlink")))
    sent_down = int(run.rounds["downlink_bytes"].sum())
    found = []
    for protocol, (_, formula) in PROTOCOLS.items():
        reason = refusal(run, protocol)
        legs = [formula(dense if reason else numbers, clients, given) for clients in cohort]
        up, down = (sum(each[leg] * clients for each, clients in zip(legs, cohort, strict=True)) for leg in (0, 1))
        # Masks cancel in the sum, so the server encodes and sends it as before. A sum under CKKS it cannot even read.
        down += headers.down if protocol == "ckks" else sent_down
        found.append(Cost(protocol, headers.up + up, down, reason))
    return found


def _around(run: Run, leg: str) -> int:
    """Return the bytes of headers, and of encryption, which stay: a protocol's messages take the same channel."""
    return sum(int(run.rounds.get(f"{leg}_{part}", np.zeros(1)).sum()) for part in ("header_bytes", "encryption_bytes"))


def row(run: Run, given: Parameters) -> dict[str, Any]:
    """Return the exact numbers of one log for CSV and JSON, all clients and rounds."""
    made: dict[str, Any] = {}
    for cost in costs(run, given):
        kind = f"{cost.protocol}_dense" if cost.refused else cost.protocol
        made |= {f"{kind}_uplink_bytes": cost.up, f"{kind}_downlink_bytes": cost.down}
        made[f"{cost.protocol}_refused"] = cost.refused
    return made


def sheet(report: Report, given: Parameters, form: str) -> Sheet:
    """Return the table of bytes per client and round under each protocol, beside those of the log."""
    labels: list[list[str]] = []
    values: list[list[float]] = []
    for known, group in zip(report.names, report.groups, strict=True):
        run = group[0]
        trainings = max(int(run.rounds["cohort_size"].sum()), 1)
        sent = [int(run.rounds[f"{leg}_bytes"].sum()) for leg in ("uplink", "downlink")]
        if not (made := costs(run, given)):
            labels.append([known.id, "-", "nothing is exchanged"])
            values.append([np.nan] * 6)
            continue
        labels.append([known.id, "as logged", run.codec])
        values.append(
            [sent[0] / trainings, sent[1] / trainings, np.nan, np.nan, sum(sent), 1.0 if sum(sent) else np.nan]
        )
        for cost in made:
            name = PROTOCOLS[cost.protocol][0]
            if cost.refused:
                labels.append([known.id, name, f"{run.codec}: refused, {cost.refused}"])
                values.append([np.nan] * 6)
            labels.append([known.id, name, "dense instead" if cost.refused else run.codec])
            total = cost.up + cost.down
            of_client = [cost.up / trainings, cost.down / trainings]
            added = [(cost.up - sent[0]) / trainings, (cost.down - sent[1]) / trainings]
            values.append([*of_client, *added, total, total / sum(sent) if sum(sent) else np.nan])
    heads = [
        ("up per client\nand round", "bytes"),
        ("down per client\nand round", "bytes"),
        ("added up", "bytes"),
        ("added down", "bytes"),
        ("all clients\nand rounds", "bytes"),
        ("times the\nlog", "factor"),
    ]
    return _sheet(labels, heads, values, given, form)


def _sheet(
    labels: Sequence[Sequence[str]],
    heads: Sequence[tuple[str, str]],
    values: Sequence[Sequence[float]],
    given: Parameters,
    form: str,
) -> Sheet:
    columns = zip(heads, zip(*values, strict=True), strict=True)
    made = [spreads(header, kind, [[value] for value in column], form) for (header, kind), column in columns]
    lines = [[*label, *(cells[at] for _, cells in made)] for at, label in enumerate(labels)]
    note = (
        "The first log of each run; closed formulae, nothing of it was run. Masks cancel in the sum, so the server's"
        f" message stays as logged; under CKKS the sum itself goes down. {ABSENT}: it cannot be done."
        f" {described(given)}; keys of CKKS are given beforehand."
    )
    titles = ["run", "protocol", "message"]
    title = "Secure aggregation and homomorphic encryption"
    return Sheet(title, [*titles, *(header for header, _ in made)], lines, len(titles), note)
