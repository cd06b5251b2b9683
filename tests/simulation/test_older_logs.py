"""Logs and checkpoints of a version that lacked a key of this one: what they hold is still exported and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
from command import Command
from sessions import checkpoints

import fedkd_mpi
from fedkd_mpi.common import yaml_loader
from fedkd_mpi.config.schema import identity_of
from fedkd_mpi.costlog.door import digest
from fedkd_mpi.fault_tolerance import manifest as manifests
from fedkd_mpi.run import main

NEW_KEY = "portable_bits"


def without_new_key(log: Path) -> None:
    """Write the configuration of a log and its checkpoints as a version without NEW_KEY does."""
    with h5py.File(log, "r+") as file:
        tree = yaml_loader.parse_mapping(file.attrs["config"], "the log")
        tree.pop(NEW_KEY)
        text = yaml_loader.dump(tree)
        file.attrs["config"], file.attrs["config_digest"] = text, digest(text)
    for folder in checkpoints(log):
        path = folder / "manifest.json"
        told = json.loads(path.read_text(encoding="utf-8"))
        told.pop("sha256")
        told["owner"]["configuration"] = identity_of(tree)
        told["sha256"] = manifests.digest(json.dumps(told, sort_keys=True).encode())
        path.write_text(json.dumps(told), encoding="utf-8")


def test_a_run_of_an_older_version_is_loaded_and_goes_on(command: Command, tmp_path: Path) -> None:
    log = tmp_path / "old.h5"
    code, _, _ = command("time_limit=0.001", "--output", log)
    assert code == 75
    without_new_key(log)
    assert fedkd_mpi.load_student(log, trust_log=True) is not None
    assert main(["--resume", str(log), "--trust-log", "time_limit=null"]) == 0
    assert fedkd_mpi.load_student(log, trust_log=True) is not None
