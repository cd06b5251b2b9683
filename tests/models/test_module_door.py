"""Whatever tensors a module has, a run gives what it gives with plain dense ones, or is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from mpirun import mpirun
from odd_models import FEATURES, REFUSED, STATES, WITH_BUFFERS
from sessions import SMALL, assert_same_run
from simulate import play

from fedkd_mpi.simulation.rounds import Simulation

WAYS = {
    "plain": ["compression.codec=rdsvd", "compression.error_feedback=ef", "server.learning_rate=2"],
    "adam": ["optimizer={name: adam, momentum: 0}", "compression.codec=none"],
    "stack": ["stack=2", "compression.codec=none"],
    "scaffold": ["method=scaffold", "averaging.network=student", "compression.codec=none", "optimizer.momentum=0"],
    "clients on disk": ["clients_in_memory=1"],
}


def overrides(features: list[str], *, dense: bool) -> list[str]:
    names = ", ".join(features)
    student = f"student={{name: odd_models:Odd, traits: [{names}], dense: {str(dense).lower()}, learning_rate: 0.1}}"
    return [student, "rounds=2", "num_clients=4", "cohort_size=3", "checkpoint.every=null"]


def states(run: Simulation) -> dict[str, torch.Tensor]:
    found = {f"{client.id}/{name}": t for client in run.clients.values() for name, t in client.tensors.items()}
    return found | {"replica": run.exchange.replica}


@settings(max_examples=25)
@given(
    features=st.lists(st.sampled_from(sorted(FEATURES)), min_size=1, max_size=4, unique=True),
    way=st.sampled_from(sorted(WAYS)),
)
def test_a_run_is_that_of_a_dense_clone(features: list[str], way: str):
    if "shared module" in features:  # the others change one of two modules that are then the same
        features = ["shared module", *(f for f in features if f in WITH_BUFFERS | {"scalar", "empty"})]
    if norms := {"weight norm", "old weight norm"} & set(features):
        kept = {min(norms)}  # both would make two of one weight
        features = [f for f in features if f in kept or f not in ("tied", "frozen", "expanded", *norms)]
    if way == "stack":
        features = [f for f in features if f not in WITH_BUFFERS] or ["tied"]
    runs = [play(*overrides(features, dense=dense), *WAYS[way]) for dense in (False, True)]
    (odd, log), (dense, truth) = ((states(run), log) for run, log in runs)
    assert odd.keys() == dense.keys()
    for name, tensor in odd.items():
        assert torch.equal(tensor, dense[name]), (features, way, name)
    for name, column in truth["rounds"].items():
        if not name.startswith("seconds"):
            np.testing.assert_array_equal(log["rounds"][name], column)


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_what_cannot_be_exchanged_is_refused_by_name(command: Command, role: str, what: str):
    if role == "teacher" and "spectral norm" in what:
        pytest.skip("a teacher keeps its power iterates")
    code, out, err = command(f"{role}={{name: odd_models:Refused, what: {what}, learning_rate: 0.1}}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert role in err
    assert REFUSED[what][1] in err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Untrained", "no trainable parameters"),
        ("BareTensor", "a tensor instead of"),
        ("WrongWidths", "hidden_sizes are [9]"),
    ],
)
def test_what_no_loss_can_take_is_refused_at_the_start(command: Command, name: str, says: str):
    code, out, err = command(f"student={{name: odd_models:{name}, learning_rate: 0.1}}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_buffers_of_all_kinds_are_the_same_on_any_number_of_processes(tmp_path):
    features = ", ".join(["counter", "replaced counter", "cumulative norm", "shared statistics", "root buffer"])
    how = [*SMALL, f"student={{name: odd_models:Odd, traits: [{features}], learning_rate: 0.1}}", "rounds=4"]
    for n in (1, 3):
        done = mpirun(n, "-m", "fedkd_mpi.run", *how, "--output", tmp_path / f"{n}.h5")
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "1.h5", tmp_path / "3.h5")


def test_single_samples_that_batch_norm_cannot_train_on_are_refused(command: Command):
    teacher = "teacher={name: resnet, depth: 18, width: 4, norm: batch, learning_rate: 0.1}"
    split = "partition={kind: dirichlet, alpha: 0.05, min_samples: 2}"
    code, _, err = command("num_clients=20", split, "seed=3", "rounds=1", teacher)
    assert (code, err.count("\n")) == (2, 1)
    assert "client 11 has one training sample, but teacher normalises" in err


@pytest.mark.parametrize("what", STATES)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_state_that_would_pass_from_client_to_client_is_refused(command: Command, role: str, what: str):
    network = f"{role}={{name: odd_models:Stateful, what: {what}, learning_rate: 0.1}}"
    code, _, err = command(network, "num_clients=4", "rounds=1", "checkpoint.every=null")
    if STATES[what][1] is None:
        assert code == 0, err
    else:
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{role}: " in err
        assert STATES[what][1] in err


@pytest.mark.parametrize("padding", ["null", "0", "2"])
def test_padding_tokens_of_stacked_embeddings_are_not_trained(padding: str):
    student = f"student={{name: odd_models:Embeds, padding: {padding}, learning_rate: 0.3}}"
    how = [
        student,
        "rounds=2",
        "num_clients=4",
        "compression.codec=none",
        "optimizer.momentum=0",
        "checkpoint.every=null",
    ]
    alone, stacked = (play(*how, f"stack={n}")[0].exchange.replica for n in (1, 3))
    torch.testing.assert_close(stacked, alone, rtol=1e-4, atol=1e-5)


def test_gradients_that_stacking_cannot_give_are_refused(command: Command):
    student = "student={name: odd_models:Embeds, padding: null, sparse: true, learning_rate: 0.3}"
    code, _, err = command(student, "stack=2")
    assert (code, err.count("\n")) == (2, 1)
    assert "stack=2: these networks cannot be stacked" in err


def test_weight_norm_of_old_is_no_spectral_norm():
    how = [
        "student={name: odd_models:Odd, traits: [old weight norm], learning_rate: 0.1}",
        "rounds=1",
        *WAYS["scaffold"],
    ]
    _, log = play(*how, "num_clients=3", "checkpoint.every=null")
    assert np.isfinite(log["rounds"]["student_loss"]).all()
