"""The report of every process at the end of a round, and the rows of the cost log that rank 0 computes from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedkd_mpi import costlog
from fedkd_mpi.client.result import ClientResult
from fedkd_mpi.codecs.message import Receipt
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication.exchange import arrival
from fedkd_mpi.costlog import Writer
from fedkd_mpi.costlog.schema import ENCRYPT, PHASES, SUMMED, components
from fedkd_mpi.errors import RunFault
from fedkd_mpi.models.layer import Layer
from fedkd_mpi.privacy.aes_gcm import OVERHEAD
from fedkd_mpi.simulation.client_scores import ROLES, ClientScores, mean, nan_scores
from fedkd_mpi.simulation.server import catchup_state_bytes
from fedkd_mpi.simulation.state import Simulation
from fedkd_mpi.simulation.stragglers import straggler

COUNTERS = ("bytes_sent", "bytes_received", "payload_bytes_sent", "payload_bytes_received")
SHARED_PHASES = tuple(name for name, phase in PHASES.items() if phase.shared)
COMPUTING = {*SHARED_PHASES, "aggregate", ENCRYPT}
LOSSES = ("teacher_loss", "student_loss")
Counts = dict[str, tuple[np.dtype, np.ndarray]]


@dataclass
class Round:
    """One round: its settings, the same on all processes, and on rank 0 the sizes of its messages for the log."""

    index: int
    threshold: float
    cohort: list[int]
    evaluated: bool
    uplink: list[Receipt] = field(default_factory=list)
    downlink: list[Receipt] = field(default_factory=list)
    downlink_energies: Sequence[float] = ()
    downlink_paper_ranks: Sequence[int] = ()
    downlink_spectrum: Sequence[float] = ()


class Accounting:
    """Gathers the reports of each round on rank 0 and appends them to the log; `writer` is None on other ranks.

    settle() appends them after the other processes have continued, so that no process waits for the log. `on_round` is
    called on rank 0 with the round's row of the table `rounds`.
    """

    def __init__(self, run: Simulation, writer: Writer | None, on_round: Callable[[dict[str, Any]], None]):
        self.run, self.writer, self.on_round = run, writer, on_round
        self.layers: list[Layer] = run.exchange.student.exchanged_layers if run.exchange else []
        self._numel = np.array([layer.numel for layer in self.layers], np.int64)
        self._sides = np.array([sum(layer.matrix_shape) for layer in self.layers], np.int64)
        self._dense = 4 * int(self._numel.sum())
        self._components = components(self.layers) if run.config.log.spectra else 0
        # the closed round that is not yet logged
        self._due: tuple[Writer, Round, np.ndarray, Counts, float] | None = None
        self._newcomer = self._dense  # bytes of the current state, for a client that missed all rounds
        if run.exchange:
            self._newcomer += catchup_state_bytes(run.exchange.student, run.exchange.codec, run.config.server)
            self._newcomer += OVERHEAD if run.config.privacy.encrypts else 0
        self._broadcasts = [0]  # cumulative bytes of the downlink messages before each round
        self._last_seen = dict.fromkeys(range(run.config.num_clients), -1)
        self.losses: list[float] = []  # on rank 0: the student's mean training loss of every round in the log
        self._scores = ClientScores(run.task, [len(test) for _, test in run.data.clients])
        if writer:
            self._recall(writer.path)
        sums = (run.task.sums,)
        losses = [(name, "f8") for name in LOSSES]
        seconds = [(f"seconds_{phase}", "f8") for phase in SHARED_PHASES]
        scores = [("teacher", "f8", sums), ("student", "f8", sums)]
        each = (len(self.layers),)
        update = [
            ("norm", "f8"),
            ("energy", "f8", each),
            ("paper_rank", "i4", each),
            ("spectrum", "f4", (self._components,)),
            ("fault", "S160"),
        ]
        self._of_client = np.dtype([*losses, *seconds, *scores, *update])
        self._phases = (*PHASES, *([ENCRYPT] if run.config.privacy.encrypts else []))
        self._of_process = np.dtype([*((name, "i8") for name in COUNTERS), *((name, "f8") for name in self._phases)])
        self._of_score = np.dtype([("sums", "f8", sums)])

    def close(
        self, this: Round, own: Sequence[ClientResult], scores: np.ndarray, teachers: np.ndarray, watch: Stopwatch
    ) -> None:
        """Send this process's report of a round to rank 0, which logs it at the next settle(). Collective.

        `scores` [chunks, sums] and `teachers` [clients, sums] are the results of rounds.evaluate().
        """
        world, seconds = self.run.world, watch.take()
        counters = world.take_counters()
        process = np.zeros(1, self._of_process)
        for name in COUNTERS:
            process[name] = getattr(counters, name)
        for name in self._phases:
            process[name] = seconds[name]
        rows = np.concatenate([np.zeros(0, np.uint8), *(part.report for part in own)])
        counts = self._counts(this)
        sizes = _sizes(counts).sum(axis=1).tolist()
        if not world.is_root:
            process["bytes_sent"] += sizes[world.mpi_rank]  # the bytes of this report itself
        parts = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in (rows, scores, teachers, process)]
        # Without an evaluation all processes come directly from the downlink: a sleeping wait would take longer.
        sleeping = not self.layers or this.evaluated or self.run.scores_teachers(this.index)
        with watch("wait"):
            gathered = world.gather(np.concatenate(parts), sizes, payload=False, sleeping=sleeping)
        world.take_counters()
        if self.writer and gathered is not None:
            self._due = self.writer, this, gathered, counts, seconds["total"]

    def report(self, part: ClientResult) -> np.ndarray:
        """Return the row of one client as uint8; the process that trained the client passes it to the client's rank."""
        return np.array([self._row(part)], self._of_client).view(np.uint8)

    def settle(self) -> None:
        """Log the round that was closed last, if it is not yet logged; after that the row survives kill -9."""
        due, self._due = self._due, None
        if due:
            self.run.world.status.at(due[1].index, "logging")
            self._log(*due)

    def _recall(self, path: Path) -> None:
        """Restore the counts from the rounds in the log of a resumed run."""
        with costlog.open(path) as log:
            self.losses += log["rounds"]["student_loss"].tolist()
            for sent in log["downlink"]["bytes"]:
                self._broadcasts.append(self._broadcasts[-1] + int(sent))
            training = log["training"]
            self._last_seen.update(zip(training["client"].tolist(), training["round"].tolist(), strict=True))
            self._scores.recall(training, [self.run.evaluates(index) for index in range(log.rounds_completed)])

    def _row(self, part: ClientResult) -> tuple[Any, ...]:
        sums, out = np.zeros(self.run.task.sums), part.outcome
        update: tuple[Any, ...]
        if out is None:
            raise ValueError(f"client {part.client} was trained by another process, which reports it")
        if isinstance(out, RunFault):
            fault = f"{out} (layer {out.layer})".encode()[:160]
            layers = len(self.layers)
            update = np.nan, np.full(layers, np.nan), np.full(layers, -1), np.full(self._components, np.nan), fault
            return (np.nan,) * 5 + (sums, sums, *update)
        seconds = out.seconds_train, part.seconds_encode, out.seconds_evaluate
        update = part.norm, part.energies, part.paper_ranks, part.spectrum, b""
        return out.teacher_loss, out.student_loss, *seconds, out.teacher_sums, out.student_sums, *update

    def _counts(self, this: Round) -> Counts:
        """Return the parts of a report, in order: the dtype of the rows and the number of rows of every process."""
        run, size = self.run, self.run.world.world_size
        none = np.zeros(size, np.int64)
        chunks, hosted = none, none
        if this.evaluated and run.scores_student:
            chunks = np.array([len(run.test_chunks(mpi_rank)) for mpi_rank in range(size)])
        if run.scores_teachers(this.index):
            hosted = np.bincount(run.rank_of_client, minlength=size)
        return {
            "clients": (self._of_client, np.bincount(run.rank_of_client[this.cohort], minlength=size)),
            "scores": (self._of_score, chunks),
            "teachers": (self._of_score, hosted),
            "process": (self._of_process, none + 1),
        }

    def _log(self, writer: Writer, this: Round, gathered: np.ndarray, counts: Counts, seconds_total: float) -> None:
        sizes = _sizes(counts)
        parts = np.split(gathered, sizes.cumsum()[:-1])
        of = {
            name: np.concatenate(parts[at :: len(counts)]).view(kind)
            for at, (name, (kind, _)) in enumerate(counts.items())
        }
        rank_of_client = self.run.rank_of_client[this.cohort]
        clients = of["clients"][arrival(rank_of_client)]  # in client order, so that sums do not depend on the ranks
        teachers = (
            of["teachers"]["sums"][arrival(self.run.rank_of_client)] if len(of["teachers"]) else of["teachers"]["sums"]
        )
        process = of["process"]
        process["bytes_received"][0] += gathered.size - sizes[0].sum()  # the bytes of these reports themselves
        trained = clients["fault"] == b""
        for index in np.flatnonzero(~trained):
            text = f"update skipped: {clients['fault'][index].decode()}"
            writer.event(this.index, this.cohort[index], "warning", text)
        who = {"client": np.array(this.cohort), "mpi_rank": rank_of_client}
        uplink = self._messages(this.uplink, clients["energy"], clients["spectrum"]) | {
            name: ids[: len(this.uplink)] for name, ids in who.items()
        }
        spectrum = np.array([this.downlink_spectrum or np.zeros(self._components)])
        if protection := self.run.protection:
            uplink["norm"] = clients["norm"][: len(this.uplink)]
        downlink = self._messages(this.downlink, np.array([this.downlink_energies]), spectrum)
        for client, text in nan_scores(this.cohort, clients, of["scores"]["sums"]):
            writer.event(this.index, client, "warning", text)
        if late := straggler(clients["seconds_train"], rank_of_client.tolist(), self.run.world.hostnames):
            writer.event(this.index, this.cohort[late.place], "info", late.text)
        finished = self.run.task.finish(of["scores"]["sums"].sum(axis=0))
        rounds = {
            "round": this.index,
            "threshold": this.threshold,
            "cohort_size": len(this.cohort),
            "skipped_clients": len(trained) - int(trained.sum()),
            **(protection.columns(this.index, clients["norm"][trained]) if protection else {}),
            **self._costs(this, uplink, downlink),
            **self._paper(this, clients["paper_rank"][trained]),
            **{name: float(clients[name][trained].mean()) if trained.any() else np.nan for name in LOSSES},
            **self._scores.of_round(np.array(this.cohort)[trained].tolist(), clients[trained], this.evaluated),
            **{f"global_student_{metric}": finished[metric] for metric in self.run.task.metrics},
            **{
                f"global_teacher_{metric}": mean(values, teachers)
                for metric, values in self._scores.metrics(teachers).items()
            },
            **{
                f"seconds_{name}": float(process[name].max() if phase.shared else process[name][0])
                for name, phase in PHASES.items()
            },
            **({f"seconds_{ENCRYPT}": float(process[ENCRYPT].max())} if ENCRYPT in self._phases else {}),
            "seconds_total": seconds_total,
        }
        training = {name: clients[name] for name in (*LOSSES, *(f"seconds_{phase}" for phase in SHARED_PHASES))}
        for role in ROLES:
            training |= {f"{role}_{metric}": values for metric, values in self._scores.metrics(clients[role]).items()}
        mpi = {name: process[name] for name in COUNTERS}
        mpi |= {
            "seconds_compute": np.sum([process[phase] for phase in self._phases if phase in COMPUTING], axis=0),
            "seconds_wait": process["wait"],
        }
        writer.append_round(rounds, uplink, _only(downlink), mpi, training | who)
        self.losses.append(rounds["student_loss"])
        self.on_round(rounds)

    def _messages(
        self, receipts: Sequence[Receipt], energies: np.ndarray, spectra: np.ndarray
    ) -> dict[str, np.ndarray]:
        shape, nothing = (len(receipts), len(self.layers)), [(-1, 0)] * len(self.layers)
        layers = np.array([receipt.layers or nothing for receipt in receipts], np.int64).reshape(*shape, 2)
        total = np.array([receipt.bytes for receipt in receipts], np.int64)
        columns = {"bytes": total, "layer_rank": layers[..., 0], "layer_bytes": layers[..., 1]}
        columns["header_bytes"] = total - columns["layer_bytes"].sum(axis=1)
        if self.run.config.privacy.encrypts:
            columns["encryption_bytes"] = np.array([receipt.encryption for receipt in receipts], np.int64)
            columns["header_bytes"] -= columns["encryption_bytes"]
        columns["layer_energy"] = energies if energies.shape == shape else np.full(shape, np.nan)
        return columns | ({"spectrum": spectra[: len(receipts)]} if self._components else {})

    def _costs(self, this: Round, uplink: dict[str, np.ndarray], downlink: dict[str, np.ndarray]) -> dict[str, int]:
        cohort, broadcast = len(this.cohort), int(downlink["bytes"].sum())
        parts = [name for name in SUMMED if name in uplink]
        costs = {
            **{f"uplink_{name}": int(uplink[name].sum()) for name in parts},
            **{f"downlink_{name}": cohort * int(downlink[name].sum()) for name in parts},
            "student_dense_bytes": 2 * cohort * self._dense,
            "teacher_dense_bytes": 2 * 4 * sum(self.run.teacher_numbers[client] for client in this.cohort),
            "catchup_bytes": self._catchup(this),
        }
        self._broadcasts.append(self._broadcasts[-1] + broadcast)
        return costs

    def _paper(self, this: Round, ranks: np.ndarray) -> dict[str, int]:
        """Return bytes of uplink and downlink as the paper counts them; {} for a codec without the paper's ranks."""
        if not (self.run.exchange and self.run.exchange.codec.paper_rank):
            return {}
        down = np.array([this.downlink_paper_ranks], np.int64).reshape(-1, len(self.layers))
        legs = {"uplink": self._paper_bytes(ranks), "downlink": len(this.cohort) * self._paper_bytes(down)}
        return {f"{leg}_paper_bytes": count for leg, count in legs.items()}

    def _paper_bytes(self, ranks: np.ndarray) -> int:
        """Return 4 bytes per number: PK + K^2 + KQ numbers of a layer at rank K, all entries at rank -1 (paper)."""
        ranks = ranks.astype(np.int64)
        return 4 * int(np.where(ranks < 0, self._numel, ranks * (self._sides + ranks)).sum())

    def _catchup(self, this: Round) -> int:
        """Return the bytes that the members of the cohort would have to fetch before the round.

        Per member: the broadcasts that it missed or, if smaller, the dense student and the receiver's state.
        """
        missed = sum(
            min(self._broadcasts[-1] - self._broadcasts[self._last_seen[client] + 1], self._newcomer)
            for client in this.cohort
        )
        self._last_seen.update(dict.fromkeys(this.cohort, this.index))
        return missed


def _sizes(counts: Counts) -> np.ndarray:
    """Return the bytes of every process's report, [processes, kinds of rows]."""
    return np.array([kind.itemsize * rows for kind, rows in counts.values()]).T


def _only(table: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the only row of a table, or zeros if the method exchanges nothing."""
    return {
        name: column[0] if len(column) else np.zeros(column.shape[1:], column.dtype) for name, column in table.items()
    }
