"""Tries a program in a process of its own, so that a crash or a hang is a result."""

from __future__ import annotations

import os
import subprocess
import sys

PROBE_SECONDS = 60.0


def probe(code: str) -> tuple[bool, str]:
    """Return whether a program succeeds in a separate process without a launcher, and otherwise how it failed."""
    strip = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYD", "SLURM_", "MPI_LOCAL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(strip)}
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"the probe hung for {PROBE_SECONDS:.0f} s"
    if done.returncode == 0:
        return True, ""
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return False, f"the probe crashed with signal {-done.returncode}" if done.returncode < 0 else last
