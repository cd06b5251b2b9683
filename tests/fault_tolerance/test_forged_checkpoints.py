"""Whole checkpoints whose tensors are not this run's: each kind of tensor, of another shape or type, missing, added."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sessions import SMALL, assert_same_run, checkpoints, replace_tensor

from fedkd_mpi import costlog
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config.load import parse
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.run import main
from fedkd_mpi.simulation import saved_state
from fedkd_mpi.simulation.setup import load_data, prepare

ONE_ROUND = "time_limit=0.001"
CNN = "{name: cnn, channels: [4], padding: 1, kernel_size: 3, hidden: [8], norm: batch, learning_rate: 0.1}"
ADAM = ["optimizer.name=adam", "optimizer.momentum=0"]
VARIANTS = {
    "adam, residuals": [*ADAM, "compression.codec=rdsvd", "compression.error_feedback=ef"],
    "momentum, estimates": ["optimizer.momentum=0.9", "compression.codec=powersgd", "compression.error_feedback=ef21"],
    "warm starts, moments": [
        "compression.codec=svd",
        "compression.warm_start=true",
        "server.optimizer=fedadam",
        "server.learning_rate=0.01",
    ],
    "a budget": ["compression.codec=svd", "compression.byte_budget=6000"],
    "a sketch": ["compression.codec=fetchsgd"],
    "buffers": [f"teacher={CNN}", f"student={CNN}", "server.buffers=local"],
    "control variates": ["method=scaffold", "compression.codec=none"],
    "own codec": ["compression.codec=remembering:Rounding"],
    "own optimiser, float16": ["optimizer={name: own_optimizers:Base}", "precision=float16"],
}
# Kinds of tensors that each of them must have, so that none is left out unseen.
MOMENTS = [f"client/optimizer.{network}.{key}" for network in ("private", "student") for key in ("exp_avg", "step")]
KINDS = {
    "adam, residuals": [*MOMENTS, "client/codec.unfolding", "client/codec.residual", "sender/residual"],
    "momentum, estimates": [
        *("client/optimizer.private.momentum_buffer", "client/optimizer.student.momentum_buffer"),
        *("client/codec.q", "client/codec.estimate", "uplink/estimate", "sender/estimate", "downlink/estimate"),
    ],
    "warm starts, moments": ["client/codec.left", "sender/left", "downlink/server.first", "downlink/server.second"],
    "a budget": ["client/codec.budget.loss", "sender/budget.loss"],
    "a sketch": ["uplink/sketch"],
    "buffers": ["client/buffers", "client/others.private", "client/others.student"],
    "control variates": ["client/method.control"],
    "own codec": ["replica", "client/private"],
    "own optimiser, float16": [
        *("client/scaler.scale", "client/scaler.growth_tracker"),
        *(
            f"client/optimizer.{of}/{key}"
            for of in ("student.head.weight", "private.teacher.head.bias", "private.hidden_map.maps.0.weight")
            for key in ("mean", "count:int")
        ),
        "client/optimizer.student.groups/0/travelled:float",
    ],
}

Tensors = dict[str, np.ndarray]


def reshape(tensors: Tensors, key: str) -> str:
    tensors[key] = np.zeros((*tensors[key].shape, 2), tensors[key].dtype)
    return key


def retype(tensors: Tensors, key: str) -> str:
    tensors[key] = tensors[key].astype(np.float16)
    return key


def leave_out(tensors: Tensors, key: str) -> str:
    del tensors[key]
    return key


def add(tensors: Tensors, key: str) -> str:
    tensors[f"{key}.more"] = tensors[key]
    return f"{key}.more"


FAULTS: list[Callable[[Tensors, str], str]] = [reshape, retype, leave_out, add]


def kinds(tensors: Tensors, layers: list[str]) -> dict[str, str]:
    """Return one tensor's name of each kind: without the client's number and the layer's name."""
    found = {}
    for key in sorted(tensors):
        kind = re.sub(r"^\d+/", "client/", key)
        for layer in layers:
            kind = kind.removesuffix(f".{layer}")
        found.setdefault(kind, key)
    return found


