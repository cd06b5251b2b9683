"""The memory of a process, whoever has started it."""

import subprocess
import sys

import numpy as np

TELL = "from fedkd_mpi.common.machine import peak_memory; print(peak_memory())"


def test_a_process_does_not_count_the_memory_of_the_one_that_started_it() -> None:
    command = [sys.executable, "-c", TELL]
    alone = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    held = np.ones(5 * alone, np.uint8)
    beside = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert held.nbytes > 4 * beside
    assert 0.8 < beside / alone < 1.25


def test_the_peak_is_at_least_what_was_held_at_once() -> None:
    code = f"import numpy; numpy.ones(10**8, numpy.uint8); {TELL}"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 10**8
