"""An outside instrument, Open MPI's monitoring layer, reads the bytes that the log of the real command holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND
from mpirun import find, mpirun

from fedkd_mpi import costlog


def monitored(folder: Path, rounds: int) -> tuple[Counter[str], Counter[str], dict[str, Any]]:
    """Run the command under Open MPI's monitoring layer; return the bytes of each communicator's collectives and those
    that went from process to process, the number of payload collectives by their kind, and the log."""
    settings = {"enable": "2", "enable_output": "3", "filename": folder / f"{rounds}"}
    options = [word for key, value in settings.items() for word in ("--mca", f"pml_monitoring_{key}", str(value))]
    arguments = [*COMMAND, f"rounds={rounds}", "compression.t_end=0.95", "--output", folder / f"{rounds}.h5"]
    done = mpirun(3, *arguments, options=options, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    moved: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for path in folder.glob(f"{rounds}.*.prof"):
        for line in path.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            if fields[0] == "D":
                communicator = fields[1]
            elif fields[0] in ("O2A", "A2O", "A2A"):
                moved[communicator] += int(fields[2].split()[0])
                if communicator == "fedkd payload":
                    calls[fields[0]] += int(fields[3].split()[0])
            elif fields[0] == "E":
                moved["from process to process"] += int(fields[3].split()[0])
    return moved, calls, costlog.read(folder / f"{rounds}.h5")


def test_open_mpi_itself_counts_what_the_log_says(tmp_path: Path):
    """Payloads are compared as they are. All else is compared as the difference of 4 rounds and 2, which are the same
    rounds but for their number (T does not rise): what making the world and sharing the data takes is in both."""
    if find("openmpi") is None:
        pytest.skip("only Open MPI has a monitoring layer")
    runs = {rounds: monitored(tmp_path, rounds) for rounds in (2, 4)}
    for rounds, (moved, calls, log) in runs.items():
        assert calls == {"A2O": rounds, "O2A": rounds, "A2A": 0}  # a gather and a broadcast per round
        assert moved["fedkd payload"] == log["mpi"]["payload_bytes_sent"].sum()
        assert moved["fedkd payload"] == (log["rounds"]["uplink_bytes"] + 2 * log["downlink"]["bytes"]).sum()
    (few, _, few_log), (many, _, many_log) = runs.values()
    assert (many - few).total() == many_log["mpi"]["bytes_sent"].sum() - few_log["mpi"]["bytes_sent"].sum()
    assert (many_log["uplink"]["bytes"][:8] == few_log["uplink"]["bytes"]).all()
