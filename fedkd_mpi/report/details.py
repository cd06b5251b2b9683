"""The plots of one run: its layers, its time, its clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.costlog.schema import PHASES
from fedkd_mpi.errors import plain
from fedkd_mpi.report.energy import layers
from fedkd_mpi.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASE_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#888888")
PHASE_LINES = ("-", "--", "-", ":", "--", ":", "-.")
COLOURS = "cividis"  # looks the same with and without colour blindness


def draw(run: Run) -> Iterator[tuple[str, Figure]]:
    """Yield (last part of the file name, figure) of a run; nothing without a completed round."""
    if not run.log.rounds_completed:
        return
    if run.exchanges:
        yield "layers", by_layer(run)
    yield "time", times(run)
    yield "clients", clients(run)


def by_layer(run: Run) -> Figure:
    """Return the plot of bytes and rank by layer and round (means over uplink messages) and the energy threshold."""
    from matplotlib.figure import Figure

    up, parts = run.log["uplink"], layers(run)
    number = run.rounds["round"]
    sizes = _round_means(up["round"], up["layer_bytes"].astype(float), number) / 1e3
    ranks = up["layer_rank"].astype(float)
    ranks[ranks < 0] = np.nan  # raw: no rank
    matrices = [index for index, layer in enumerate(parts) if layer.compressible]
    rank = _round_means(up["round"], ranks, number)[:, matrices]
    full = np.array([min(parts[index].matrix_shape) for index in matrices])
    some = bool(np.isfinite(rank).any())
    heights = [max(1.2, 0.22 * len(parts)), *([max(1.2, 0.22 * len(matrices)), 1.2] if some else [])]
    figure = Figure(figsize=(8.5, 1.6 + sum(heights)))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    names = [f"{label(layer.name)}  {'x'.join(map(str, layer.shape))}" for layer in parts]
    _map(axes[0], sizes.T, number, names, "kB per update", "Uplink bytes by layer and round, mean over clients")
    if some:
        names = [f"{label(parts[index].name)}  of {size}" for index, size in zip(matrices, full, strict=True)]
        title = "Rank K by layer and round, mean over clients (white: all raw)"
        image = _map(axes[1], (rank / full).T, number, names, "share of full rank", title)
        image.set_clim(0, 1)
        _write(axes[1], rank.T, (rank / full).T, number)
        axes[2].step(number + 1, run.rounds["threshold"], where="mid", color="#D55E00")
        axes[2].set_ylabel("energy threshold T\n(share)")
    axes[-1].set_xlabel("round")
    figure.suptitle(_title(run))
    return figure


def times(run: Run) -> Figure:
    """Return the plot of seconds by phase over rounds, and of computing and waiting of every MPI process."""
    from matplotlib.figure import Figure

    mpi = run.log["mpi"]
    computed, waited = np.nansum(mpi["seconds_compute"], axis=0), np.nansum(mpi["seconds_wait"], axis=0)
    figure = Figure(figsize=(9.5, 3.6 if len(computed) < 12 else 5.5))
    over_rounds, by_rank = figure.subplots(1, 2, width_ratios=(3, 2))
    bins = np.array_split(np.arange(len(run.rounds["round"])), min(100, len(run.rounds["round"])))
    number = [run.rounds["round"][rows].mean() + 1 for rows in bins]
    # Lines instead of a stack, because the phases overlap: the server waits while the clients train.
    phases = [*zip(PHASES, PHASE_COLOURS, PHASE_LINES, strict=True), ("total", "black", "-")]
    lines, most = [], len(bins[0])
    title = "Time by phase" if most == 1 else f"Time by phase, means over {most} rounds"
    for phase, colour, line in phases:
        name = "whole round" if phase == "total" else phase
        seconds = [_mean(run.rounds[f"seconds_{phase}"][rows]) for rows in bins]
        lines += over_rounds.step(number, seconds, where="mid", color=colour, linestyle=line, label=name)
    over_rounds.set(xlabel="round", ylabel="seconds per round", title=title, ylim=(0, None))
    whole(over_rounds.xaxis)
    ranks = np.arange(len(computed))
    bars = by_rank.barh(ranks, computed, color="#0072B2", alpha=0.8, label="process computing")
    idle = by_rank.barh(
        ranks, waited, left=computed, color="#E69F00", hatch="//", edgecolor="white", label="process waiting"
    )
    by_rank.set(xlabel="seconds, whole run", ylabel="MPI rank (0 = server)", title="Time by process")
    by_rank.invert_yaxis()
    by_rank.set_yticks(ranks[:: max(1, len(ranks) // 16)])
    figure.suptitle(f"{_title(run)}, MPI processes: {run.log.attrs['world_size']}")
    figure.legend(handles=[*lines, bars, idle], loc="outside lower center", ncols=5, frameon=False)
    return figure


def clients(run: Run) -> Figure:
    """Return the plot of label histogram, scores, uplink bytes and seconds of each client."""
    from matplotlib.figure import Figure

    held, training, up = run.log["clients"], run.log["training"], run.log["uplink"]
    everyone = np.arange(run.clients)
    classes = "label_histogram" in held
    figure = Figure(figsize=(9.5, 6.4))
    labels, spread, sent, took = figure.subplots(2, 2).ravel()
    if classes:
        _histogram(labels, held["label_histogram"])
    else:
        labels.bar(everyone, held["train_samples"], color="#0072B2")
        labels.set(xlabel="client", ylabel="training samples", title="Training samples by client")
    _scores(spread, run)
    sizes = np.bincount(up["client"], weights=up["bytes"], minlength=run.clients) / 1e6
    sent.bar(everyone, sizes, color="#0072B2")
    title = "Uplink bytes by client" if run.exchanges else "Uplink bytes by client (nothing is exchanged)"
    sent.set(xlabel="client", ylabel="MB, whole run", title=title, ylim=(0, None if sizes.any() else 1))
    seconds = np.nan_to_num(training["seconds_train"])
    took.bar(everyone, np.bincount(training["client"], weights=seconds, minlength=run.clients), color="#009E73")
    took.set(xlabel="client", ylabel="seconds, whole run", title="Local training by client")
    for axes in (sent, took):
        whole(axes.xaxis)
    figure.suptitle(f"{_title(run)}, {run.clients} clients")
    return figure


def _title(run: Run) -> str:
    return label(f"{run.name}: {run.method}, codec {run.codec}" if run.exchanges else f"{run.name}: {run.method}", 160)


def _scores(axes: Axes, run: Run) -> None:
    training = run.log["training"]
    names: list[str] = []
    for name, colour in (("teacher", "#D55E00"), ("student", "#0072B2")):
        last = _last_scores(training["client"], training[f"{name}_{run.metric}"], run.clients)
        known, position = last[np.isfinite(last)], len(names)
        if len(known):
            axes.boxplot(known, positions=[position], widths=0.5, showfliers=False, medianprops={"color": "black"})
            axes.plot(position + np.linspace(-0.2, 0.2, len(known)), known, "o", color=colour, markersize=3, alpha=0.7)
            names.append(f"{name}, own\ntest samples")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel=label(run.metric), title="Last score of every client", xlim=(-0.6, max(len(names), 1) - 0.4))


def _map(axes: Axes, values: np.ndarray, number: np.ndarray, names: list[str], unit: str, title: str) -> Any:
    extent = (number[0] + 0.5, number[-1] + 1.5, len(values) - 0.5, -0.5)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=COLOURS, extent=extent)
    axes.set_title(title, fontsize="medium")
    step = max(1, len(names) // 40)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize="x-small")
    axes.grid(False)
    whole(axes.xaxis)
    axes.figure.colorbar(image, ax=axes, label=unit, pad=0.01)
    return image


def _write(axes: Axes, ranks: np.ndarray, shares: np.ndarray, number: np.ndarray) -> None:
    """Write the ranks into a map of at most 20 rows, for at most 12 of its columns."""
    if len(ranks) > 20:
        return
    step = -(-len(number) // 12)
    for column in range(step // 2, len(number), step):
        for row in np.flatnonzero(np.isfinite(ranks[:, column])).tolist():
            colour = "white" if shares[row, column] < 0.6 else "black"
            axes.text(
                number[column] + 1, row, f"{ranks[row, column]:.0f}", color=colour, ha="center", va="center", fontsize=7
            )


def _histogram(axes: Axes, counts: np.ndarray) -> None:
    image = axes.imshow(counts.T, aspect="auto", interpolation="nearest", cmap=COLOURS)
    axes.set(xlabel="client", ylabel="class", title="Partition: samples by class and client")
    axes.grid(False)
    whole(axes.xaxis)
    whole(axes.yaxis)
    axes.figure.colorbar(image, ax=axes, label="samples", pad=0.01)


def _round_means(of_round: np.ndarray, values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return the means of the rows [n, layers] of every round without NaN: [rounds, layers]."""
    known = np.isfinite(values)
    sums, counts = np.zeros((2, len(number), values.shape[1]))
    at = of_round - number[0]
    np.add.at(sums, at, np.where(known, values, 0.0))
    np.add.at(counts, at, known)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _last_scores(client: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    last = np.full(count, np.nan)
    known = np.isfinite(values)
    last[client[known]] = values[known]  # rows are in the order of rounds, so the last value remains
    return last


def label(text: str, longest: int = 60) -> str:
    """Return text of a log as a label: escaped, cut, without formulas, and with a space before a leading _."""
    text = plain(text, longest).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def whole(axis: Any) -> None:
    """Set the ticks of an axis to whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
