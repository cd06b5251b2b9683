"""What the Slurm jobs of a cluster have in common: a profile in YAML, into which options of `fedkd job` are merged."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.options import Hint, validated
from fedkd_mpi.config.sections import Section
from fedkd_mpi.errors import UserError, shown

MPIS = ("pmix", "pmi2", "mpirun")
NODES, CORES, GPUS = (1, 100_000), (1, 4096), (0, 64)


def _printable(text: str) -> str:
    if not text.isprintable() or not text:
        raise ValueError("contains a character that is invalid in a script, or is empty")
    return text


def _only(characters: str, first: str = "A-Za-z0-9_") -> AfterValidator:
    """Return a check for texts of such characters; `first` may begin them. Both as in a regular expression's set."""

    def check(text: str) -> str:
        if not re.fullmatch(f"[{first}][{characters}]{{0,999}}", text):
            told = characters.replace("A-Za-z0-9", "letters, digits and ").replace("\\", "")
            raise ValueError(f"must consist of {told}")
        return text

    return AfterValidator(check)


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
# Slurm reads directives with rules of quoting of its own, so they hold no spaces, quotes or backslashes.
Name = Annotated[str, _only("A-Za-z0-9_.,+@:-")]
Pattern = Annotated[str, _only("A-Za-z0-9_./%@+=:,-", "A-Za-z0-9_./%")]
Nodes = Annotated[str, _only(r"A-Za-z0-9_.,\[\]-")]
Module = Annotated[str, _only("A-Za-z0-9_./+=-")]


class ClusterConfig(Section):
    """The keys of a profile; each is an option of the command line too, with - for _."""

    partition: Name | None = Field(None, description="Slurm's partition")
    account: Name | None = Field(None, description="Slurm's account")
    exclude: Nodes | None = Field(None, description="nodes that are not to be used, as Slurm names them: node[3,7-9]")
    output: Pattern | None = Field(None, description="file for what the job prints, with Slurm's %%x, %%j, ...")
    mail: Name | None = Field(None, description="address that Slurm tells when a job ends or fails")
    module: list[Module] = Field([], max_length=100, description="environment module to load; again for more")
    venv: Text | None = Field(None, description="folder of the virtual or conda environment with fedkd-mpi")
    container: Text | None = Field(None, description="Apptainer image with fedkd-mpi, see jobs/fedkd.def")
    env: dict[str, Text] = Field({}, max_length=1000, description="NAME=VALUE of the environment; again for more")
    mpi: Literal["pmix", "pmi2", "mpirun"] | None = Field(None, description="how srun starts ranks, or mpirun")
    nodes: int | None = Field(None, ge=NODES[0], le=NODES[1], description="nodes of the job (default 1)")
    cpus_per_node: int | None = Field(None, ge=CORES[0], le=CORES[1], description="cores to use per node (default 32)")
    gpus_per_node: int | None = Field(None, ge=GPUS[0], le=GPUS[1], description="GPUs to use per node (default 0)")
    time: str | None = Field(None, description="time limit per job, [D-]HH:MM:SS (default 08:00:00)")


def add_options(parser: ArgumentParser, count: Callable[[int, int], Callable[[str], int]]) -> None:
    """Add an option for every key of a profile, and --profile; `count` gives the type of whole numbers in bounds."""
    kinds: dict[str, dict[str, Any]] = {
        "module": {"action": "append", "metavar": "NAME"},
        "env": {"action": "append", "metavar": "NAME=VALUE"},
        "mpi": {"choices": MPIS},
        "nodes": {"type": count(*NODES)},
        "cpus_per_node": {"type": count(*CORES)},
        "gpus_per_node": {"type": count(*GPUS)},
    }
    for name, field in ClusterConfig.model_fields.items():
        help = f"{field.description}{' (default pmix)' if name == 'mpi' else ''}"
        parser.add_argument(f"--{name.replace('_', '-')}", help=help, **kinds.get(name, {}))
    parser.add_argument("--profile", type=Path, metavar="FILE", help="YAML file with such options for a cluster")


