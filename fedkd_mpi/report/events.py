"""--tensorboard: scores, bytes, ranks and seconds of logs as event files of the package tensorboard."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.report.energy import layers
from fedkd_mpi.report.layers import means
from fedkd_mpi.report.names import name
from fedkd_mpi.report.runs import SCORES, Run

FILE = "events.out.tfevents.0.fedkd"  # the same for every export: another one replaces it
LONGEST = 80  # characters of a layer's name in a tag


def write(groups: Sequence[Sequence[Run]], folder: Path) -> list[Path]:
    """Write one event file per log into FOLDER/ID, or FOLDER/ID-sSEED for several seeds, and return the paths.

    Steps count rounds from 1. TensorBoard has numbers as float32. Raises UserError if tensorboard is not installed or
    the folder cannot be written.
    """
    paths = []
    for known, group in zip(name(groups), groups, strict=True):
        for run, seed in zip(group, known.seeds, strict=True):
            path = folder / (known.id if len(group) == 1 else f"{known.id}-s{seed}") / FILE
            content = _content(run, f"{known.label(200)}, log {plain(str(run.path))}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError as error:
                raise UserError(f"cannot write --tensorboard {folder}: {error.strerror}") from None
            paths.append(path)
    return paths


def scalars(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (tag, float64 [rounds]) of what is shown; NaN where a round has no value."""
    for metric in run.metrics:
        for score in SCORES:
            yield f"{plain(metric)}/{score}", run.score(score, metric)
    rounds = run.rounds
    for leg in ("uplink", "downlink", "catchup"):
        yield f"bytes_per_round/{leg}", rounds[f"{leg}_bytes"].astype(float)
        if f"{leg}_encryption_bytes" in rounds:
            yield f"bytes_per_round/{leg}_encryption", rounds[f"{leg}_encryption_bytes"].astype(float)
    yield "bytes/so_far", run.total_bytes.astype(float)
    yield "bytes/per_client_so_far", run.total_bytes / (run.clients or np.nan)
    yield "compression/threshold", rounds["threshold"]
    for network in ("teacher", "student"):
        yield f"loss/{network}", rounds[f"{network}_loss"]
    for phase in (*run.phases, "total"):
        yield f"seconds/{phase}", rounds[f"seconds_{phase}"]
    if run.exchanges and len(rounds["round"]):
        parts = layers(run)
        for leg in ("uplink", "downlink"):
            ranks = means(run.log[leg], "layer_rank", rounds["round"])
            for index, layer in enumerate(parts):
                if layer.compressible:
                    yield f"rank_{leg}/{plain(layer.name, LONGEST)}", ranks[:, index]


def _content(run: Run, text: str) -> bytes:
    """Return the bytes of an event file."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        raise UserError("--tensorboard needs tensorboard: pip install 'fedkd-mpi[tensorboard]'") from None
    # Rounds lie where they were: from the start on, one after another.
    times = _started(run) + np.nancumsum(run.rounds["seconds_total"])
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)

    def add(**content: Any) -> None:
        writer.write(Event(**content).SerializeToString())

    add(wall_time=_started(run), file_version="brain.Event:2")
    about = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
    add(wall_time=_started(run), summary=Summary(value=[Summary.Value(tag="run", metadata=about, tensor=tensor)]))
    for tag, values in scalars(run):
        for index in np.flatnonzero(np.isfinite(values)).tolist():
            value = Summary.Value(tag=tag, simple_value=float(values[index]))
            step = int(run.rounds["round"][index]) + 1
            add(wall_time=float(times[index]), step=step, summary=Summary(value=[value]))
    return buffer.getvalue()


def _started(run: Run) -> float:
    """Return the time at which the run started in seconds since 1970, 0 if the log's text is no time."""
    try:
        return datetime.fromisoformat(run.log.attrs["started"]).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
