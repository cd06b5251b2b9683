"""Scripts for Slurm: every text reaches the run as it was given, and what Slurm would not understand is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command import Command
from hypothesis import example, given
from hypothesis import strategies as st

from fedkd_mpi.config.cluster import ClusterConfig, chosen
from fedkd_mpi.errors import UserError
from fedkd_mpi.job import Resources, check_time, main, script, swept
from fedkd_mpi.job import arguments as job_arguments

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
        (["--partition", "a b"], "--partition=a b: must consist of letters"),
        (["--exclude", "node1 node2"], "--exclude=node1 node2: must consist of letters"),
        (["--account", "a\n#SBATCH --wait"], "--account=a\\n#SBATCH"),
        (["--output", '"$(x)"'], "--output="),
        (["--mail", "a@b; rm"], "--mail=a@b; rm"),
        (["--module", "$(touch no)"], "--module.0=$(touch no)"),
        (["--module", "gcc", "--module=-x"], "--module.1=-x"),
        (["--venv", "a\nb"], "--venv=a\\nb: contains a character"),
        (["--container", ""], "--container=: contains a character"),
        (["--container", "a.sif", "--venv", "b"], "give one"),
        (["--env", "A"], "--env 'A' is not NAME=VALUE"),
        (["--env", "1A=2"], "'1A' is not the name of a variable"),
        (["--env", "A;B=2"], "'A;B' is not the name of a variable"),
        (["--env", "A=x\ny"], "contains a character"),
        (["--profile", "none.yaml"], "--profile none.yaml does not exist"),
        (["--conda", "x"], "unrecognized arguments: --conda"),
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


def prepared(text: str, home: Path) -> dict[str, str]:
    """Return what a script's preparation leaves: modules loaded, PATH, and every variable that it exports."""
    begin, end = text.index("# --- your cluster"), text.index("# ----------", text.index("# --- your cluster") + 20)
    program = 'module() { printf "MODULES=%s\\0" "$*"; }\nset -uo pipefail\n' + text[begin:end]
    program += '\nprintf "PYTHON=%s\\0" "${PYTHON[*]}"; printf "MPI=%s\\0" "$MPI"; env -0\n'
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(home)}
    done = subprocess.run(["bash", "-c", program], capture_output=True, check=True, env=variables, cwd=home)
    assert not done.stderr
    return dict(part.split("=", 1) for part in done.stdout.decode().split("\0") if part)


@given(
    venv=texts.filter(bool),
    values=st.dictionaries(st.sampled_from(["A", "_b", "C_3"]), texts.filter(bool)),
    image=texts.filter(bool),
)
@example("my env/'x'", {"A": '$(touch no) `x` "; rm -r .', "_b": "#"}, "a b.sif")
def test_every_value_reaches_the_job_as_it_was_given(venv: str, values: dict[str, str], image: str):
    if venv.startswith("~"):
        venv = f"./{venv}"
    if image.startswith("~"):
        image = f"./{image}"
    for cluster in (ClusterConfig(venv=venv, env=values), ClusterConfig(container=image, env=values)):
        text = script("digits.yaml", CLUSTER, name="own", title="own", cluster=cluster)
        assert heard(text) == ["--config", "digits.yaml"]
        plain = script("digits.yaml", CLUSTER, name="own", title="own")
        lines = [[line for line in each.splitlines() if line.startswith(HEAD)] for each in (text, plain)]
        assert lines[0] == lines[1]
        found = prepared(text, Path("/"))
        assert {name: found[name] for name in values} == values
        if cluster.venv:
            assert found["PATH"] == f"{Path(venv)}/bin:/usr/bin:/bin"
        else:
            assert found["PYTHON"] == f"apptainer exec --nv {Path(image)} python"


def test_directives_and_modules_are_those_of_the_cluster():
    cluster = ClusterConfig(
        partition="gpu,big",
        account="abc-1",
        exclude="node[3,7-9],old1",
        output="logs/%x-%j.txt",
        mail="a.b@c.de",
        module=["gcc/13.2", "openmpi"],
    )
    text = script("digits.yaml", CLUSTER, name="own", title="own", cluster=cluster)
    for line in (
        "partition=gpu,big",
        "account=abc-1",
        "exclude=node[3,7-9],old1",
        "output=logs/%x-%j.txt",
        "mail-user=a.b@c.de",
    ):
        assert f"#SBATCH --{line}\n" in text
    assert "##SBATCH" not in text
    assert prepared(text, Path("/"))["MODULES"] == "load gcc/13.2 openmpi"


def test_overrides_alone_are_those_of_the_default_configuration(in_process: Command):
    named, alone = (in_process(main, *words, "rounds=3", "num_clients=4") for words in (["digits.yaml"], []))
    assert alone == named
    assert "rounds=3" in alone[1]
    assert in_process(main, "nowhere.yaml")[0] == 2


def test_a_profile_is_merged_so_that_writing_a_script_again_loses_nothing(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "big.yaml"
    profile.write_text(
        "partition: gpu\naccount: abc\nmodule: [gcc/13]\nenv: {A: one, B: two words}\nmpi: pmi2\n"
        "cpus_per_node: 8\ntime: 01:00:00\nvenv: /opt/my env\n"
    )
    plain = ["digits.yaml", "num_clients=4", "--profile", "big.yaml"]
    code, first, err = in_process(main, *plain)
    assert (code, err) == (0, "")
    assert in_process(main, *plain)[1] == first
    for line in ("--partition=gpu", "--account=abc", "--time=01:00:00"):
        assert f"#SBATCH {line}\n" in first
    assert "MPI=${FEDKD_MPI:-pmi2}" in first
    options = ["--partition", "cpu", "--module", "hdf5", "--env", "B=3", "--env", "C=4"]
    code, changed, _ = in_process(main, *plain, *options)
    found = prepared(changed, tmp_path)
    assert "#SBATCH --partition=cpu\n#SBATCH --account=abc\n" in changed
    assert found["MODULES"] == "load gcc/13 hdf5"
    assert [found[name] for name in "ABC"] == ["one", "3", "4"]
    assert found["PATH"] == "/opt/my env/bin:/usr/bin:/bin"
    every = chosen(job_arguments().parse_args(["digits.yaml", "--profile", "big.yaml"]))
    assert (every.partition, every.cpus_per_node, every.nodes) == ("gpu", 8, None)
    for text, words in (
        ("partiton: gpu", "unknown key partiton; did you mean partition?"),
        ("module: gcc", "--profile big.yaml: module"),
        ("env: {A: 1}", "--profile big.yaml: env.A"),
        ("partition: 'a b'", "must consist of letters"),
        ("- a", "big.yaml"),
    ):
        profile.write_text(text)
        code, out, err = in_process(main, *plain)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert words in err
