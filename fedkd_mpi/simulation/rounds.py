"""The round loop: Algorithm 1 of FedKD, the same function on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from fedkd_mpi.client.client import Client
from fedkd_mpi.client.result import ClientResult
from fedkd_mpi.client.trainer import EVALUATION_BATCH, TrainingResult, score
from fedkd_mpi.codecs import buffers
from fedkd_mpi.codecs.message import Message, Receipt, make_message
from fedkd_mpi.codecs.wire import SERVER, UPDATE, Header, Record, WireError
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication import exchange
from fedkd_mpi.errors import RunFault, located
from fedkd_mpi.scheduling import cohort
from fedkd_mpi.simulation.accounting import Accounting, Round
from fedkd_mpi.simulation.server import apply
from fedkd_mpi.simulation.state import Simulation

WAITING = 8 * 2**20  # bytes of updates that are collected and then encoded at once, a third faster for small updates


def simulate(
    run: Simulation, accounting: Accounting, boundary: Callable[[int], str | None], first: int = 0
) -> str | None:
    """Run the rounds from `first` on and return the reason to stop early, None after the last round. Collective.

    Rank 0 is the server; if it is the only process, it also trains the clients. `boundary` is called with the number of
    completed rounds before each round and after the last; it returns a reason to stop or None. Raises RunFault naming
    round, client and layer.
    """
    watch = Stopwatch()
    try:
        for index in range(first, run.config.rounds):
            if reason := boundary(index):
                return reason
            with located(round=index):
                play_round(run, accounting, index, watch)
        return boundary(run.config.rounds)
    finally:
        accounting.settle()


def play_round(run: Simulation, accounting: Accounting, index: int, watch: Stopwatch) -> None:
    """Run one round: sample, train, encode, gather, aggregate, broadcast, apply, score, report. Collective.

    The round is logged by accounting.settle(), which the next round calls first.
    """
    accounting.settle()
    this = Round(
        index=index,
        threshold=run.config.threshold(index),
        cohort=cohort.sample(run.config.seed, index, run.config.num_clients, run.config.clients_per_round),
        evaluated=run.evaluates(index),
    )
    own = take_part(run, watch, this, accounting)
    if run.student:
        communicate(run, watch, this, own)
    with watch("evaluate"):
        scores, teachers = evaluate(run, this)
    run.world.status.at(index, "reporting")
    accounting.close(this, own, scores, teachers, watch)


def stack_groups(run: Simulation, cohort: Iterable[int]) -> list[list[Client]]:
    """Return the clients of a cohort that this process may train, in groups of up to `stack` clients of one family.

    The clients of a group are trained at once.
    """
    own, found = run.work_queue.clients if run.work_queue else run.clients, {}
    for client in cohort:
        if client in own:
            found.setdefault(int(run.families[client]), []).append(own[client])
    size = run.config.stack
    return [family[at : at + size] for family in found.values() for at in range(0, len(family), size)]


def take_part(run: Simulation, watch: Stopwatch, this: Round, accounting: Accounting) -> list[ClientResult]:
    """Train clients of the cohort from the student replica and encode their updates for the uplink.

    Returns the results of this rank's clients in client order; any process of the node may have trained them
    (work_queue.py).
    """
    contributions: list[ClientResult] = []
    waiting: list[tuple[Client, TrainingResult | RunFault]] = []
    size = run.replica.nbytes if run.student else 0
    most = run.config.clients_in_memory or len(this.cohort)  # an offloaded client would have to be read again
    for clients in (run.work_queue or run.state_cache).each(stack_groups(run, this.cohort)):
        waiting += zip(clients, train(run, this, clients), strict=True)
        if len(waiting) * size >= WAITING or len(waiting) >= most:
            contributions += contribute(run, watch, this, waiting, accounting)
            waiting.clear()
    contributions += contribute(run, watch, this, waiting, accounting)
    if run.work_queue:
        run.world.status.at(this.index, "waiting for clients that other processes train")
        with watch("wait"):
            contributions += run.work_queue.await_others(this.cohort, contributions)
    return sorted(contributions, key=lambda contribution: contribution.client)


def train(run: Simulation, this: Round, clients: Sequence[Client]) -> list[TrainingResult | RunFault]:
    """Train one client, or several at once, and return the result or fault of each.

    With on_nonfinite=abort the first fault is raised.
    """
    first, how = clients[0], {"evaluate": this.evaluated}
    run.world.status.at(this.index, "training", first.id)
    with located(round=this.index, client=first.id):
        if len(clients) > 1:
            outcomes = run.trainer.train_stack(clients, this.index, run.replica, **how)
        else:
            try:
                outcomes = [run.trainer.train(first, this.index, run.replica, **how)]
            except RunFault as fault:
                outcomes = [fault]
    for outcome in outcomes:
        if isinstance(outcome, RunFault) and run.config.on_nonfinite == "abort":
            raise outcome
    return outcomes


def contribute(
    run: Simulation,
    watch: Stopwatch,
    this: Round,
    trained: Sequence[tuple[Client, TrainingResult | RunFault]],
    accounting: Accounting,
) -> list[ClientResult]:
    """Return the results of trained clients that belong to this rank, with their encoded messages.

    After a fault the message has no update. Results of other ranks' clients are passed to those ranks.
    """
    contributions: list[ClientResult] = []
    updates: list[tuple[Client, ClientResult]] = []
    for client, outcome in trained:
        if isinstance(outcome, RunFault):
            skipped = make_message(this.index, client.id, len(client.train_indices), None)
            contributions.append(ClientResult(client.id, skipped, fault=outcome))
            continue
        watch.add("train", outcome.seconds_train)
        watch.add("evaluate", outcome.seconds_evaluate)
        contributions.append(ClientResult(client.id, None, outcome))
        if outcome.update is not None:
            updates.append((client, contributions[-1]))
    if updates:
        encode(run, watch, this, updates)
    for part in contributions:
        part.report = accounting.report(part)
    return run.work_queue.hand_over(contributions) if run.work_queue else contributions


def encode(run: Simulation, watch: Stopwatch, this: Round, updates: Sequence[tuple[Client, ClientResult]]) -> None:
    """Encode the updates of clients for the uplink, all at once; each gets an equal share of the encoding time."""
    before, codec = watch.seconds["encode"], run.codec.at(this.index)
    with watch("encode"):
        parts = [run.student.exchanged_parts(part.outcome.update) for _, part in updates]
        states = [client.part("codec.") for client, _ in updates]
        rngs = (generator(run.config.seed, "codec", this.index, client.id) for client, _ in updates)
        encoded = codec.encode_each([parameters for parameters, _ in parts], this.threshold, states, rngs)
        for (client, part), state, (_, statistics) in zip(updates, states, parts, strict=True):
            with located(round=this.index, client=client.id):
                records = next(encoded) + buffers.encode(statistics)
            client.tensors.update({f"codec.{name}": tensor for name, tensor in state.items()})
            part.message = make_message(this.index, client.id, len(client.train_indices), records)
            part.energies = [record.energy for record in records]
            part.paper_ranks = [record.paper_rank for record in records]
    for _, part in updates:
        part.seconds_encode = (watch.seconds["encode"] - before) / len(updates)
        if run.config.log.spectra:
            part.spectrum = run.student.spectrum(part.outcome.update)
        part.outcome.update = None  # free its memory for the next updates


def communicate(run: Simulation, watch: Stopwatch, this: Round, own: list[ClientResult]) -> None:
    """Send the updates to the server and the server's message to every process.

    A process applies the message when it needs its replica.
    """
    run.world.status.at(this.index, "uplink")
    layers = len(run.student.exchanged_layers)
    messages = [contribution.message for contribution in own]
    arriving = exchange.uplink(run.world, watch, messages, run.rank_of_client[this.cohort])
    message = None
    if run.server:
        run.world.status.at(this.index, "aggregation")
        with watch("aggregate"):
            update = run.server.aggregate(this.index, read(arriving, layers, this.uplink))
            records = None if update is None else run.server.encode(this.index, update, this.threshold)
            this.downlink_energies = [record.energy for record in records or []]
            this.downlink_paper_ranks = [record.paper_rank for record in records or []]
            if run.config.log.spectra and update is not None:
                this.downlink_spectrum = run.student.spectrum(update)
            message = make_message(this.index, SERVER, 0, records)
    for _ in arriving:  # yields nothing on other ranks, but sends their messages
        pass
    run.world.status.at(this.index, "downlink")
    run.pending_downlinks.append(exchange.downlink(run.world, watch, message))
    if (
        run.needs_replica(this.index, this.evaluated)
        or sum(each.whole.size for each in run.pending_downlinks) > WAITING
    ):
        with watch("broadcast"):
            apply_pending(run, this.downlink)


def apply_pending(run: Simulation, receipts: list[Receipt]) -> None:
    """Apply the pending downlink messages to this process's replica, in their order."""
    pending_downlinks, run.pending_downlinks = run.pending_downlinks, []
    codec = run.codec.downlink()
    for header, records in read(pending_downlinks, len(run.student.exchanged_layers), receipts):
        if header.kind == UPDATE:
            count = len(run.student.parameter_layers)
            try:
                decoded = codec.decode(records[:count], run.device)
                statistics = buffers.decode(records[count:], run.student.exchanged_buffers, run.device)
            except WireError as error:
                raise RunFault(f"downlink message: {error}", round=header.round) from None
            update = codec.receive(decoded, run.downlink_state, 1.0)
            apply(run.student, run.replica, update, run.config.server, run.downlink_state, statistics)


