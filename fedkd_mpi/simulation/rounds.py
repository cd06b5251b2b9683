"""The round loop: Algorithm 1 of FedKD, the same function on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedkd_mpi.client.client import Client
from fedkd_mpi.client.result import ClientResult
from fedkd_mpi.client.scoring import EVALUATION_BATCH, score
from fedkd_mpi.client.trainer import Trained
from fedkd_mpi.codecs import buffers
from fedkd_mpi.codecs.message import Message, Receipt, make_message
from fedkd_mpi.codecs.wire import SERVER, UPDATE, Header, Record, WireError
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.common.stopwatch import Stopwatch
from fedkd_mpi.communication.exchange import downlink, uplink
from fedkd_mpi.errors import RunFault, located
from fedkd_mpi.simulation.accounting import Accounting, Round
from fedkd_mpi.simulation.server import apply
from fedkd_mpi.simulation.state import Exchange, Simulation

if TYPE_CHECKING:
    from torch import Tensor

WAITING = 8 * 2**20  # bytes of updates that are collected and then encoded at once, a third faster for small updates


class Update(NamedTuple):
    """What a client has learned in a round (the student's change, flat), and where its message is to go."""

    client: Client
    part: ClientResult
    update: Tensor


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
        threshold=run.plan.threshold(index),
        cohort=run.plan.cohort(index),
        evaluated=run.evaluates(index),
    )
    if index and run.exchange and run.exchange.codec.follows_loss:
        follow_loss(run, run.exchange, index, accounting.losses)
    own = take_part(run, watch, this, accounting)
    if run.exchange:
        communicate(run, run.exchange, watch, this, own)
    with watch("evaluate"):
        scores, teachers = evaluate(run, this)
    run.world.status.at(index, "reporting")
    accounting.close(this, own, scores, teachers, watch)


def follow_loss(run: Simulation, exchange: Exchange, index: int, known: Sequence[float]) -> None:
    """Choose the codec of a round by the losses of all rounds before, which rank 0 has from the log. Collective."""
    losses = np.array(known, np.float64) if run.world.is_root else np.zeros(index)
    run.world.broadcast(losses)
    exchange.codec = exchange.codec.follow(losses.tolist())
    if exchange.server:
        exchange.server.codec = exchange.codec


def stack_groups(run: Simulation, cohort: Iterable[int]) -> list[list[Client]]:
    """Return the clients of a cohort that this process may train, in groups of up to `stack` clients of one family.

    The clients of a group are trained at once.
    """
    own = run.schedule.clients
    found: dict[int, list[Client]] = {}
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
    waiting: list[tuple[Client, Trained]] = []
    size = run.exchange.replica.nbytes if run.exchange else 0
    most = run.config.clients_in_memory or len(this.cohort)  # an offloaded client would have to be read again
    for clients in run.schedule.each(stack_groups(run, this.cohort)):
        waiting += zip(clients, train(run, this, clients), strict=True)
        if len(waiting) * size >= WAITING or len(waiting) >= most:
            contributions += contribute(run, watch, this, waiting, accounting)
            waiting.clear()
    contributions += contribute(run, watch, this, waiting, accounting)
    with watch("wait"):
        contributions += run.schedule.await_others(this.cohort, contributions)
    return sorted(contributions, key=lambda contribution: contribution.client)


def train(run: Simulation, this: Round, clients: Sequence[Client]) -> list[Trained]:
    """Train one client, or several at once, and return the result or fault of each.

    With on_nonfinite=abort the first fault is raised.
    """
    first, replica = clients[0], run.exchange.replica if run.exchange else None
    outcomes: list[Trained]
    run.world.status.at(this.index, "training", first.id)
    with located(round=this.index, client=first.id):
        if len(clients) > 1:
            outcomes = run.trainer.train_stack(clients, this.index, replica, evaluate=this.evaluated)
        else:
            try:
                outcomes = [run.trainer.train(first, this.index, replica, evaluate=this.evaluated)]
            except RunFault as fault:
                outcomes = [fault]
    run.world.status.trained += len(clients)
    for outcome in outcomes:
        if isinstance(outcome, RunFault) and run.config.on_nonfinite == "abort":
            raise outcome
    return outcomes


def contribute(
    run: Simulation,
    watch: Stopwatch,
    this: Round,
    trained: Sequence[tuple[Client, Trained]],
    accounting: Accounting,
) -> list[ClientResult]:
    """Return the results of trained clients that belong to this rank, with their encoded messages.

    After a fault the message has no update. Results of other ranks' clients are passed to those ranks.
    """
    contributions: list[ClientResult] = []
    updates: list[Update] = []
    for client, outcome in trained:
        if isinstance(outcome, RunFault):
            skipped = make_message(this.index, client.id, len(client.train_indices), None)
            contributions.append(ClientResult(client.id, skipped, outcome))
            continue
        watch.add("train", outcome.seconds_train)
        watch.add("evaluate", outcome.seconds_evaluate)
        contributions.append(ClientResult(client.id, None, outcome))
        if outcome.update is not None:
            updates.append(Update(client, contributions[-1], outcome.update))
            outcome.update = None  # `updates` alone hold it, so that its memory is free once it is encoded
    if run.exchange and updates:
        encode(run, run.exchange, watch, this, updates)
    for part in contributions:
        part.report = accounting.report(part)
    return run.schedule.hand_over(contributions)


