"""Teachers of several architectures with one student: who has which, what they cost, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from command import TINY, Command, assert_refused
from simulate import play
from worker_simulation import TEACHERS

from fedkd_mpi import doctor
from fedkd_mpi.config.load import load
from fedkd_mpi.methods.fedkd import FedKD
from fedkd_mpi.simulation.state import Simulation

NUMBERS = [64 * 9 + 9 + 9 * 8 + 8 + 8 * 10 + 10, 64 * 5 + 5 + 5 * 10 + 10, 4 * 9 + 4 + 36 * 6 + 6 + 6 * 10 + 10]
MIXED = ["teacher=null", TEACHERS]


@pytest.fixture(scope="module")
def played() -> tuple[Simulation, dict]:
    return play("num_clients=5", "cohort_size=3", "rounds=4", *MIXED)


def test_the_log_counts_the_teachers_of_the_very_cohort(played):
    run, log = played
    assert run.teacher_numbers == [NUMBERS[client % 3] for client in range(5)]
    for row, bytes_ in enumerate(log["rounds"]["teacher_dense_bytes"]):
        members = log["uplink"]["client"][log["uplink"]["round"] == row]
        assert bytes_ == 2 * 4 * sum(NUMBERS[client % 3] for client in members)
    assert len(set(log["rounds"]["teacher_dense_bytes"])) > 1


def test_each_client_keeps_the_teacher_and_the_maps_of_its_own_architecture(played):
    run, _ = played
    seen = {client.id: client.tensors["private"] for client in run.clients.values() if client.tensors}
    assert len(seen) > 3
    for client, private in seen.items():
        network = run.trainer.networks_for(client)
        teacher = sum(tensor.numel() for tensor in network.module["teacher"].parameters())
        assert teacher == NUMBERS[client % 3]
        assert private.shape == network.state.shape
        wide = [linear.weight.shape[0] for linear in network.module["hidden_map"].maps]
        assert wide == [[8], [5], [6]][client % 3]  # the student's one layer meets the teacher's top one


def test_checkpoints_are_estimated_for_every_kind(played):
    run, _ = played
    method = FedKD(run.config, run.task)
    bare = [sum(p.numel() for p in method.private(kind).parameters()) for kind in range(3)]
    student = run.exchange.student.state.nbytes
    teachers = 4 * sum(bare[client % 3] for client in range(5))
    assert doctor.checkpoint_bytes(run) == 3 * (2 * teachers + (5 * 3 + 3) * student)


def test_a_list_of_one_is_that_teacher_for_all():
    one = "teachers=[{name: mlp, hidden: [6], learning_rate: 0.1}]"
    same = "teacher={name: mlp, hidden: [6], learning_rate: 0.1}"
    mixed, plain = play("num_clients=3", "teacher=null", one), play("num_clients=3", same)
    for client in range(3):
        pair = (run.clients[client].tensors["private"] for run, _ in (mixed, plain))
        assert np.array_equal(*pair)
    assert play("num_clients=3", "teacher=null", one, "method=fedavg", "averaging.network=teacher")[1]


def test_the_dry_run_names_every_kind(command: Command):
    code, out, err = command(*MIXED, "--dry-run")
    assert (code, err) == (0, "")
    for kind, name in enumerate(("mlp", "mlp", "cnn")):
        assert any(f"client {kind}, {kind + 3}" in line and name in line for line in out.splitlines())
        assert f"{NUMBERS[kind]:,} numbers" in out


REFUSED = {
    "both": ([TEACHERS], "give one of teacher (all clients have the same) and teachers (a list, in turn)"),
    "neither": (["teacher=null"], "give one of teacher"),
    "averaged": (
        [*MIXED, "method=fedavg", "averaging.network=teacher"],
        "method=fedavg with averaging.network=teacher",
    ),
    "empty": (["teacher=null", "teachers=[]"], "teachers=[]"),
    "unknown": (["teacher=null", "teachers=[{name: mpl, learning_rate: 1}]"], "teachers.0.name=mpl is unknown"),
    "option": (
        ["teacher=null", "teachers=[{name: mlp, learning_rate: 1}, {name: mlp, widht: 3, learning_rate: 1}]"],
        "unknown key teachers.1.widht",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(command: Command, case: str):
    overrides, words = REFUSED[case]
    assert_refused(command(*overrides), words)


def test_a_student_averaged_beside_them_is_no_matter_of_theirs():
    config = load(overrides=[*TINY, *MIXED, "method=fedavg"])
    assert config.network("student").name == "mlp"
