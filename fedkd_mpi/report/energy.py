"""--energy: bytes of codec svd at other thresholds, computed from the spectra of the updates (log.spectra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from fedkd_mpi.codecs.wire import HEADER_BYTES, RECORD_BYTES
from fedkd_mpi.errors import UserError
from fedkd_mpi.models.layer import Layer
from fedkd_mpi.report.runs import Run
from fedkd_mpi.report.sheets import Sheet
from fedkd_mpi.report.tables import Report


def thresholds(text: str) -> list[float]:
    """Return the thresholds of "0.95,0.98"; raises UserError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [0.0]
    if not all(0 < value <= 1 for value in values):
        raise UserError(f"--energy {text}: give thresholds above 0 and up to 1, for example 0.95,0.98")
    return values


def layers(run: Run) -> list[Layer]:
    """Return the layers of a log."""
    table = run.log["layers"]
    shapes = [() if shape == "scalar" else tuple(int(side) for side in shape.split("x")) for shape in table["shape"]]
    columns = table["name"].tolist(), shapes, table["compressible"].tolist()
    return [Layer(*layer) for layer in zip(*columns, strict=True)]


def message_bytes(spectra: np.ndarray, parts: Sequence[Layer], threshold: float) -> np.ndarray:
    """Return the bytes of messages [n] in which every matrix is truncated to the smallest rank above a threshold.

    `spectra` is float [n, components]: the singular values of each compressible layer in descending order.
    """
    total = np.full(len(spectra), HEADER_BYTES + RECORD_BYTES * len(parts))
    sizes = [min(layer.matrix_shape) if layer.compressible else 0 for layer in parts]
    for layer, end, size in zip(parts, accumulate(sizes), sizes, strict=True):
        if not size:
            total += 4 * layer.numel
            continue
        energy = (spectra[:, end - size : end].astype(float) ** 2).cumsum(axis=1)
        above = energy > threshold * energy[:, -1:]
        rank = np.where(above.any(axis=1), above.argmax(axis=1) + 1, size)
        rank[energy[:, -1] == 0] = 0
        total += 4 * np.minimum(rank * sum(layer.matrix_shape), layer.numel)
    return total


def costs(run: Run, values: Sequence[float]) -> Mapping[float, int]:
    """Return the uplink and downlink bytes of all clients at each threshold; {} if the log has no spectra."""
    if "spectrum" not in run.log["uplink"]:
        return {}
    parts, up, down = layers(run), run.log["uplink"], run.log["downlink"]
    sent, broadcast = up["spectrum"][up["layer_bytes"].sum(axis=1) > 0], down["spectrum"]
    cohort = run.rounds["cohort_size"]
    return {
        value: int(message_bytes(sent, parts, value).sum() + (cohort * message_bytes(broadcast, parts, value)).sum())
        for value in values
    }


def sheet(report: Report, values: Sequence[float], form: str) -> Sheet:
    """Return the table of bytes at other thresholds, one row per group."""
    known = [[found for run in group if (found := costs(run, values))] for group in report.groups]
    sent = [[float(run.sent_bytes[-1]) for run in group if len(run.sent_bytes)] for group in report.groups]
    columns = [("sent", "bytes", sent)]
    columns += [(f"T = {value:g}", "bytes", [[found[value] for found in group] for group in known]) for value in values]
    note = (
        "All clients, up and down: the logged updates, truncated at another threshold; a run at that threshold would "
        "have other updates. Logs without spectra (-): run again with log.spectra=true."
    )
    return report.measured("Bytes of codec svd at other energy thresholds", columns, form, note)