def encode(run: Simulation, exchange: Exchange, watch: Stopwatch, this: Round, updates: Sequence[Update]) -> None:
    """Encode the updates of clients for the uplink, all at once; each gets an equal share of the encoding time."""
    before, codec = watch.seconds["encode"], exchange.codec.at(this.index)
    with watch("encode"):
        if protection := exchange.protection:
            for client, part, update in updates:
                part.norm = protection.on_update(exchange.student, update, this.index, client.id)
        parts = [exchange.student.exchanged_parts(update) for *_, update in updates]
        states = [client.part("codec.") for client, *_ in updates]
        rngs = (generator(run.config.seed, "codec", this.index, client.id) for client, *_ in updates)
        encoded = codec.encode_each([parameters for parameters, _ in parts], this.threshold, states, rngs)
        for (client, part, _), state, (_, statistics) in zip(updates, states, parts, strict=True):
            with located(round=this.index, client=client.id):
                records = next(encoded) + buffers.encode(statistics, alone=exchange.student.only_buffers)
            client.replace("codec.", state)
            part.message = make_message(this.index, client.id, len(client.train_indices), records)
            part.energies = [record.energy for record in records]
            part.paper_ranks = [record.paper_rank for record in records]
    for _, part, update in updates:
        part.seconds_encode = (watch.seconds["encode"] - before) / len(updates)
        if run.config.log.spectra:
            part.spectrum = exchange.student.spectrum(update)


def communicate(
    run: Simulation, exchange: Exchange, watch: Stopwatch, this: Round, own: Sequence[ClientResult]
) -> None:
    """Send the updates to the server and the server's message to every process.

    A process applies the message when it needs its replica.
    """
    run.world.status.at(this.index, "uplink")
    layers, keys = len(exchange.student.exchanged_layers), exchange.encryption
    messages = [contribution.message for contribution in own if contribution.message]  # all have one
    if keys:
        with watch("encrypt"):
            messages = [keys.seal(message) for message in messages]
    arriving = uplink(run.world, watch, messages, run.rank_of_client[this.cohort], this.cohort)
    if keys:
        arriving = keys.unseal_each(arriving, this.cohort, this.index, watch)
    message = None
    if exchange.server:
        run.world.status.at(this.index, "aggregation")
        with watch("aggregate"):
            update = exchange.server.aggregate(this.index, read(arriving, layers, this.uplink))
            records = None if update is None else exchange.server.encode(this.index, update, this.threshold)
            this.downlink_energies = [record.energy for record in records or []]
            this.downlink_paper_ranks = [record.paper_rank for record in records or []]
            if run.config.log.spectra and update is not None:
                this.downlink_spectrum = exchange.student.spectrum(update)
            message = make_message(this.index, SERVER, 0, records)
        if keys:
            with watch("encrypt"):
                message = keys.seal(message)
    for _ in arriving:  # yields nothing on other ranks, but sends their messages
        pass
    run.world.status.at(this.index, "downlink")
    received = downlink(run.world, watch, message)
    if keys:
        with watch("encrypt"):
            received = keys.unseal(received, SERVER, this.index)
    exchange.pending_downlinks.append(received)
    waiting = sum(message.whole.size for message in exchange.pending_downlinks)
    if run.needs_replica(this.index, this.evaluated) or waiting > WAITING:
        with watch("broadcast"):
            apply_pending(run, exchange, this.downlink)


def apply_pending(run: Simulation, exchange: Exchange, receipts: list[Receipt]) -> None:
    """Apply the pending downlink messages to this process's replica, in their order."""
    pending_downlinks, exchange.pending_downlinks = exchange.pending_downlinks, []
    codec, student, state = exchange.codec.downlink(), exchange.student, exchange.downlink_state
    for header, records in read(pending_downlinks, len(student.exchanged_layers), receipts):
        if header.kind == UPDATE:
            count = len(student.parameter_layers)
            try:
                decoded = codec.decode(records[:count], run.device)
                statistics = buffers.decode(records[count:], student.exchanged_buffers, run.device)
            except WireError as error:
                raise RunFault(f"downlink message: {error}", round=header.round) from None
            update = codec.receive(decoded, state, 1.0)
            apply(student, exchange.replica, update, run.config.server, state, statistics)


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
    if this.evaluated and run.exchange and run.scores_student:
        student = run.exchange.student
        student.load(run.exchange.replica)
        student.reset_others()
        chunks = (run.data.test_indices[at : at + EVALUATION_BATCH] for at in run.test_chunks(run.world.mpi_rank))
        score_rows = [score(run.task, student.module, run.data.test, chunk, run.device) for chunk in chunks]
        scores = np.array(score_rows).reshape(-1, run.task.sums)
    if run.scores_teachers(this.index):
        rows = []
        for client in run.clients.values():
            rows.append(run.trainer.score_teacher(client, run.data.test, run.data.test_indices))
            run.schedule.release(client)
        teachers = np.array(rows).reshape(-1, run.task.sums)
    return scores, teachers
