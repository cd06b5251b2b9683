"""The log of a new run, as it is before the first round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import __version__, costlog
from fedkd_mpi.datasets import opened
from fedkd_mpi.simulation import provenance
from fedkd_mpi.simulation.state import Simulation


def create_log(run: Simulation, output: Path, overwrite: bool, start: Mapping[str, Any]) -> costlog.Writer:
    """Create the cost log of a run with the first row of its table starts."""
    config = run.config
    attrs = {
        "config": config.to_yaml(),
        "config_digest": config.digest(),
        "package_version": __version__,
        "mpi_library": run.world.library,
        "hostnames": run.world.hostnames,
        "seed": config.seed,
        "started": start["started"],
        "data": provenance.data(run.data),
    }
    layers = (
        [(layer.name, layer.shape, layer.compressible) for layer in run.exchange.student.exchanged_layers]
        if run.exchange
        else []
    )
    columns = client_columns(run)
    size, spectra = run.world.world_size, config.log.spectra
    return costlog.Writer.create(
        output,
        attrs,
        layers,
        columns,
        run.task.metrics,
        size,
        overwrite,
        spectra,
        lower_is_better=getattr(run.task, "lower_is_better", ()),
        paper=bool(run.exchange and run.exchange.codec.paper_rank),
        encrypted=config.privacy.encrypts,
        differential=config.privacy.differential,
        sources=opened.described(run.data.files),
        start=start,
    )


def client_columns(run: Simulation) -> dict[str, np.ndarray]:
    """Return the columns of the log's table `clients`."""
    clients = run.data.clients
    columns = {
        "train_samples": np.array([len(train) for train, _ in clients]),
        "test_samples": np.array([len(test) for _, test in clients]),
        "mpi_rank": run.rank_of_client,
    }
    labels = run.task.labels(run.data.train)
    if run.task.num_classes and labels.ndim == 1:
        counts = [np.bincount(labels[np.concatenate(split)], minlength=run.task.num_classes) for split in clients]
        columns["label_histogram"] = np.array(counts)
    return columns | {"digest": provenance.clients(run.data)}
