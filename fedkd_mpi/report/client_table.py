"""--clients: the best and the last round of every client's own network."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedkd_mpi.report.clients import NETWORKS, by_client
from fedkd_mpi.report.columns import number
from fedkd_mpi.report.runs import Run
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report


def rows(run: Run) -> list[dict[str, Any]]:
    """Return per network and client the best value and its round, counted from 1, and the last; scored ones alone."""
    found = []
    for network in NETWORKS:
        table = by_client(run, f"{network}_{run.metric}")
        for client, values in enumerate(table):
            scored = np.flatnonzero(~np.isnan(values))
            if not len(scored):
                continue
            best = scored[(np.argmin if run.less_is_better else np.argmax)(values[scored])]
            found.append(
                {
                    "client": client,
                    "network": network,
                    "test_samples": int(run.log["clients"]["test_samples"][client]),
                    "best": float(values[best]),
                    "best_round": int(run.rounds["round"][best]) + 1,
                    "last": float(values[scored[-1]]),
                }
            )
    return found


def sheet(report: Report, form: str) -> Sheet:
    """Return the table of every log, client by client."""
    places, lines = None if form == "markdown" else 4, []
    for known, group in zip(report.names, report.groups, strict=True):
        for run in group:
            for row in rows(run):
                scores = [number(row["best"], places), str(row["best_round"]), number(row["last"], places)]
                who = [known.id, str(run.log.attrs["seed"]), row["network"], str(row["client"])]
                lines.append([*who, str(row["test_samples"]), run.metric, *scores])
    heads = ["run", "seed", "network", "client", "test\nsamples", "metric", "best", "in round", "last"]
    note = "Own test samples, after local training. Rounds count from 1, clients from 0; of equal rounds the first."
    return Sheet("Best round of each client", heads, lines, 1, note, frozenset((2, 5)))
