"""The figure of one run's clients: partition, scores, bytes and seconds of each client, and scores over rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd_mpi.report import canvas
from fedkd_mpi.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NETWORKS = {"teacher": "#D55E00", "student": "#0072B2"}


def clients(run: Run, *heading: str) -> Figure:
    """Return the plot of partition, last scores, bytes and seconds by client; with more rounds, clients x rounds."""
    from matplotlib.figure import Figure

    over_rounds = len(run.rounds["round"]) > 1
    figure = Figure(figsize=(10.5, 9.0 if over_rounds else 6.2))
    grid = figure.subplots(3 if over_rounds else 2, 2)
    held, everyone = run.log["clients"], np.arange(run.clients)
    if "label_histogram" in held:
        _histogram(grid[0, 0], held["label_histogram"])
    else:
        grid[0, 0].bar(everyone, held["train_samples"], color="#0072B2")
        grid[0, 0].set(xlabel="client", ylabel="samples", title="Training samples by client")
    _last(grid[0, 1], run)
    _sent(grid[1, 0], run)
    training = run.log["training"]
    seconds = np.bincount(training["client"], np.nan_to_num(training["seconds_train"]), run.clients)
    unit, size = canvas.scaled(seconds, "seconds")
    grid[1, 1].bar(everyone, seconds / size, color="#009E73")
    grid[1, 1].set(xlabel="client", ylabel=f"{unit}, whole run", title="Local training by client")
    if over_rounds:
        _scores(grid[2, 0], run)
        values = by_client(run, "seconds_train")
        unit, size = canvas.scaled(values, "seconds")
        image = canvas.heat(grid[2, 1], values / size, run.rounds["round"], None, "Local training by client and round")
        canvas.bar(grid[2, 1], image, unit)
        for axes in grid[2]:
            axes.set(xlabel="round", ylabel="client")
            canvas.whole(axes.yaxis)
    bars = [grid[1, 0], grid[1, 1], *([] if "label_histogram" in held else [grid[0, 0]])]
    for axes in bars:
        axes.set_xlim(-0.8, max(run.clients - 0.2, 1.8))  # one client is a bar, not a wall
        canvas.whole(axes.xaxis)
    above = canvas.title(figure, *heading)
    canvas.arrange(figure, left=0.8, right=canvas.BAR, above=above + 0.3, across=canvas.BAR + 0.65, down=0.75)
    return figure


def by_client(run: Run, column: str) -> np.ndarray:
    """Return a column of the table training as float64 [clients, rounds], NaN where a client did not train."""
    training, number = run.log["training"], run.rounds["round"]
    values = np.full((run.clients, len(number)), np.nan)
    values[training["client"], training["round"] - number[0]] = training[column]
    return values


def bytes_by_client(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the uplink and downlink bytes of every client, whole run: int64 [clients] each.

    Every member of a round's cohort receives its broadcast. Catch-up is not among them: the log has its sum alone.
    """
    up, training = run.log["uplink"], run.log["training"]
    sent, received = np.zeros((2, run.clients), np.int64)
    np.add.at(sent, up["client"], up["bytes"])
    number = run.rounds["round"]
    shares = run.rounds["downlink_bytes"] // np.maximum(run.rounds["cohort_size"], 1)
    np.add.at(received, training["client"], shares[training["round"] - number[0]])
    return sent, received


def _sent(axes: Axes, run: Run) -> None:
    sent, received = bytes_by_client(run)
    unit, size = canvas.scaled(sent + received, "bytes")
    everyone = np.arange(run.clients)
    axes.bar(everyone, sent / size, color="#0072B2")
    style: dict[str, Any] = {"color": "#56B4E9", "hatch": "//" if run.clients <= 64 else None, "edgecolor": "white"}
    axes.bar(everyone, received / size, bottom=sent / size, linewidth=0, **style)
    heading = "up (dark), down (light)" if run.exchanges else "nothing is exchanged"
    top = None if (sent + received).any() else 1
    axes.set(xlabel="client", ylabel=f"{unit}, whole run", ylim=(0, top))
    axes.set_title(f"Bytes by client: {heading}")


def _last(axes: Axes, run: Run) -> None:
    training, names = run.log["training"], list[str]()
    for name, colour in NETWORKS.items():
        last = _last_scores(training["client"], training[f"{name}_{run.metric}"], run.clients)
        known, position = last[np.isfinite(last)], len(names)
        if len(known):
            axes.boxplot(known, positions=[position], widths=0.5, showfliers=False, medianprops={"color": "black"})
            axes.plot(position + np.linspace(-0.2, 0.2, len(known)), known, "o", color=colour, markersize=3, alpha=0.7)
            names.append(f"{name}, own\ntest samples")
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel=canvas.metric_title(run.metric, run.less_is_better), xlim=(-0.6, max(len(names), 1) - 0.4))
    axes.set_title("Last score of every client")


def _scores(axes: Axes, run: Run) -> None:
    """Draw the scores by client and round of the teacher, or of the student if the teacher has none."""
    for name in NETWORKS:
        values = by_client(run, f"{name}_{run.metric}")
        if np.isfinite(values).any():
            break
    image = canvas.heat(axes, values, run.rounds["round"], None, f"Score of each client's {name} (grey: none)")
    canvas.bar(axes, image, canvas.metric_title(run.metric))


def _histogram(axes: Axes, counts: np.ndarray) -> None:
    image = axes.imshow(counts.T, aspect="auto", interpolation="nearest", cmap=canvas.MAP)
    axes.set(xlabel="client", ylabel="class", title="Partition: samples by class and client")
    axes.grid(False)
    canvas.whole(axes.xaxis)
    canvas.whole(axes.yaxis)
    canvas.bar(axes, image, "samples")


def _last_scores(client: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    last = np.full(count, np.nan)
    known = np.isfinite(values)
    last[client[known]] = values[known]  # rows are in the order of rounds, so the last value remains
    return last
