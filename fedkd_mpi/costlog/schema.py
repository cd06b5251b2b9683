"""What a cost log holds, declared once: the writer creates it, the reader checks it and docs/hdf5.md repeats it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SCHEMA_VERSION = 2
STATUSES = ("running", "interrupted", "completed")
LEVELS = ("info", "warning", "error")
STRAGGLER = 2.0  # a local training this many times as long as the median of its round


class Column(NamedTuple):
    """One dataset: its type, unit and meaning.

    `dtype` is a NumPy type name; "S" is UTF-8 text of fixed length ("S" alone: as long as the longest value).
    `axis` names what a second dimension counts: layer, component, mpi_rank or class; without one there is none.
    """

    dtype: str
    unit: str
    description: str
    axis: str = ""


def _index(description: str) -> Column:
    return Column("int64", "index", description)


def _count(unit: str, description: str, axis: str = "") -> Column:
    return Column("int64", unit, description, axis)


def _bytes(description: str, axis: str = "") -> Column:
    return Column("int64", "bytes", description, axis)


def _seconds(description: str, axis: str = "") -> Column:
    return Column("float64", "seconds", description, axis)


def _number(unit: str, description: str, axis: str = "") -> Column:
    return Column("float64", unit, description, axis)


class Phase(NamedTuple):
    """A part of a round; the log holds its seconds on the slowest process, or on rank 0 where that alone counts."""

    description: str
    shared: bool = False


PHASES = {
    "train": Phase("local training, on the slowest process", shared=True),
    "encode": Phase("encoding the updates, on the slowest process", shared=True),
    "wait": Phase("rank 0 waiting for the other processes to arrive"),
    "gather": Phase("moving the updates to rank 0"),
    "aggregate": Phase("decoding and averaging the updates, encoding the broadcast"),
    "broadcast": Phase("moving the broadcast to the clients"),
    "evaluate": Phase("evaluation, on the slowest process", shared=True),
}

# Attributes of the root group. The writer sets those in OWN_ATTRS, the caller gives the others.
ATTRS = {
    "schema_version": "version of this layout",
    "status": "running, interrupted or completed; a run that was killed still says running",
    "metrics": "names of the task's metrics: the `<metric>` of the columns of rounds",
    "lower_is_better": "those of the metrics of which less is better",
    "world_size": "MPI processes of the run; of its last part, where it was resumed",
    "num_clients": "clients of the run, sampled or not",
    "config": "the resolved configuration, YAML text",
    "config_digest": "digest of the configuration",
    "package_version": "version of fedkd_mpi",
    "mpi_library": "name and version of the MPI library",
    "hostnames": "host of each MPI process, in rank order",
    "seed": "seed of all random streams",
    "started": "when the run first started, ISO 8601",
}
OWN_ATTRS = ("schema_version", "status", "metrics", "lower_is_better", "world_size", "num_clients")

# Written whole when the log is created.
FIXED = {
    "layers": {
        "name": Column("S", "text", "parameter or buffer of the student; the order of every layer axis"),
        "shape": Column("S", "text", "shape of the tensor, e.g. 64x3x3x3"),
        "numel": _count("numbers", "numbers in the tensor"),
        "compressible": Column("bool", "yes or no", "whether a codec may factor it"),
    },
    "clients": {
        "train_samples": _count("samples", "training samples of the client"),
        "test_samples": _count("samples", "test samples of the client"),
        "mpi_rank": _index("MPI process that hosted the client when the run first started"),
        "label_histogram": _count(
            "samples", "train and test samples of each class; only where there are classes", "class"
        ),
    },
}
# Only in some logs: label_histogram where there are classes, spectrum where log.spectra was on, the paper's counts for
# codecs that choose the rank at which the paper would send.
PAPER = {("rounds", "uplink_paper_bytes"), ("rounds", "downlink_paper_bytes")}
OPTIONAL = {("clients", "label_histogram"), ("uplink", "spectrum"), ("downlink", "spectrum"), *PAPER}


_MESSAGE = {
    "bytes": _bytes("payload and header of the message"),
    "header_bytes": _bytes("header of the message"),
    "layer_rank": _count("components", "rank K of the layer's factors, -1 where the layer is raw", "layer"),
    "layer_bytes": _bytes("payload of the layer", "layer"),
    "layer_energy": _number("1", "share of the layer's squared norm that was kept", "layer"),
    "spectrum": Column(
        "float32", "1", "singular values before encoding, falling, of one compressible layer after another", "component"
    ),
}

# Grow while the run goes on.
GROWING = {
    "rounds": {
        "round": _index("number of the round; written last, so that a round with a number is complete"),
        "threshold": _number("1", "energy threshold T of the round"),
        "cohort_size": _count("clients", "clients sampled for the round"),
        "skipped_clients": _count("clients", "clients of the cohort whose update was left out as not finite"),
        "uplink_bytes": _bytes("payload and header of all updates of the cohort"),
        "downlink_bytes": _bytes("payload and header of the broadcast, counted once per receiving client"),
        "uplink_header_bytes": _bytes("the headers in uplink_bytes"),
        "downlink_header_bytes": _bytes("the headers in downlink_bytes"),
        "uplink_paper_bytes": _bytes(
            "the paper's count of the uplink: 4(PK + K^2 + KQ) of a matrix at the smallest rank K above T, also where"
            " it is sent raw, and 4 per other parameter; only for codec svd, without a byte budget"
        ),
        "downlink_paper_bytes": _bytes("the same of the downlink, once per receiving client"),
        "student_dense_bytes": _bytes("the same cohort exchanging the student uncompressed, up + down"),
        "teacher_dense_bytes": _bytes("the same cohort exchanging the teacher uncompressed, up + down"),
        "catchup_bytes": _bytes(
            "what members of the cohort absent from earlier rounds would fetch before training: the smaller of"
            " the missed broadcasts and a dense student, with what receivers keep beside it (the server optimiser's"
            " moments, ef21's estimates); 0 at full participation"
        ),
        "student_loss": _number("1", "mean local training loss of the students"),
        "teacher_loss": _number("1", "mean local training loss of the teachers"),
        **{f"seconds_{name}": _seconds(phase.description) for name, phase in PHASES.items()},
        "seconds_total": _seconds("the whole round, on rank 0"),
    },
    "uplink": {
        "round": _index("round of the update"),
        "client": _index("client that sent it"),
        "mpi_rank": _index("MPI process that hosted the client in this round, and sent what it sent"),
        **_MESSAGE,
    },
    "downlink": {"round": _index("round of the broadcast"), **_MESSAGE},
    "training": {
        "round": _index("round of the local training"),
        "client": _index("client that trained"),
        "mpi_rank": _index("MPI process that hosted the client in this round, and sent what it sent"),
        "student_loss": _number("1", "mean training loss of the student"),
        "teacher_loss": _number("1", "mean training loss of the teacher"),
        "seconds_train": _seconds("local training"),
        "seconds_encode": _seconds("encoding the update; an equal share, where several were encoded at once"),
        "seconds_evaluate": _seconds("scoring teacher and student on the client's own test samples"),
    },
    "mpi": {
        "bytes_sent": _bytes("all that the process handed to MPI to send", "mpi_rank"),
        "bytes_received": _bytes("all that the process received from MPI", "mpi_rank"),
        "payload_bytes_sent": _bytes("the uplink and downlink messages in bytes_sent; the rest is control", "mpi_rank"),
        "payload_bytes_received": _bytes("the uplink and downlink messages in bytes_received", "mpi_rank"),
        "seconds_compute": _seconds("time the process computed", "mpi_rank"),
        "seconds_wait": _seconds("time the process waited for others", "mpi_rank"),
    },
    "events": {
        "round": _index("round the event belongs to; written last"),
        "client": _index("client concerned, -1 where there is none"),
        "level": Column("S8", "text", "info, warning or error"),
        "message": Column(
            "S240",
            "text",
            "what happened: a straggler, a skipped update, NaN scores, a restart, a stop; at most 240 bytes",
        ),
    },
}

# In rounds, for every metric of the task.
METRIC = {
    "student_{metric}": _number(
        "1", "mean over the cohort: the trained student on the client's own test samples; NaN where not evaluated"
    ),
    "teacher_{metric}": _number(
        "1", "mean over the cohort: the teacher on the client's own test samples; NaN where not evaluated"
    ),
    "student_{metric}_weighted": _number(
        "1", "the same of all test samples of the cohort together: a client counts by its samples"
    ),
    "teacher_{metric}_weighted": _number(
        "1", "the same of all test samples of the cohort together: a client counts by its samples"
    ),
    "student_{metric}_all": _number(
        "1", "mean over all clients of each one's latest student score; NaN until all have one"
    ),
    "teacher_{metric}_all": _number(
        "1", "mean over all clients of each one's latest teacher score; NaN until all have one"
    ),
    "global_student_{metric}": _number("1", "the student on the global test set; NaN where not evaluated"),
    "global_teacher_{metric}": _number("1", "mean over all teachers on the global test set; NaN where not evaluated"),
}

# In training, likewise.
CLIENT_METRIC = {
    "student_{metric}": _number("1", "the trained student on the client's own test samples; NaN where not evaluated"),
    "teacher_{metric}": _number("1", "the teacher on the client's own test samples; NaN where not evaluated"),
}


def components(layers: Iterable[tuple[str, Sequence[int], bool]]) -> int:
    """Return the length of the axis component: the singular values of all compressible layers."""
    return sum(min(shape[0], math.prod(shape[1:])) for _, shape, compressible in layers if compressible)


def is_metric(name: str) -> bool:
    """Tell whether a name can be part of a column's: neither empty nor a path."""
    return bool(name) and len(name) <= 200 and not set(name) & set("/\0") and name.isprintable()


def growing(metrics: Iterable[str]) -> dict[str, dict[str, Column]]:
    """Return the growing tables, rounds and training with the columns of the given metrics."""
    metrics = list(metrics)
    tables = dict(GROWING)
    for table, columns in (("rounds", METRIC), ("training", CLIENT_METRIC)):
        scores = {name.format(metric=metric): column for metric in metrics for name, column in columns.items()}
        tables[table] = GROWING[table] | scores
    return tables