def read(messages: Iterable[Message], layers: int, receipts: list[Receipt]) -> Iterator[tuple[Header, list[Record]]]:
    """Yield header and records of each message, and append its size to `receipts` for the log."""
    for message in messages:
        records = message.records(layers)
        receipts.append(message.receipt(records))
        yield message.parsed, records


def evaluate(run: Simulation, this: Round) -> tuple[np.ndarray, np.ndarray]:
    """Score the global student on this process's share of the global test set; after the last round, also its teachers.

    Teachers are scored on the whole global test set. Returns the task's sums, [chunks of the share, sums] and
    [clients, sums], without rows if nothing is scored.
    """
    run.world.status.at(this.index, "evaluation")
    scores = teachers = np.zeros((0, run.task.sums))
    if this.evaluated and run.scores_student:
        run.student.load(run.replica)
        run.student.reset_others()
        chunks = (
            np.arange(at, min(at + EVALUATION_BATCH, run.test_size)) for at in run.test_chunks(run.world.mpi_rank)
        )
        score_rows = [score(run.task, run.student.module, run.data.test, chunk, run.device) for chunk in chunks]
        scores = np.array(score_rows).reshape(-1, run.task.sums)
    if run.scores_teachers(this.index):
        everything, rows = np.arange(run.test_size), []
        for client in run.clients.values():
            rows.append(run.trainer.score_teacher(client, run.data.test, everything))
            (run.work_queue or run.state_cache).release(client)
        teachers = np.array(rows).reshape(-1, run.task.sums)
    return scores, teachers
