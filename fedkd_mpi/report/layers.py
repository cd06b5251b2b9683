"""The figure of one run's layers: bytes and rank by layer and round on both legs, and the energy threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.report import canvas
from fedkd_mpi.report.energy import layers
from fedkd_mpi.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGS = {"uplink": "Uplink, mean over clients", "downlink": "Downlink, the broadcast"}
TALLEST = 40  # rows of a map that still get their full height


def by_layer(run: Run, *heading: str) -> Figure:
    """Return the maps of bytes and rank by layer and round, and threshold and bytes per message over rounds."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    parts, number = layers(run), run.rounds["round"]
    matrices = [index for index, layer in enumerate(parts) if layer.compressible]
    sizes = {leg: means(run.log[leg], "layer_bytes", number) for leg in LEGS}
    ranks = {leg: means(run.log[leg], "layer_rank", number)[:, matrices] for leg in LEGS}
    some = any(np.isfinite(found).any() for found in ranks.values())
    heights = [_height(len(parts)), *([_height(len(matrices))] if some else []), 1.2]
    figure = Figure(figsize=(11.5, 1.7 + sum(heights)))
    grid = figure.subplots(len(heights), 2, sharex=True, squeeze=False, height_ratios=heights)

    unit, size = canvas.scaled([found.max(initial=0) for found in sizes.values()], "bytes")
    positive = np.concatenate([found[found > 0] for found in sizes.values()]) / size
    # Weights and biases differ by orders of magnitude: a linear scale would show the largest layer alone.
    norm: Any = LogNorm(positive.min(), positive.max()) if len(positive) and positive.max() > positive.min() else None
    names = [f"{canvas.label(layer.name, 40)}  {'x'.join(map(str, layer.shape)) or 'scalar'}" for layer in parts]
    shown = {leg: np.where(found > 0, found, np.nan) / size for leg, found in sizes.items()}
    widest = max((canvas.inches(text, canvas.TINY) for text in names), default=0.0)
    bar = _pair(grid[0], shown, number, names, "bytes per message", norm, f"{unit} per message")
    plain = [value for value in _between(positive) if value] if norm is not None else []
    if plain:
        bar.set_ticks(plain, labels=[f"{value:g}" for value in plain])
        bar.minorticks_off()
    if some:
        full = np.array([min(parts[index].matrix_shape) for index in matrices])
        names = [f"{canvas.label(parts[index].name, 40)}  of {top}" for index, top in zip(matrices, full, strict=True)]
        shares = {leg: found / full for leg, found in ranks.items()}
        most = max(np.nanmax(found) for found in shares.values() if np.isfinite(found).any())
        norm = Normalize(0, most or 1)
        widest = max(widest, *(canvas.inches(text, canvas.TINY) for text in names))
        _pair(grid[1], shares, number, names, "rank K (grey: all raw)", norm, "share of full rank")
        for axes, leg in zip(grid[1], LEGS, strict=True):
            _write(axes, ranks[leg].T, (shares[leg] / (most or 1)).T, number)
    left, right = grid[-1]
    marker = "o" if len(number) == 1 else None
    left.step(number + 1, run.rounds["threshold"], where="mid", color="#D55E00", marker=marker)
    left.set_title("Energy threshold T of the round", fontsize="medium")
    left.ticklabel_format(axis="y", useOffset=False)
    left.set_ylabel("T (share)")
    whole = {leg: means({**run.log[leg], "all": run.log[leg]["bytes"][:, None]}, "all", number)[:, 0] for leg in LEGS}
    unit, size = canvas.scaled([found.max(initial=0) for found in whole.values()], "bytes")
    for found, line, colour in zip(whole.values(), ("-", "--"), canvas.COLOURS, strict=False):
        right.step(number + 1, found / size, where="mid", linestyle=line, marker=marker, color=colour)
    right.set_title("Bytes per message: uplink (solid, blue), downlink (dashed, orange)", fontsize="medium")
    right.set(ylabel=unit, ylim=(0, 1.1 * max(np.nanmax(found, initial=0) for found in whole.values()) / size or 1))
    for axes in grid[-1]:
        axes.set_xlabel("round")
        canvas.whole(axes.xaxis)
    above = canvas.title(figure, *heading)
    canvas.arrange(figure, left=max(widest + 0.15, 0.8), right=canvas.BAR, above=above + 0.3, across=0.75, down=0.35)
    return figure


def means(table: Mapping[str, np.ndarray], column: str, number: np.ndarray) -> np.ndarray:
    """Return the means of a column [rows, layers] over the messages of every round: float64 [rounds, layers].

    Ranks of raw layers (-1) are left out; NaN where no message has a value.
    """
    values = table[column].astype(float)
    values[values < 0] = np.nan
    sums, counts = np.zeros((2, len(number), values.shape[1]))
    at, known = np.searchsorted(number, table["round"]), np.isfinite(values)
    np.add.at(sums, at, np.where(known, values, 0.0))
    np.add.at(counts, at, known)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _pair(
    row: Sequence[Axes],
    values: Mapping[str, np.ndarray],
    number: np.ndarray,
    names: Sequence[str],
    what: str,
    norm: Any,
    unit: str,
) -> Any:
    """Draw the maps of both legs on one scale; returns their colour bar."""
    for axes, (leg, heading) in zip(row, LEGS.items(), strict=True):
        image = canvas.heat(axes, values[leg].T, number, names, f"{heading}: {what}", norm)
    row[1].tick_params(labelleft=False)
    return canvas.bar(row[1], image, unit)


def _between(positive: np.ndarray) -> list[float]:
    """Return about five ticks between the smallest and the largest value on a logarithmic scale, of one digit each."""
    steps = np.geomspace(positive.min(), positive.max(), 5)
    ticks = [float(f"{value:.1g}") for value in steps]
    return sorted({tick for tick in ticks if positive.min() <= tick <= positive.max()})


def _height(rows: int) -> float:
    return max(1.3, 0.2 * min(rows, TALLEST))


def _write(axes: Axes, ranks: np.ndarray, shares: np.ndarray, number: np.ndarray) -> None:
    """Write the ranks into a map of at most 20 rows, for at most 10 of its columns."""
    if len(ranks) > 20:
        return
    step = -(-len(number) // 10)
    for column in range(step // 2, len(number), step):
        for row in np.flatnonzero(np.isfinite(ranks[:, column])).tolist():
            colour = "white" if shares[row, column] < 0.6 else "black"
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(number[column] + 1, row, f"{ranks[row, column]:.0f}", **place)
