"""portable_bits: the code that is computed with, wherever and however a run is started, and what is refused."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from command import COMMAND, Command, assert_refused
from mpirun import mpirun, run
from sessions import assert_same_run

from fedkd_mpi import costlog
from fedkd_mpi.__main__ import main as fedkd
from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.fault_tolerance import early_signals
from fedkd_mpi.simulation.portable_bits import SETTINGS

needs_avx2 = pytest.mark.skipif(
    "avx2" not in Path("/proc/cpuinfo").read_text(), reason="portable_bits needs a processor with AVX2"
)


def computed_with(log: Path) -> list[tuple[bool, bool]]:
    """Return for each start of a run whether torch took AVX2 on all ranks, and whether the log has all variables."""
    starts = costlog.read(log)["starts"]
    return [
        (cpu.endswith(", AVX2") and ";" not in cpu, all(f"{name}={value}" in told for name, value in SETTINGS.items()))
        for cpu, told in zip(starts["cpu"], starts["environment"], strict=True)
    ]


@needs_avx2
def test_a_command_sets_it_for_all_ranks_and_when_it_is_resumed(mpi_vendor: str, tmp_path: Path) -> None:
    once, stopped = tmp_path / "once.h5", tmp_path / "stopped.h5"
    how = [*COMMAND, "portable_bits=true"]
    done = run([sys.executable, *how, "--output", once])
    assert done.returncode == 0, done.stderr
    done = mpirun(3, *how, "time_limit=0.001", "--output", stopped, mpi=mpi_vendor)
    assert done.returncode == 75, done.stderr
    resumed = [sys.executable, "-m", "fedkd_mpi", "run", "--resume", stopped, "--trust-log", "time_limit=null"]
    assert run(resumed).returncode == 0
    assert_same_run(once, stopped)
    assert computed_with(once) == [(True, True)]
    assert computed_with(stopped) == [(True, True)] * 2


@needs_avx2
def test_a_dry_run_measures_with_it() -> None:
    done = run([sys.executable, *COMMAND, "portable_bits=true", "--dry-run"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "one update after its steps" in done.stdout


@needs_avx2
def test_python_takes_part_where_it_was_started_with_the_variables(tmp_path: Path) -> None:
    program = (
        "import sys, fedkd_mpi\n"
        "result = fedkd_mpi.run('digits', sys.argv[2:], output=sys.argv[1])\n"
        "print(result.status)"
    )
    how = [sys.executable, "-c", program, tmp_path / "log.h5", *COMMAND[2:], "portable_bits=true"]
    done = run(how, env=SETTINGS)
    assert done.stdout.endswith("completed\n"), done.stderr
    assert computed_with(tmp_path / "log.h5") == [(True, True)]


def test_where_the_libraries_are_loaded_already_it_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    words = "portable_bits=true needs these variables before Python starts: export ATEN_CPU_CAPABILITY=avx2 MKL_CBWR="
    assert_refused(command("portable_bits=true"), words)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)  # too late
    assert_refused(command("portable_bits=true"), words)


def test_the_process_of_somebody_else_is_never_replaced(in_process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    handlers = [signal.getsignal(number) for number in early_signals.SIGNALS]
    assert_refused(in_process(fedkd, "run", *COMMAND[2:], "portable_bits=true"), "needs these variables before Python")
    assert [signal.getsignal(number) for number in early_signals.SIGNALS] == handlers


def test_other_code_in_the_environment_is_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    assert_refused(
        command("portable_bits=true"),
        "portable_bits=true needs MKL_CBWR=COMPATIBLE, but the environment has AVX512: unset it",
    )


@pytest.mark.parametrize("native", ["device=cuda", "compile=true", "threads_per_rank=auto"])
def test_what_depends_on_the_machine_is_refused_beside_it(native: str) -> None:
    with pytest.raises(UserError, match=rf"portable_bits=true: with {native} bits depend on the machine"):
        load(overrides=["portable_bits=true", native])


def test_it_belongs_to_what_a_run_is() -> None:
    plain, portable = load(), load(overrides=["portable_bits=true"])
    assert plain.digest() != portable.digest()
    assert plain.identity() != portable.identity()


def test_signals_are_passed_on_to_the_process_that_takes_over() -> None:
    program = """
import os, signal, sys
from fedkd_mpi.fault_tolerance import early_signals
early_signals.listen()
if sys.argv[1:]:
    print(sorted(early_signals.heard))
    sys.exit()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGUSR1)
early_signals.pass_on()
os.kill(os.getpid(), signal.SIGINT)  # comes while nobody handles it
os.execve(sys.executable, [*sys.orig_argv, "again"], os.environ)
"""
    done = run([sys.executable, "-c", program])
    assert done.stdout == f"{sorted(map(int, (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)))}\n", done.stderr
