"""fedkd_mpi.run(): the bits of the command, errors as exceptions, threads, notebooks, signals, several ranks."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from command import COMMAND, TINY
from mpirun import REPOSITORY, find, mpirun, run
from plain_digits import PLAIN_DIGITS
from sessions import assert_same_run, rounds_in

import fedkd_mpi
from fedkd_mpi import costlog
from fedkd_mpi.config import load
from fedkd_mpi.errors import RunFault, UserError
from fedkd_mpi.simulation import launching

KEYS = [*TINY, PLAIN_DIGITS]
ENDLESS = [*KEYS, "rounds=100000", "checkpoint.every=100000", "evaluate.every=100000"]
IMPORTS = ["import fedkd_mpi", "import fedkd_mpi.run", "from fedkd_mpi import run", "from fedkd_mpi.run import main"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_name_is_the_module_and_the_function_in_every_order_of_imports(tmp_path: Path) -> None:
    check = "import sys, fedkd_mpi\nfrom fedkd_mpi import run as r\nassert fedkd_mpi.run is r\n"
    check += "assert r is sys.modules['fedkd_mpi.run'] and callable(r) and callable(r.main)\n"
    orders = ["\n".join(order) for order in itertools.permutations(IMPORTS)]
    fresh = "for name in [n for n in sys.modules if n.startswith('fedkd_mpi')]: del sys.modules[name]\n"
    program = "import sys\n" + "".join(f"{order}\n{check}{fresh}" for order in orders)
    done = run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    version = run([sys.executable, "-W", "error", "-m", "fedkd_mpi.run", "--version"], cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"fedkd_mpi {fedkd_mpi.__version__}\n")
    heavy = "import sys, fedkd_mpi\nprint(sorted({'torch', 'mpi4py', 'h5py'} & set(sys.modules)))"
    assert run([sys.executable, "-c", heavy]).stdout == "[]\n"


def test_every_kind_of_configuration_gives_the_bits_of_the_command_again_and_again(tmp_path: Path) -> None:
    done = run([sys.executable, *COMMAND, "--output", "own.h5"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load.load(overrides=KEYS)
    (tmp_path / "own.yaml").write_text(config.to_yaml())
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    for number, (first, overrides) in enumerate(
        [("digits", KEYS), ("own.yaml", ()), (config, ()), (config.model_dump(mode="json"), {"seed": 0})]
    ):
        result = fedkd_mpi.run(first, overrides, output=f"{number}.h5")
        assert_same_run(tmp_path / "own.h5", result.log)
        assert (result.status, result.reason, result.config.digest()) == ("completed", None, config.digest())
        rounds = costlog.read("own.h5")["rounds"]
        assert result.scores["global_student_accuracy"] == rounds["global_student_accuracy"][-1]
        torch.rand(number)  # of the user's own
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert torch.get_num_threads() == threads
    x = torch.zeros(1, 64)
    assert result.load_student()(x).logits.shape == (1, 10)
    assert result.load_teacher(1, "last")(x).logits.shape == (1, 10)


def test_a_notebook_and_another_thread_run_as_well(tmp_path: Path) -> None:
    async def cell() -> fedkd_mpi.simulation.in_python.Result:
        await asyncio.sleep(0)
        return fedkd_mpi.run("digits", KEYS, output="cell.h5")

    first, found = asyncio.run(cell()), []
    thread = threading.Thread(target=lambda: found.append(fedkd_mpi.run("digits", KEYS, output="thread.h5")))
    thread.start()
    thread.join()
    assert_same_run(first.log, found[0].log)


def test_errors_are_exceptions_and_the_process_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ({"config": "digits", "overrides": ["round=2"]}, "did you mean rounds"),
        ({"config": "none.yaml"}, "does not exist"),
        ({"config": 3}, "is not a name, a file, a mapping or a Config"),
        ({"overrides": "rounds=2"}, "give a list"),
        ({"overrides": {"name": object()}}, "no value of a configuration"),
        ({"resume": "none.h5"}, "none.h5"),
        ({"config": "digits", "resume": "none.h5"}, "takes configuration and output from the log"),
        ({"overrides": [*KEYS, "num_clients=9000"]}, "num_clients=9000"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            fedkd_mpi.run(**arguments)
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.glob("**/*.h5"))
    with pytest.raises(RunFault, match="ZeroDivisionError") as caught:
        fedkd_mpi.run(overrides=[*KEYS, "task=worker_parts:Breaking"], output="broken.h5")
    assert (caught.value.round, caught.value.client) == (1, 2)
    assert (costlog.read("broken.h5")["attrs"]["status"], rounds_in(Path("broken.h5"))) == ("interrupted", 1)
    assert [thread.name for thread in threading.enumerate() if thread.name in ("progress", "stop notice")] == []
    assert fedkd_mpi.run(overrides=KEYS, output="broken.h5", overwrite=True).status == "completed"
    with pytest.raises(UserError, match="exists"):
        fedkd_mpi.run(overrides=KEYS, output="broken.h5")
    again = fedkd_mpi.run(resume="broken.h5")
    assert (again.status, again.log.name, again.config.rounds) == ("completed", "broken.h5", 3)


def interrupt(log: Path, times: int) -> threading.Thread:
    """Send SIGINT to this process so often, once the log has a round."""

    def send() -> None:
        while not log.exists():
            time.sleep(0.05)
        time.sleep(1)  # HDF5 does not open a file for writing that the same process is reading
        while rounds_in(log) == 0:
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def test_an_interrupt_stops_after_the_round_and_a_second_at_once(tmp_path: Path) -> None:
    sender = interrupt(tmp_path / "long.h5", 1)
    result = fedkd_mpi.run(overrides=ENDLESS, output="long.h5")
    sender.join()
    assert result.status == "interrupted"
    assert result.reason.startswith("SIGINT at rank 0")
    resumed = fedkd_mpi.run(resume=result.log, overrides={"time_limit": 1}, trust_log=True)
    assert resumed.reason.startswith("another round would not end")
    assert rounds_in(result.log) >= 1
    slow = [*ENDLESS, "local.epochs=null", "local.steps=1000000000"]

    def send() -> None:
        while not (tmp_path / "slow.h5").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with pytest.raises((KeyboardInterrupt, RunFault)):
        fedkd_mpi.run(overrides=slow, output="slow.h5")
    sender.join()
    assert costlog.read("slow.h5")["attrs"]["status"] == "interrupted"


def launch_of(vendor: str, monkeypatch: pytest.MonkeyPatch) -> str:
    from mpirun import clean_environment

    installation = find(vendor)
    for name, value in clean_environment({"MPI4PY_LIBMPI": str(installation.library)}).items():
        monkeypatch.setenv(name, value)
    return str(installation.launcher)


def test_ranks_give_the_same_bits_and_the_same_errors(
    mpi_vendor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = launch_of(mpi_vendor, monkeypatch)
    one = fedkd_mpi.run(overrides=KEYS, output="one.h5")
    capsys.readouterr()
    three = fedkd_mpi.run(one.config, output="three.h5", ranks=3, launch=launch)
    assert_same_run(one.log, tmp_path / three.log)
    assert "round 3/3" in capsys.readouterr().out
    for arguments, words in (
        ({"output": "three.h5"}, "three.h5 exists"),
        ({"launch": "no-such-launcher"}, "no-such-launcher"),
        ({"launch": "'"}, "no closing quotation"),
    ):
        with pytest.raises(UserError, match=words):
            fedkd_mpi.run(one.config, **{"ranks": 2, "launch": launch, **arguments})
    with pytest.raises(RunFault, match="ZeroDivisionError"):
        fedkd_mpi.run(overrides=[*KEYS, "task=worker_parts:Breaking"], output="b.h5", ranks=2, launch=launch)
    limited = fedkd_mpi.run(overrides=[*ENDLESS, "time_limit=3"], output="limited.h5", ranks=2, launch=launch)
    assert (limited.status, limited.reason) == ("interrupted", "another round would not end before time_limit (3 s)")


def test_a_process_that_a_launcher_leaves_behind_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "PATIENCE", 1.0)
    left = tmp_path / "left"
    launch = f"sh -c 'sleep 60 & echo $! > {left}; echo fedkd_mpi: refused 1>&2; exit 2'"
    with pytest.raises(UserError, match=r"^refused$"):
        fedkd_mpi.run(overrides=KEYS, ranks=2, launch=launch)
    os.kill(int(left.read_text()), signal.SIGKILL)  # it still has the streams open; ProcessLookupError if not


def test_a_script_under_a_launcher_runs_twice(mpi_vendor: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    calls = [f"fedkd_mpi.run('digits', {KEYS}, output='{name}.h5')" for name in ("a", "b")]
    script.write_text("import fedkd_mpi\n" + "\n".join(f"assert {call}.status == 'completed'" for call in calls))
    done = mpirun(3, script, mpi=mpi_vendor, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same_run(tmp_path / "a.h5", tmp_path / "b.h5")


def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find("openmpi") is None:
        pytest.skip("needs Open MPI")
    launcher = Path(launch_of("openmpi", monkeypatch))
    monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")
    page = (REPOSITORY / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "unknown key round; did you mean rounds?" in done.stdout