@pytest.mark.parametrize("name", VARIANTS)
def test_a_tensor_of_each_kind_is_refused_by_name_if_it_is_not_this_runs(name: str, tmp_path: Path):
    log = tmp_path / "log.h5"
    assert main([*SMALL, "rounds=3", *VARIANTS[name], ONE_ROUND, "--output", str(log)]) == 75
    with costlog.open(log) as opened:
        config = parse(yaml_loader.parse_mapping(opened.attrs["config"], "the log"))
        layers, trained = opened["layers"]["name"].tolist(), set(opened["training"]["client"].tolist())
    world = SingleProcessWorld()
    run = prepare(config, world, load_data(config, world))
    manifest = manifests.read(checkpoints(log)[0])
    saved_state.check(run, manifest, trained)
    seen: set[str] = set()
    for entry in manifest.files:
        path = manifest.folder / entry["name"]
        whole = load_file(path)
        for kind, key in kinds(whole, layers).items():
            seen.add(kind)
            for fault in FAULTS:
                if name == "own codec" and kind.startswith(("client/codec", "sender/")):
                    continue  # what it remembers only its author knows
                if kind.endswith("/late") or ("/mean" in kind and fault is add):
                    continue  # an optimiser may keep more of a parameter later than it says at first
                forged = dict(whole)
                named = fault(forged, key)
                save_file(forged, path)
                with pytest.raises(UserError) as refusal:
                    saved_state.check(run, manifest, trained)
                assert str(refusal.value).startswith((f"{path} ", f"{path}: "))
                assert named in str(refusal.value)
        save_file(whole, path)
    assert seen.issuperset(KINDS[name])
    saved_state.check(run, manifest, trained)


def forge(folder: Path) -> str:
    """Give a client's momentum one number too many, in a checkpoint that is whole by its digests; return its name."""
    (path,) = folder.glob("clients-*")
    tensors = load_file(path)
    key = min(key for key in tensors if key.endswith("optimizer.private.momentum_buffer"))
    replace_tensor(path, key, np.append(tensors[key], np.float32(0)))
    return key


def test_the_checkpoint_before_is_used_and_without_one_the_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, stopped = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    arguments = [*SMALL, "rounds=3", "optimizer.momentum=0.9"]
    assert main([*arguments, "--output", str(whole)]) == 0
    assert main([*arguments, ONE_ROUND, "--output", str(stopped)]) == 75
    assert main(["--resume", str(stopped), "--trust-log", ONE_ROUND]) == 75
    newest, before = checkpoints(stopped)
    key = forge(newest)
    capsys.readouterr()
    assert main(["--resume", str(stopped), "--trust-log", ONE_ROUND]) == 75
    shown = capsys.readouterr().out
    assert f"contains the tensor {key} as float32 [" in shown
    assert "continues with round 2 of 3 from round-000001" in shown
    for folder in checkpoints(stopped):
        forge(folder)
    assert before in checkpoints(stopped)
    assert main(["--resume", str(stopped), "--trust-log"]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert all(folder.name in message for folder in checkpoints(stopped))


def test_a_run_goes_on_whose_client_was_skipped_in_all_rounds_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker_parts.VICTIMS", [0, 1, 2])
    whole, stopped = tmp_path / "whole.h5", tmp_path / "stopped.h5"
    arguments = [*SMALL, "rounds=2", "cohort_size=null", "task=worker_parts:Poisoned", "on_nonfinite=skip"]
    assert main([*arguments, "--output", str(whole)]) == 0
    assert main([*arguments, ONE_ROUND, "--output", str(stopped)]) == 75
    assert costlog.read(stopped)["rounds"]["skipped_clients"][0] in (1, 2, 3)
    assert main(["--resume", str(stopped), "--trust-log", "time_limit=null"]) == 0
    assert_same_run(whole, stopped)