def chosen(options: Namespace) -> ClusterConfig:
    """Return the profile of parsed options with the options merged into it; raises UserError naming the option or key.

    An option replaces the value of the profile. Modules and variables are added to those of the profile.
    """
    profile = read(options.profile) if options.profile is not None else ClusterConfig()
    given: dict[str, Any] = {name: getattr(options, name) for name in ClusterConfig.model_fields}
    given["env"] = dict(_pairs(given["env"] or ()))
    given["module"] = given["module"] or []
    cluster = _validated({name: value for name, value in given.items() if value is not None}, "--")
    added = {
        "module": list(dict.fromkeys([*profile.module, *cluster.module])),
        "env": profile.env | cluster.env,
    }
    found = profile.model_copy(update={**cluster.model_dump(exclude_none=True), **added})
    if found.container and found.venv:
        raise UserError("--container and --venv: fedkd-mpi is in one of them; give one")
    return found


def read(path: Path) -> ClusterConfig:
    """Return the profile in a YAML file; raises UserError naming the key."""
    try:
        tree = yaml_loader.read_mapping(path, "--profile")
    except FileNotFoundError:
        raise UserError(f"--profile {shown(path)} does not exist") from None
    return _validated(tree, f"--profile {shown(path)}: ")


def _validated(tree: dict[str, Any], where: str) -> ClusterConfig:
    keys = list(ClusterConfig.model_fields)
    cluster = validated(ClusterConfig, tree, Hint(keys, f"the keys are {', '.join(keys)}"), where=where)
    for name in cluster.env:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,199}", name, re.ASCII):
            raise UserError(f"{where}env: '{shown(name)}' is not the name of a variable")
    return cluster


def _pairs(words: Iterable[str]) -> Iterable[tuple[str, str]]:
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--env '{shown(word)}' is not NAME=VALUE")
        yield name, value


def head_lines(cluster: ClusterConfig) -> str:
    """Return the lines for partition, account, excluded nodes and mail; the first two are there to be filled in."""
    lines = [f"#SBATCH --partition={cluster.partition}" if cluster.partition else "##SBATCH --partition=..."]
    lines.append(f"#SBATCH --account={cluster.account}" if cluster.account else "##SBATCH --account=...")
    if cluster.exclude:
        lines.append(f"#SBATCH --exclude={cluster.exclude}")
    if cluster.mail:
        lines += [f"#SBATCH --mail-user={cluster.mail}", "#SBATCH --mail-type=END,FAIL"]
    return "\n".join(lines)


def preparation(cluster: ClusterConfig) -> str:
    """Return the lines that prepare a job's environment, with every value quoted for bash."""
    modules = "# module load openmpi                  # the MPI that mpi4py uses"
    environment = '# source "$HOME/venv/bin/activate"     # where fedkd-mpi is installed'
    python = "PYTHON=(python)                        # or (apptainer exec --nv fedkd.sif python), see jobs/fedkd.def"
    if cluster.module:  # modules and environments may use variables that are not set
        modules = f"set +u; module load {shlex.join(cluster.module)}; set -u"
    if cluster.venv:
        venv = shlex.quote(str(Path(cluster.venv).expanduser()))
        environment = f"""venv={venv}
set +u; if [ -e "$venv/bin/activate" ]; then . "$venv/bin/activate"; else PATH="$venv/bin:$PATH"; fi; set -u"""
    if cluster.container:
        image = shlex.quote(str(Path(cluster.container).expanduser()))
        python = f"PYTHON=(apptainer exec --nv {image} python)"
    mpi = f"MPI=${{FEDKD_MPI:-{cluster.mpi or 'pmix'}}}"
    which = f"{mpi:41}# ranks by srun: pmix (Open MPI) or pmi2 (MPICH, Intel MPI); or mpirun"
    variables = [f"export {name}={shlex.quote(value)}" for name, value in cluster.env.items()]
    return "\n".join([modules, environment, which, python, *variables])
