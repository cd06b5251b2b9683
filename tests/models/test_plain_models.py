"""Models that return logits alone take part unchanged, with hidden features from the layers that are named."""

from __future__ import annotations

import numpy as np
import plain_models
import pytest
import torch
from command import Command
from mpirun import mpirun
from sessions import SMALL, assert_same_run
from simulate import play

from fedkd_mpi import models
from fedkd_mpi.errors import UserError

SHAPE = (1, 8, 8)
FEATURES = "features: [stem, body]"


def network(role: str, width: int, features: str = "") -> str:
    return (
        f"{role}={{name: plain_models:Small, width: {width}, learning_rate: 0.1{', ' if features else ''}{features}}}"
    )


def test_features_are_the_pooled_outputs_of_the_named_layers():
    model = models.build("plain_models:Small", SHAPE, 10, {"width": 6}, features=["stem", "body"])
    assert model.hidden_sizes == (6, 12)
    assert list(model.state_dict()) == list(plain_models.Small(width=6).state_dict())
    x = torch.randn(5, *SHAPE)
    output = model.eval()(x)
    for found, expected in zip(output.hidden, plain_models.hidden_of(model, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    again = plain_models.Small(width=6).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(output.logits, again(x))


def test_tokens_are_averaged_and_of_a_tuple_the_first_counts():
    model = models.build("plain_models:Tokens", SHAPE, 10, {}, features=["embed", "mix"]).eval()
    x = torch.randn(3, *SHAPE)
    embedded = model.embed(x[:, 0])
    expected = embedded.mean(1), model.mix(embedded)[0].mean(1)
    for found, truth in zip(model(x).hidden, expected, strict=True):
        torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("name", ["Small", "ByPlace", "made", "few", "handed_on"])
def test_what_the_signature_asks_for_is_given(name: str):
    model = models.build(f"plain_models:{name}", SHAPE, 7, {})
    assert model(torch.zeros(2, *SHAPE)).logits.shape == (2, 7)
    assert model.hidden_sizes == ()


@pytest.mark.parametrize(
    ("name", "features", "says"),
    [
        ("Small", ["stem", "bodi"], "student: features: there is no layer bodi; did you mean body?"),
        ("Small", ["fc", ""], "there is no layer"),
        ("Tokens", ["mix.flat"], "there is no layer mix.flat"),
        ("Broken", ["fc"], "student: plain_models:Broken: RuntimeError: "),
        ("Explodes", None, "student: plain_models:Explodes: ZeroDivisionError: no width (plain_models.py, line "),
        ("Dictionary", ["stem"], "returns a dict"),
        ("system", None, "is not a torch.nn.Module or function that takes num_classes, or whose annotation says"),
    ],
)
def test_what_cannot_be_adapted_is_named(name: str, features: list[str] | None, says: str):
    with pytest.raises(UserError) as refused:
        models.build(f"plain_models:{name}", SHAPE, 10, {}, "student", features)
    assert says in str(refused.value)


def test_models_of_this_package_have_features_of_their_own():
    with pytest.raises(UserError, match="remove the key"):
        models.build("mlp", SHAPE, 10, {"hidden": [8]}, "student", ["layers"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Thousand", "logits of shape [2, 1000] for 2 samples and 10 classes"),
        ("Broken", "student: a trial on 2 samples: RuntimeError: "),
        ("Dictionary", "a dict instead of logits"),
    ],
)
def test_a_trial_tells_what_is_wrong_before_the_first_round(command: Command, name: str, says: str):
    code, _, err = command(f"student={{name: 'plain_models:{name}', learning_rate: 0.1}}")
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


def test_without_features_the_hidden_term_is_off_and_said_once(command: Command):
    code, out, err = command(network("student", 4), "rounds=2", "--output", "own.h5")
    assert (code, err) == (0, "")
    assert out.count("student: the network returns logits alone, so equation 5 has no hidden term") == 1


def test_a_model_may_compute_while_it_is_built_and_nothing_is_warned_of(command: Command):
    gradual = "teacher={name: plain_models:Gradual, features: [stem, body], learning_rate: 0.1}"
    code, out, err = command(gradual, network("student", 4, FEATURES), "rounds=1", "--output", "own.h5")
    assert (code, err) == (0, "")
    assert "log: own.h5" in out


def test_features_change_what_is_learned_and_no_hidden_equals_the_key_switched_off():
    how = [network("teacher", 8, FEATURES), "rounds=2", "num_clients=3"]
    with_features, _ = play(*how, network("student", 4, FEATURES))
    without, _ = play(*how, network("student", 4))
    off, _ = play(*how, network("student", 4, FEATURES), "distillation.hidden=false")
    assert torch.equal(without.exchange.replica, off.exchange.replica)
    assert not torch.equal(without.exchange.replica, with_features.exchange.replica)


def test_stacked_features_are_those_of_one_network_after_another():
    features = f"{FEATURES}, dropout: 0"
    how = [network("teacher", 8, features), network("student", 4, features), "rounds=1", "num_clients=2"]
    plain, _ = play(*how, "compression.codec=none")
    other, _ = play(*how, "compression.codec=none", "stack=2")
    np.testing.assert_allclose(other.exchange.replica.numpy(), plain.exchange.replica.numpy(), atol=2e-5)


def test_plain_models_give_the_same_bits_on_any_number_of_processes(tmp_path):
    how = [*SMALL, network("student", 4, FEATURES), network("teacher", 8, FEATURES), "rounds=2"]
    for n in (1, 3):
        done = mpirun(n, "-m", "fedkd_mpi.run", *how, "--output", tmp_path / f"{n}.h5", timeout=120)
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "1.h5", tmp_path / "3.h5")
