"""The schema of a cost log, declared once: the writer creates it, the reader checks it, and docs/hdf5.md repeats it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from fedkd_mpi.costlog.column import Column, bytes_of, count, index, number, seconds

SCHEMA_VERSION = 4
READABLE = (2, 3, 4)  # versions; one before 3 lacks the tables in SINCE and the attributes in ATTRS_SINCE
STATUSES = ("running", "interrupted", "completed")
LEVELS = ("info", "warning", "error")
STRAGGLER = 2.0  # a local training this many times as long as the median of its round


class Phase(NamedTuple):
    """A part of a round; the log contains its seconds on the slowest process if `shared`, else on rank 0."""

    description: str
    shared: bool = False


PHASES = {
    "train": Phase("local training on the slowest process", shared=True),
    "encode": Phase("encoding the updates on the slowest process", shared=True),
    "wait": Phase("rank 0 waiting for the other processes to arrive"),
    "gather": Phase("moving the updates to rank 0"),
    "aggregate": Phase("decoding and averaging the updates, encoding the broadcast"),
    "broadcast": Phase("moving the broadcast to the clients"),
    "evaluate": Phase("evaluation on the slowest process", shared=True),
}

ENCRYPT = "encrypt"  # the phase that only rounds with encrypted messages have
ENCRYPTING = (
    "encrypting, decrypting and authenticating messages on the slowest process, apart from the other phases; only if"
    " messages are encrypted"
)

# Attributes of the root group. The writer sets those in OWN_ATTRS, the caller passes the others.
ATTRS = {
    "schema_version": "version of this layout",
    "status": "running, interrupted or completed; the log of a killed run is still running",
    "metrics": "names of the task's metrics: the `<metric>` of the columns of rounds",
    "lower_is_better": "the metrics for which less is better",
    "world_size": "number of MPI processes; if the run was resumed, of its last part",
    "num_clients": "number of clients, sampled or not",
    "config": "the resolved configuration, YAML text",
    "config_digest": "digest of the configuration",
    "package_version": "version of fedkd_mpi",
    "mpi_library": "name and version of the MPI library",
    "hostnames": "host of each MPI process, in rank order",
    "seed": "seed of all random streams",
    "started": "when the run first started, ISO 8601",
    "data": "name, type, shape and digest (BLAKE2b, 16 bytes) of every array of the data, and the digest of their meta",
}
ATTRS_SINCE: dict[str, Any] = {"data": []}  # those of version 3 with the value that stands for none
OWN_ATTRS = ("schema_version", "status", "metrics", "lower_is_better", "world_size", "num_clients")

# Tables that are written completely when the log is created.
FIXED = {
    "layers": {
        "name": Column("S", "text", "parameter or buffer of the student; the order of every layer axis"),
        "shape": Column("S", "text", "shape of the tensor, e.g. 64x3x3x3"),
        "numel": count("numbers", "numbers in the tensor"),
        "compressible": Column("bool", "yes or no", "whether a codec may factorise the tensor"),
    },
    "clients": {
        "train_samples": count("samples", "training samples of the client"),
        "test_samples": count("samples", "test samples of the client"),
        "mpi_rank": index("MPI rank of the client when the run first started"),
        "label_histogram": count("samples", "train and test samples of each class; only if there are classes", "class"),
        "digest": Column("S", "text", "digest (BLAKE2b, 16 bytes) of the indices of the client's samples, see below"),
    },
    "files": {
        "path": Column("S", "text", "data file that was read, or their folder if there are more than 100"),
        "count": count("files", "1, or the files below the folder that were read"),
        "bytes": bytes_of("their size"),
        "digest": Column("S", "text", "SHA-256 of the file; of a folder, of what sha256sum prints, see below"),
    },
    "starts": {
        "started": Column("S", "text", "when the run was started or resumed, ISO 8601"),
        "ended": Column("S", "text", "when that part of the run ended, ISO 8601; empty while it runs and after a kill"),
        "first_round": index("the round with which it began"),
        "world_size": count("processes", "number of MPI processes"),
        "hosts": Column("S", "text", "each host with its number of processes"),
        "mpi_library": Column("S", "text", "name and version of the MPI library"),
        "fedkd_mpi": Column("S", "text", "version of fedkd_mpi"),
        "python": Column("S", "text", "version of Python"),
        "torch": Column("S", "text", "version of torch"),
        "numpy": Column("S", "text", "version of numpy"),
        "h5py": Column("S", "text", "version of h5py"),
        "mpi4py": Column("S", "text", "version of mpi4py"),
        "cuda": Column("S", "text", "version of CUDA (or ROCm) that torch was built for; empty if none"),
        "cpu": Column("S", "text", "models of the processors, and the vector instructions that torch uses"),
        "gpu": Column("S", "text", "models of the GPUs that the run uses; empty if none"),
        "cores": Column("S", "text", "cores that the processes of a node may use; several if nodes differ"),
        "threads": Column("S", "text", "torch threads of a process; several if processes differ"),
        "package_commit": Column("S", "text", "git commit of fedkd_mpi, with -dirty if changed; empty if installed"),
        "folder_commit": Column("S", "text", "git commit of the working directory, likewise; empty if none"),
        "command": Column("S", "text", "the command line"),
        "environment": Column("S", "text", "NAME=VALUE of the variables that matter, one per line"),
        "slurm_job_id": Column("S", "text", "Slurm's job id, with the place in an array; empty outside Slurm"),
        "key_agreement_bytes": bytes_of(
            "public keys and wrapped broadcast keys of all clients, up and down; if encrypted"
        ),
    },
}
SINCE, SINCE_VERSION = ("files", "starts"), 3  # tables of version 3
# Columns of some logs only: label_histogram if there are classes, spectrum with log.spectra, the paper's counts for
# codecs that choose the rank at which the paper would send, what encryption adds where messages are encrypted.
PAPER = {("rounds", "uplink_paper_bytes"), ("rounds", "downlink_paper_bytes")}
ENCRYPTION = {
    ("rounds", "uplink_encryption_bytes"),
    ("rounds", "downlink_encryption_bytes"),
    ("rounds", f"seconds_{ENCRYPT}"),
    ("uplink", "encryption_bytes"),
    ("downlink", "encryption_bytes"),
    ("starts", "key_agreement_bytes"),
}
DIFFERENTIAL = {("rounds", "epsilon"), ("rounds", "clipped_share"), ("uplink", "norm")}  # of differential privacy
SUMMED = ("bytes", "header_bytes", "encryption_bytes")  # columns of uplink whose sums are in rounds
# Logs that an earlier version began have no digests of clients.
OPTIONAL = {*PAPER, *ENCRYPTION, *DIFFERENTIAL, ("uplink", "spectrum"), ("downlink", "spectrum")}
OPTIONAL |= {("clients", "label_histogram"), ("clients", "digest")}


_MESSAGE = {
    "bytes": bytes_of("payload and header of the message"),
    "header_bytes": bytes_of("header of the message"),
    "encryption_bytes": bytes_of("nonce and tag of the message, if it is encrypted"),
    "layer_rank": count("components", "rank K of the layer's factors, -1 if the layer is raw", "layer"),
    "layer_bytes": bytes_of("payload of the layer", "layer"),
    "layer_energy": number("1", "share of the layer's squared norm that was kept", "layer"),
    "spectrum": Column(
        "float32", "1", "singular values before encoding, for each compressible layer in descending order", "component"
    ),
}

# Tables that grow during the run.
GROWING = {
    "rounds": {
        "round": index("index of the round; written last, so that a round with an index is complete"),
        "threshold": number("1", "energy threshold T of the round"),
        "cohort_size": count("clients", "clients sampled for the round"),
        "skipped_clients": count("clients", "clients of the cohort whose update was skipped because it was not finite"),
        "uplink_bytes": bytes_of("payload and header of all updates of the cohort"),
        "downlink_bytes": bytes_of("payload and header of the broadcast, counted once per receiving client"),
        "uplink_header_bytes": bytes_of("the headers in uplink_bytes"),
        "downlink_header_bytes": bytes_of("the headers in downlink_bytes"),
        "uplink_encryption_bytes": bytes_of("nonces and tags in uplink_bytes; only if messages are encrypted"),
        "downlink_encryption_bytes": bytes_of("nonces and tags in downlink_bytes; only if messages are encrypted"),
        "uplink_paper_bytes": bytes_of(
            "uplink bytes as the paper counts them: 4(PK + K^2 + KQ) per matrix at the smallest rank K"
            " above T, even if it is sent raw, and 4 per other parameter; only for codec svd without a byte"
            " budget"
        ),
        "downlink_paper_bytes": bytes_of("downlink bytes as the paper counts them, once per receiving client"),
        "student_dense_bytes": bytes_of("uplink and downlink bytes if the cohort exchanged the student uncompressed"),
        "teacher_dense_bytes": bytes_of("uplink and downlink bytes if the cohort exchanged the teacher uncompressed"),
        "catchup_bytes": bytes_of(
            "bytes that members of the cohort who missed earlier rounds would fetch before training: the"
            " missed broadcasts or, if smaller, the dense student and the receiver's state (the server"
            " optimiser's moments, ef21's estimates); 0 at full participation"
        ),
        "epsilon": number(
            "1", "epsilon of the rounds up to this one at privacy.delta; only with differential privacy, see privacy.md"
        ),
        "clipped_share": number(
            "1", "share of the cohort's updates that were longer than privacy.clip_norm; only with differential privacy"
        ),
        "student_loss": number("1", "mean local training loss of the students"),
        "teacher_loss": number("1", "mean local training loss of the teachers"),
        **{f"seconds_{name}": seconds(phase.description) for name, phase in PHASES.items()},
        f"seconds_{ENCRYPT}": seconds(ENCRYPTING),
        "seconds_total": seconds("the whole round on rank 0"),
    },
    "uplink": {
        "round": index("round of the update"),
        "client": index("client that sent it"),
        "mpi_rank": index("MPI rank of the client in this round, which sends its update"),
        "norm": number(
            "1", "2-norm of the update before it was clipped, itself not private; only with differential privacy"
        ),
        **_MESSAGE,
    },
    "downlink": {"round": index("round of the broadcast"), **_MESSAGE},
    "training": {
        "round": index("round of the local training"),
        "client": index("client that trained"),
        "mpi_rank": index("MPI rank of the client in this round, which sends its update"),
        "student_loss": number("1", "mean training loss of the student"),
        "teacher_loss": number("1", "mean training loss of the teacher"),
        "seconds_train": seconds("local training"),
        "seconds_encode": seconds("encoding the update; an equal share if several were encoded at once"),
        "seconds_evaluate": seconds("scoring teacher and student on the client's own test samples"),
    },
    "mpi": {
        "bytes_sent": bytes_of("all bytes that the process sent through MPI", "mpi_rank"),
        "bytes_received": bytes_of("all bytes that the process received through MPI", "mpi_rank"),
        "payload_bytes_sent": bytes_of(
            "uplink and downlink messages in bytes_sent; the rest is control data", "mpi_rank"
        ),
        "payload_bytes_received": bytes_of("uplink and downlink messages in bytes_received", "mpi_rank"),
        "seconds_compute": seconds("time in which the process computed", "mpi_rank"),
        "seconds_wait": seconds("time in which the process waited for others", "mpi_rank"),
    },
    "events": {
        "round": index("round the event belongs to; written last"),
        "client": index("client that the event concerns, -1 if there is none"),
        "level": Column("S8", "text", "info, warning or error"),
        "message": Column(
            "S240",
            "text",
            "what happened: a straggler, a skipped update, NaN scores, a restart, a stop; at most 240 bytes",
        ),
    },
}

# The name of each table's first dimension. All dimensions are HDF5 dimension scales in the root group.
ROWS = {
    "layers": "layer",
    "clients": "client",
    "files": "file",
    "starts": "start",
    "rounds": "round",
    "uplink": "update",
    "downlink": "round",
    "training": "local_training",
    "mpi": "round",
    "events": "event",
}

# Columns of the table rounds for every metric of the task.
METRIC = {
    "student_{metric}": number(
        "1",
        "mean over the cohort of the trained student's score on the client's own test samples; NaN if not evaluated",
    ),
    "teacher_{metric}": number(
        "1", "mean over the cohort of the teacher's score on the client's own test samples; NaN if not evaluated"
    ),
    "student_{metric}_weighted": number(
        "1", "the same score on all test samples of the cohort, so that a client counts by its samples"
    ),
    "teacher_{metric}_weighted": number(
        "1", "the same score on all test samples of the cohort, so that a client counts by its samples"
    ),
    "student_{metric}_all": number(
        "1", "mean over all clients of the latest student score; NaN until every client has one"
    ),
    "teacher_{metric}_all": number(
        "1", "mean over all clients of the latest teacher score; NaN until every client has one"
    ),
    "global_student_{metric}": number("1", "score of the global student on the global test set; NaN if not evaluated"),
    "global_teacher_{metric}": number("1", "mean score of all teachers on the global test set; NaN if not evaluated"),
}

# Columns of the table training for every metric of the task.
CLIENT_METRIC = {
    "student_{metric}": number(
        "1", "score of the trained student on the client's own test samples; NaN if not evaluated"
    ),
    "teacher_{metric}": number("1", "score of the teacher on the client's own test samples; NaN if not evaluated"),
}


def components(layers: Iterable[tuple[str, Sequence[int], bool]]) -> int:
    """Return the length of the axis component: the number of singular values of all compressible layers."""
    return sum(min(shape[0], math.prod(shape[1:])) for _, shape, compressible in layers if compressible)


def optional(table: str) -> set[str]:
    """Return the columns of a table that a log may lack."""
    return {name for of, name in OPTIONAL if of == table}


def is_metric(name: str) -> bool:
    """Whether a name can be part of a column name: printable, not empty and not a path."""
    return bool(name) and len(name) <= 200 and not set(name) & set("/\0") and name.isprintable()


def growing(metrics: Iterable[str]) -> dict[str, dict[str, Column]]:
    """Return the growing tables, including the columns of the given metrics in rounds and training."""
    metrics = list(metrics)
    tables = dict(GROWING)
    for table, columns in (("rounds", METRIC), ("training", CLIENT_METRIC)):
        scores = {name.format(metric=metric): column for metric in metrics for name, column in columns.items()}
        tables[table] = GROWING[table] | scores
    return tables
