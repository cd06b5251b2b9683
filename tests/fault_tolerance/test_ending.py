"""How a run ended is told by its log, whatever its launcher returned."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import TINY, Command
from made_logs import a_round, write
from mpirun import REPOSITORY, clean_environment, run
from plain_digits import PLAIN_DIGITS

from fedkd_mpi.fault_tolerance import ending
from fedkd_mpi.fault_tolerance.ending import Watch, await_launcher, judge, memory_of
from fedkd_mpi.fault_tolerance.log_lock import Lock, held
from fedkd_mpi.info import main as info
from fedkd_mpi.run import main

LOST = (0, 1, 14, 137, 255)  # what launchers return for a lost node, a killed rank, a failed step


@contextmanager
def locking(log: Path) -> Iterator[subprocess.Popen[str]]:
    worker = REPOSITORY / "tests" / "helpers" / "worker_lock.py"
    command, pipe = [sys.executable, str(worker), str(log)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=clean_environment()) as process:
        assert process.stdout.readline() == "locked\n"
        yield process


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


@pytest.mark.parametrize("code", LOST)
def test_a_completed_log_is_completed_whatever_the_launcher_returned(log: Path, code: int) -> None:
    write(log, [a_round(0)])
    assert (judge(log, code).kind, judge(log, code).code) == ("completed", 0)
    assert not memory_of(log).exists()


@pytest.mark.parametrize("code", LOST)
def test_a_run_that_was_cut_off_is_started_again(log: Path, code: int) -> None:
    write(log, [a_round(0), a_round(1)], status=None)
    found = judge(log, code)
    assert (found.kind, found.code) == ("cut off", 75)
    assert f"after round 2; the launcher ended with {code}" in found.text


def test_a_run_that_never_gets_further_is_given_up(log: Path) -> None:
    write(log, [a_round(0)], status=None)
    assert [judge(log, 1, most=2).kind for _ in range(4)] == ["cut off", "cut off", "cut off", "given up"]
    assert not memory_of(log).exists()  # whoever starts it again by hand begins to count anew


def test_a_run_that_gets_further_every_time_is_started_again_without_end(log: Path) -> None:
    for rounds in range(1, 8):
        log.unlink(missing_ok=True)
        write(log, [a_round(number) for number in range(rounds)], status="interrupted")
        assert judge(log, 137, most=0).kind == "cut off"


def test_rounds_that_are_only_repeated_are_no_progress(log: Path) -> None:
    kinds = []
    for rounds in (3, 1, 2, 3, 3):
        log.unlink(missing_ok=True)
        write(log, [a_round(number) for number in range(rounds)], status=None)
        kinds.append(judge(log, 137, most=3).kind)
    assert kinds == ["cut off"] * 4 + ["given up"]


def test_a_launcher_that_fails_before_there_is_a_log_is_tried_again(log: Path) -> None:
    found = judge(log, 1, most=1)
    assert found.kind == "cut off"
    assert "before it had a log" in found.text
    assert judge(log, 1, most=1).kind == "given up"


def test_a_refusal_is_not_repeated(log: Path) -> None:
    assert (judge(log, 2).kind, judge(log, 2).code) == ("refused", 2)
    write(log, [a_round(0)], status=None)
    assert judge(log, 2).kind == "cut off"  # it had begun: 2 is the launcher's word for something else
    assert judge(log, 2).kind == "refused"  # nothing new: its resume was refused


def test_an_older_log_of_that_name_is_not_the_run(log: Path) -> None:
    write(log, [a_round(0)])
    ending.begin(log)  # a new run is to overwrite it
    assert judge(log, 137).kind == "cut off"
    assert judge(log, 2).kind == "refused"


@pytest.mark.parametrize("text", ["", "[]", '{"starts": -1}', '{"starts": "1"}', "\0", '{"run": 3}'])
def test_a_damaged_memory_only_counts_anew(log: Path, text: str) -> None:
    write(log, [a_round(0)], status=None)
    memory_of(log).write_text(text)
    assert judge(log, 137).kind == "cut off"


@pytest.mark.parametrize("blocked", ["{}.restarts", "{}.restarts-new"])
def test_what_cannot_be_remembered_is_told_in_one_line(log: Path, blocked: str, in_process: Command) -> None:
    write(log, [a_round(0)], status=None)
    Path(blocked.format(log)).mkdir()
    code, out, err = in_process(info, log, "--ended", "137")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert ".restarts: Is a directory" in err


def test_a_run_that_stopped_by_itself_says_why(log: Path, in_process: Command) -> None:
    assert in_process(main, *TINY, PLAIN_DIGITS, "time_limit=0.001", "--output", log)[0] == 75
    found = judge(log, 0)
    assert (found.kind, found.code) == ("stopped", 75)
    assert "stopped after" in found.text
    assert "time_limit" in found.text


def test_the_ranks_of_a_lost_launcher_may_end_first(log: Path) -> None:
    write(log, [a_round(0)], status=None)
    with locking(log) as process:
        assert held(log)
        threading.Timer(1.0, process.stdin.close).start()
        assert judge(log, 137).kind == "cut off"
        assert process.wait(30) == 0
    assert not held(log)


def test_asking_for_the_lock_does_not_take_it(log: Path) -> None:
    assert not held(log)
    with Lock(log) as lock:
        lock.take()
        asked = "import sys; from pathlib import Path; from fedkd_mpi.fault_tolerance.log_lock import held"
        result = run([sys.executable, "-c", f"{asked}; sys.exit(held(Path(sys.argv[1])))", log])
        assert result.returncode == 1, result.stderr
        lock.release()
        lock.take()


@pytest.mark.parametrize(
    ("program", "number"),
    [
        ("import time; time.sleep(600)", signal.SIGTERM),
        ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", signal.SIGKILL),
    ],
)
def test_a_launcher_that_outlives_its_run_is_ended(
    log: Path, program: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "LOOKING", 0.1)
    watch = Watch(log)
    with subprocess.Popen([sys.executable, "-c", program]) as launcher:
        try:
            with locking(log) as process:
                assert not watch.over()
                time.sleep(0.5)  # the program listens now
                write(log, [a_round(0)])
                process.stdin.close()
            await_launcher(watch, lambda: launcher.poll() is None, launcher.send_signal, grace=0.5)
        finally:
            launcher.kill()
    assert launcher.returncode == -number


def test_a_launcher_is_left_alone_while_its_run_has_not_begun(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LOOKING", 0.01)
    write(log, [a_round(0)])  # of an earlier run
    watch, looks = Watch(log), iter([True] * 20)
    await_launcher(watch, lambda: next(looks, False), lambda number: pytest.fail("was ended"), grace=0.0)


def test_the_command_answers_with_its_exit_code(log: Path, in_process: Command) -> None:
    code, out, err = in_process(info, log, "--ended", "0")
    assert (code, err) == (75, "")
    assert out.startswith(f"fedkd_mpi: {log} was cut off before it had a log; the launcher ended with 0")
    write(log, [a_round(0)])
    assert in_process(info, log, "--ended", "14")[0] == 0
    log.write_bytes(b"no log")
    code, out, err = in_process(info, log, "--ended", "14")
    assert (code, out) == (2, "")
    assert "is not an HDF5 file" in err
    assert in_process(info, "--ended", "14")[0] == 2


def test_the_command_needs_neither_mpi_nor_torch(log: Path) -> None:
    write(log, [a_round(0)])
    code = f"import sys; from fedkd_mpi.info import main; main([{str(log)!r}, '--ended', '0'])"
    result = run([sys.executable, "-c", f"{code}; print(sorted({{'torch', 'mpi4py'}} & set(sys.modules)))"])
    assert result.stdout.splitlines()[-1] == "[]", result.stdout + result.stderr
