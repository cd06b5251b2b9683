"""Scripts for Slurm: every text reaches the run as it was given, and what Slurm would not understand is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command import Command
from hypothesis import example, given
from hypothesis import strategies as st

from fedkd_mpi.errors import UserError
from fedkd_mpi.job import Resources, check_time, main, script, swept

CLUSTER = Resources(1, 5, 5, 1, 0, 4)
HEAD = ("#SBATCH ", "##SBATCH ")
texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=20).filter(str.isprintable)
values = st.one_of(
    st.integers(), st.booleans(), st.lists(st.integers(), max_size=3), texts.map(lambda text: json.dumps(text))
)


def heard(text: str, task: int = 0) -> list[str]:
    """Return the arguments that bash gives the run, by the lines of a script that choose them; it must parse too."""
    parsed = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, b"")
    lines = [line for line in text.splitlines() if line.startswith(("values=", "run="))]
    program = "\n".join([f"SLURM_ARRAY_TASK_ID={task}", *lines, "printf '%s\\0' \"${run[@]}\""])
    done = subprocess.run(["bash", "-c", program], capture_output=True, check=True)
    assert not done.stderr
    return done.stdout.decode().split("\0")[:-1]


@given(config=texts.filter(bool), overrides=st.lists(texts, max_size=3), file=texts)
@example("my confs/a b.yaml", ['data={"name": "digits"}', "x='$(touch no)`;#\\"], "a b.slurm")
def test_the_run_hears_what_was_given(config: str, overrides: list[str], file: str):
    text = script(config, CLUSTER, name="own", title="own", file=file, overrides=overrides)
    assert heard(text) == ["--config", config, *overrides]
    head = [line for line in text.splitlines() if line.startswith(HEAD)]
    plain = script("digits.yaml", CLUSTER, name="own", title="own")
    assert head == [line for line in plain.splitlines() if line.startswith(HEAD)]  # nothing slips into the directives


@given(st.lists(values, min_size=1, max_size=4))
@example([[64], [128, 64]])
@example(['"a, b"', '"]"', "'x'"])
def test_every_task_of_an_array_hears_its_value(chosen: list):
    written = [value if isinstance(value, str) else json.dumps(value) for value in chosen]
    key, found = swept(f"student.hidden={','.join(written)}")
    assert (key, found) == ("student.hidden", written)
    text = script("digits.yaml", CLUSTER, name="own", title="own", sweep=(key, found))
    assert f"#SBATCH --array=0-{len(written) - 1}\n" in text
    for task, value in enumerate(written):
        assert heard(text, task) == ["--config", "digits.yaml", f"student.hidden={value}"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--time", "3h"], "--time '3h' must be [D-]HH:MM:SS, for example 08:00:00"),
        (["--time", "480"], "--time '480' must be"),
        (["--time", "08:60:00"], "--time '08:60:00' must be"),
        (["--time", "08:00:00\n#SBATCH --exclusive"], "--time '08:00:00\\n#SBATCH"),
        (["--time", "00:05:00"], "must be from 00:10:00"),
        (["--nodes", "0"], "argument --nodes: 0 is not a whole number from 1 to"),
        (["--nodes", "1e3"], "argument --nodes: 1e3 is not"),
        (["--cpus-per-node", "-4"], "argument --cpus-per-node: -4 is not"),
        (["--gpus-per-node", "two"], "argument --gpus-per-node: two is not"),
        (["--mpi", "openmpi"], "argument --mpi: invalid choice"),
        (["--partition", "gpu"], "unrecognized arguments: --partition"),
        (["digits.yaml", "rounds=1", "rouds=2"], "unknown key rouds; did you mean rounds?"),
        (["digits.yaml", "name=a\n#SBATCH --wait"], "contains a character that is invalid in a script"),
        (["digits\n.yaml"], "CONFIG='digits\\n.yaml' contains a character"),
        (["--script", "a\nb"], "--script='a\\nb' contains a character"),
        (["digits.yaml", "num_clients=2", "--script", "nowhere/a.slurm"], "cannot write nowhere/a.slurm"),
        (["--sweep", "student.learning_rat=0.1,0.2"], "unknown key student.learning_rat"),
        (["--sweep", "seed=1,-2"], "seed=-2: must be greater than or equal to 0"),
        (["--sweep", "seed"], "is not KEY=A,B,..."),
        (["--sweep", "seed="], "is not KEY=A,B,..."),
        (["--sweep", "student.hidden=[64],[128"], "--sweep 'student.hidden=[64],[128'"),
        (["--sweep", "seed=1,2,01"], "--sweep gives seed=01 twice"),
        (["--sweep", "seed=1]; rm -r x #"], "--sweep 'seed=1]; rm -r x #'"),
        (["digits.yaml", "num_clients=8", "--sweep", "cohort_size=3,5"], "need different numbers of processes"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_slurm_or_the_run_would_not_take_is_refused(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(main, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["00:10:00", "08:00:00", "1-12:00:00", "100:00:00"])
def test_times_as_slurm_reads_them(text: str):
    assert check_time(text) == text


@pytest.mark.parametrize("text", ["", "0", "٠٨:00:00", "1-2", "8:0:0", " 08:00:00", "08:00:00 ", "9999-00:00:00"])
def test_other_times_are_refused(text: str):
    with pytest.raises(UserError, match="--time"):
        check_time(text)
