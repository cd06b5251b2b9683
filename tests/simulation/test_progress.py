"""What a person sees of a run: a banner, a live line that fits the terminal, plain lines elsewhere, Ctrl-C."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest
from command import COMMAND, Command
from mpirun import REPOSITORY, find, mpirun, run
from terminals import CONTROL, CTRL_C, OnTerminal

from fedkd_mpi import costlog
from fedkd_mpi.communication.world import SingleProcessWorld
from fedkd_mpi.config import load
from fedkd_mpi.simulation import progress as progress_module
from fedkd_mpi.simulation.progress import Progress

ROW = {
    "round": 8,
    "uplink_bytes": 10**7,
    "downlink_bytes": 10**7,
    "catchup_bytes": 0,
    "global_student_accuracy": 0.5,
    "teacher_accuracy": 0.75,
    "teacher_loss": 1.0,
    "threshold": 0.95,
}
SLOW = ("rounds=100000", "local.epochs=null", "local.steps=40", "checkpoint.every=1", "evaluate.every=100000")


def shown(progress: Progress, width: int) -> str:
    return "  ".join(text for text, _ in progress.line(width))


def test_the_line_fits_every_width_and_keeps_round_and_time_left_to_the_last() -> None:
    world = SingleProcessWorld()
    world.mpi_rank = 1  # no output of its own
    progress = Progress(load.load(overrides=["rounds=1000"]), world, lambda index: 3)
    progress.begin(0, 5 * 10**9)
    progress.round(ROW)
    world.status.at(9, "training", 4)
    world.status.trained = 2
    narrower: set[str] = set()
    for width in range(20, 220):
        line = shown(progress, width)
        assert line.startswith("round 10/1000")
        assert line.endswith(" left")
        assert len(line) <= width or width < 40
        parts = {text for text, _ in progress.line(width) if not text.isspace()}
        assert len(parts) >= len(narrower), width  # what a width has room for, a larger one has too
        narrower = parts
    everything = shown(progress, 200)
    for text in ("training 5/32", "global_student_accuracy 0.5000", "teacher_accuracy 0.7500", "T 0.950", "5.02 GB"):
        assert text in everything
    assert "loss" not in everything
    assert ("5.02 GB" in shown(progress, 60), "training 5/32" in shown(progress, 60)) == (True, True)


def test_a_long_round_says_now_and_then_what_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.01)
    world = SingleProcessWorld()
    progress = Progress(load.load(overrides=["rounds=40"]), world, lambda index: 0)
    world.status.at(3, "evaluation")
    progress.begin(3, 0)
    said, end = "", time.monotonic() + 60
    while "evaluation" not in said and time.monotonic() < end:
        time.sleep(0.01)
        said += capsys.readouterr().out
    progress.stop()
    assert "round 4/40  evaluation  -- left\n" in said


def test_one_convention_counts_rounds_and_bytes_go_on_after_a_resume(command: Command) -> None:
    assert command("--output", "own.h5", "rounds=2", "checkpoint.every=1", "compression.t_end=0.95")[0] == 0
    code, out, err = command_resume("own.h5", command)
    assert (code, err) == (0, "")
    rounds = costlog.read("own.h5")["rounds"]
    total = sum(int(rounds[f"{leg}_bytes"].sum()) for leg in ("uplink", "downlink", "catchup"))
    assert "continues with round 3 of 4 from round-000002" in out
    assert f"{total / 1000:.2f} kB" in re.search(r"^round 4/4 .*$", out, re.MULTILINE)[0]
    first, *lines = out.splitlines()
    assert first.endswith(": 4 clients, 4 rounds")
    assert lines[:2] == ["1 rank on 1 node", "log: own.h5"]


def command_resume(log: str, command: Command) -> tuple[int, str, str]:
    """Extend a log to four rounds in a process of its own: `command` always names a new run."""
    done = run([sys.executable, "-m", "fedkd_mpi.run", "--resume", log, "--trust-log", "rounds=4"], cwd=Path.cwd())
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_on_a_terminal_one_line_is_drawn_again_within_its_width(columns: int, tmp_path: Path) -> None:
    arguments = [sys.executable, *COMMAND, "rounds=4", "local.epochs=null", "local.steps=60", "--output", "own.h5"]
    with OnTerminal(columns, arguments, tmp_path) as terminal:
        assert terminal.wait() == 0
    lines = terminal.text.splitlines()
    live = [line for line in lines if re.match(r"round \d", line)]
    assert live
    assert all(" left" in line and len(line) < columns for line in live)
    assert all(len(line) <= columns for line in lines)
    head = next(at for at, line in enumerate(lines) if line.startswith("fedkd_mpi "))
    assert head < lines.index(next(line for line in lines if line.startswith("device: cpu, ")))
    assert any("global student, global" in line for line in lines)
    assert "\x1b[?25l" not in terminal.raw  # a launcher that kills the run would leave the cursor hidden


def test_behind_a_launcher_the_line_is_live_and_ctrl_c_says_how_to_continue(mpi_vendor: str, tmp_path: Path) -> None:
    installation = find(mpi_vendor)
    command = [installation.launcher, "-n", "3", sys.executable, *COMMAND, *SLOW, "--output", "own.h5"]
    with OnTerminal(100, command, tmp_path, {"MPI4PY_LIBMPI": str(installation.library)}) as terminal:
        terminal.until(r"round ([3-9]|\d\d+)/100000")  # a fast round may not be drawn
        terminal.press(CTRL_C)
        code = terminal.wait()
    assert code == (1 if mpi_vendor == "openmpi" else 75)  # Open MPI's mpirun ends the ranks itself
    text = terminal.text
    assert "the run stops after this round with a checkpoint" in text
    assert re.search(r"^log: own.h5 \(checkpoint: after round \d+\)", text, re.MULTILINE)
    (again,) = set(re.findall(r"to continue: python (-m fedkd_mpi\.run --resume own\.h5 .*?)\s*$", text, re.MULTILINE))
    done = costlog.read(tmp_path / "own.h5")["rounds"]["round"].max() + 1
    limit = ["time_limit=1"]
    resumed = mpirun(3, *again.split(), *limit, mpi=mpi_vendor, cwd=tmp_path)
    assert resumed.returncode == 75, resumed.stderr
    assert re.search(rf"continues with round ({done}|{done + 1}) of 100000", resumed.stdout)


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_a_pipe_there_are_plain_lines_alone(ranks: int, mpi_vendor: str, tmp_path: Path) -> None:
    env = {"FORCE_COLOR": "1", "TERM": "xterm"}
    if ranks == 1:
        done = run([sys.executable, *COMMAND, "--output", "own.h5"], cwd=tmp_path, env=env)
    else:
        done = mpirun(ranks, *COMMAND, "--output", "own.h5", mpi=mpi_vendor, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert not CONTROL.search(done.stdout)
    assert "\r" not in done.stdout
    assert done.stdout.splitlines()[1] == f"{ranks} rank{'s' * (ranks > 1)} on 1 node"
    assert "round 3/3" in done.stdout


def test_no_page_or_message_counts_rounds_from_0() -> None:
    """Columns of the log and arguments of functions do; what a person reads does not."""
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert not re.search(r"\bround 0\b(?! of the log)", page.read_text()), page.name
