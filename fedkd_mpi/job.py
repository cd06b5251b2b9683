"""python -m fedkd_mpi.job: write a Slurm script for a configuration and a cluster.

python -m fedkd_mpi.job fashion_mnist.yaml --nodes 2 --gpus-per-node 4 --time 08:00:00 --script night.slurm
sbatch night.slurm
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from fedkd_mpi.common import yaml_loader
from fedkd_mpi.common.command_line import Parser, count
from fedkd_mpi.common.console import say, tell
from fedkd_mpi.config import load as configuration
from fedkd_mpi.config import pairs
from fedkd_mpi.config.cluster import ClusterConfig, add_options, head_lines, preparation
from fedkd_mpi.config.cluster import chosen as merged
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.sections import seconds_of
from fedkd_mpi.errors import UserError, shown

if TYPE_CHECKING:
    from argparse import Namespace

SPARE_MEMORY = 1.25  # factor to the estimate, because allocators and MPI buffers differ between machines
NO_PROFILE = ClusterConfig()
SHORTEST = 600  # seconds of a job; Slurm's signal is sent 300 to 360 s before its end, after at least one round
LONGEST = 10**8

SCRIPT = Template(r"""#!/usr/bin/env bash
# $title
#
#     sbatch $file [KEY=VALUE ...]            touch runs/STOP to end the run after a round, without a requeue
#
# Edit before the first use: partition and account, the time, the lines of "your cluster" below.
# Before the time is over the run stops after a round with a checkpoint (exit code 75), and the job requeues itself
# and continues from there. A time limit shorter than the run is fine, if it is long enough for some rounds.
# A run that was cut off (a node or a rank died) is requeued too, but not after three starts without a further round.
$cluster
#SBATCH --job-name=$name
$resources
#SBATCH --time=$time
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$output
set -uo pipefail

# Slurm signals this shell alone (B:). The signal would kill processes that do not listen yet, so it becomes a file that
# the run looks for after each round. A trapped signal ends `wait`, not the step.
mkdir -p runs
warn() { warned=yes; [ -z "$${log:-}" ] || touch "$$log.stop"; }
trap warn USR1
trap 'cancelled=yes' TERM

# --- your cluster ------------------------------------------------------------------------------------------------
$preparation
# export HDF5_USE_FILE_LOCKING=FALSE   # if the file system of runs/ has no locks; the log itself takes none
# -----------------------------------------------------------------------------------------------------------------
$choice
export OMP_NUM_THREADS=$$SLURM_CPUS_PER_TASK   # as many threads as cores per rank
export SRUN_CPUS_PER_TASK=$$SLURM_CPUS_PER_TASK   # since Slurm 22.05 srun does not inherit it from sbatch
case $$MPI in
    mpirun)
        launch=(mpirun)
        # Slurm's SIGTERM is for the ranks, which stop after a round. mpirun would kill them a second later.
        env --block-signal=TERM true 2> /dev/null && launch=(env --block-signal=TERM mpirun) ;;   # coreutils 8.31
    *)
        unset SLURM_NTASKS_PER_NODE   # of which srun warns where nodes have different numbers of ranks
        launch=(srun --mpi="$$MPI" --cpu-bind=cores --wait=60) ;;   # ends all ranks 60 s after one has died
esac
# MPICH names its shared memory, and Slurm's PMIx a socket in its spool folder, by job and step, and a step that is
# killed, or whose node dies, leaves them behind. So each restart uses another step.
[ "$$MPI" = mpirun ] || for ((i = 0; i < $${SLURM_RESTART_COUNT:-0}; i++)); do srun --nodes=1 --ntasks=1 true; done

[ -z "$${warned:-}" ] || warn
if [ -e "$$log" ]; then what=(--resume "$$log" --trust-log); else what=("$${run[@]}" --output "$$log" "$$@"); fi
"$${launch[@]}" "$${PYTHON[@]}" -m fedkd_mpi.run "$${what[@]}" &
step=$$!
"$${PYTHON[@]}" -m fedkd_mpi.info "$$log" --await-launcher "$$step" &   # mpirun waits for ever for a node that is gone
wait "$$step"
code=$$?
while kill -0 "$$step" 2>/dev/null; do
    wait "$$step"
    code=$$?
done

rm -f "$$log.stop"
# The log says how the run ended: a launcher returns 0 when it has lost a node, and 137 when one rank was killed.
"$${PYTHON[@]}" -m fedkd_mpi.info "$$log" --ended "$$code" --restarts 3
code=$$?
state=$$(squeue --noheader --format=%T --jobs="$$SLURM_JOB_ID")   # not RUNNING after scancel
if [ "$$code" = 75 ] && [ -z "$${cancelled:-}" ] && [ "$${state:-RUNNING}" = RUNNING ] && [ ! -e runs/STOP ]; then
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$code"
""")
SINGLE = """run=(--config $config$overrides)
log=runs/$$SLURM_JOB_NAME-$$SLURM_JOB_ID.h5"""
SWEEP = """values=($values)
run=(--config $config$overrides "$key=$${values[$$SLURM_ARRAY_TASK_ID]}")   # or --config "$${values[...]}" with files
log=runs/$$SLURM_JOB_NAME-$$SLURM_ARRAY_JOB_ID-$$SLURM_ARRAY_TASK_ID.h5"""


@dataclass(frozen=True)
class Resources:
    """The resources of a job: processes in total and on the fullest node, cores per process, GPUs and GB per node."""

    nodes: int
    tasks: int
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int
    memory_per_node: int  # GB


def plan(config: Config, nodes: int, cpus_per_node: int, gpus_per_node: int, process_bytes: int) -> Resources:
    """Return the resources: one process per client of the cohort and the server, limited by cores or GPUs.

    With GPUs there is one process per GPU, and the server uses the first GPU in addition. `process_bytes` is the memory
    of the fullest process. Raises UserError if the nodes do not have room for the server and one process for clients.
    """
    threads = 1 if config.threads_per_rank == "auto" else config.threads_per_rank
    room = nodes * gpus_per_node + 1 if gpus_per_node else nodes * (cpus_per_node // threads)
    tasks = min(config.clients_per_round + 1, room)
    per_node = -(-tasks // nodes) if not gpus_per_node else min(tasks, gpus_per_node + 1)
    if tasks < 2 or tasks < nodes or per_node * threads > cpus_per_node:
        raise UserError(
            f"{tasks} processes with {threads} threads each do not fit {nodes} node(s) of {cpus_per_node} cores: "
            "change --nodes, --cpus-per-node or threads_per_rank"
        )
    if config.threads_per_rank == "auto":
        threads = cpus_per_node // per_node
    memory = -int(-per_node * process_bytes * SPARE_MEMORY // 10**9)
    return Resources(nodes, tasks, per_node, threads, gpus_per_node, max(1, memory))


def script(
    config_name: str,
    resources: Resources,
    *,
    name: str,
    title: str,
    file: str = "FILE",
    time: str = "08:00:00",
    cluster: ClusterConfig = NO_PROFILE,
    overrides: Sequence[str] = (),
    sweep: tuple[str, Sequence[str]] | None = None,
) -> str:
    """Return the text of a script; `sweep` is a key and its values (YAML) for a job array with one task per value.

    Every argument reaches the run unchanged, because it is quoted for the shell.
    """
    directives = [
        f"--nodes={resources.nodes}",
        f"--ntasks={resources.tasks}",
        f"--ntasks-per-node={resources.tasks_per_node}",
        f"--cpus-per-task={resources.cpus_per_task}",
        f"--mem={resources.memory_per_node}G",
    ]
    if resources.gpus_per_node:
        # A rank uses GPU number (its rank on the node) modulo the number of GPUs, so it must see all GPUs.
        directives += [f"--gpus-per-node={resources.gpus_per_node}", "--gpu-bind=none"]
    key, values = sweep or ("", ())
    if sweep:
        directives.append(f"--array=0-{len(values) - 1}")
    choice = Template(SWEEP if sweep else SINGLE).substitute(
        config=shlex.quote(config_name),
        overrides="".join(f" {shlex.quote(override)}" for override in overrides),
        key=key,
        values=shlex.join(values),
    )
    return SCRIPT.substitute(
        title=title,
        file=shlex.quote(file),
        name=name,
        resources="\n".join(f"#SBATCH {directive}" for directive in directives),
        time=time,
        cluster=head_lines(cluster),
        output=cluster.output or ("%x-%A_%a.out" if sweep else "%x-%j.out"),
        preparation=preparation(cluster),
        choice=choice,
    )


def swept(text: str) -> tuple[str, list[str]]:
    """Return key and values of KEY=A,B,...; commas in brackets and quotes are part of a value. Raises UserError."""
    key, equals, listed = text.partition("=")
    try:
        values = yaml_loader.slices(listed)
    except ValueError as error:
        raise UserError(f"--sweep '{shown(text)}': {error}") from None
    if not (key and equals and values):
        raise UserError(f"--sweep '{shown(text)}' is not KEY=A,B,..., for example seed=0,1,2")
    return key, values


def require_one_line(name: str, text: str) -> None:
    """Raise UserError if a text cannot be part of a line of a script."""
    if not text.isprintable():
        raise UserError(f"{name}='{shown(text)}' contains a character that is invalid in a script")


def check_time(text: str) -> str:
    """Return a time in Slurm's format; raises UserError if it has another format or is too short for a round."""
    try:
        seconds = seconds_of(text)
    except ValueError:
        raise UserError(f"--time '{shown(text)}' must be [D-]HH:MM:SS, for example 08:00:00 or 1-12:00:00") from None
    if not SHORTEST <= seconds <= LONGEST:
        raise UserError(f"--time {text}: must be from 00:10:00 (Slurm signals the end 5 minutes before) to 3 years")
    return text


def arguments() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("job", "Write a Slurm script for a configuration.")
    parser.add_argument("config", nargs="?", default="digits.yaml", metavar="CONFIG", help="as --config for the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    add_options(parser, count)
    parser.add_argument("--sweep", metavar="KEY=A,B,...", help="a job array with one task per value")
    parser.add_argument("--script", type=Path, metavar="FILE", help="write to this file instead of the console")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the script; returns the exit code."""
    chosen = arguments().parse_intermixed_args(argv)
    if "=" in chosen.config and not Path(chosen.config).exists():  # KEY=VALUE alone, of the default configuration
        chosen.config, chosen.overrides = "digits.yaml", [chosen.config, *chosen.overrides]
    try:
        text = write(chosen)
        if chosen.script:
            chosen.script.write_text(text, encoding="utf-8")
    except UserError as error:
        say(f"fedkd_mpi.job: {error}", error=True)
        return 2
    except OSError as error:
        say(f"fedkd_mpi.job: cannot write {shown(chosen.script)}: {error.strerror}", error=True)
        return 2
    if not chosen.script:
        tell(text.removesuffix("\n"))
    return 0


def write(chosen: Namespace) -> str:
    """Return the script for the parsed arguments; raises UserError as the run itself would."""
    for name, text in (("CONFIG", chosen.config), ("--script", str(chosen.script)), *enumerate(chosen.overrides)):
        require_one_line(name if isinstance(name, str) else "override", text)
    cluster = merged(chosen)
    time, sweep = check_time(cluster.time or "08:00:00"), swept(chosen.sweep) if chosen.sweep is not None else None
    runs = [[*chosen.overrides, f"{sweep[0]}={value}"] for value in sweep[1]] if sweep else [chosen.overrides]
    for run in runs:
        require_one_line("override", run[-1] if run else "")
    configs = [configuration.load(Path(chosen.config), run) for run in runs]
    for config in configs:
        pairs.check(config)
    digests = [config.digest() for config in configs]
    if sweep and (again := next((n for n, digest in enumerate(digests) if digest in digests[:n]), None)):
        raise UserError(f"--sweep gives {shown(runs[again][-1])} twice: every task would run the same")
    room = cluster.nodes or 1, cluster.cpus_per_node or 32, cluster.gpus_per_node or 0
    config, resources = configs[0], fitting(configs, *room)
    return script(
        chosen.config,
        resources,
        name=config.name,
        title=f"{config.name}: {config.num_clients} clients, {resources.tasks} processes",
        file=str(chosen.script or "FILE"),
        time=time,
        cluster=cluster,
        overrides=chosen.overrides,
        sweep=sweep,
    )


def fitting(configs: Sequence[Config], nodes: int, cpus_per_node: int, gpus_per_node: int) -> Resources:
    """Return resources that are sufficient for each configuration; configurations that differ in the seed are equal."""
    from fedkd_mpi.simulation.dry_run import process_bytes

    plans = []
    for config in {config.model_copy(update={"seed": 0}).digest(): config for config in configs}.values():
        # The cohort determines the number of processes, which determines the clients of the fullest process.
        draft = plan(config, nodes, cpus_per_node, gpus_per_node, 0)
        size = process_bytes(config, draft.tasks)
        plans.append(plan(config, nodes, cpus_per_node, gpus_per_node, size))
    if len({replace(plan, memory_per_node=0) for plan in plans}) > 1:
        raise UserError("the values of --sweep need different numbers of processes or threads: write a script for each")
    return max(plans, key=lambda plan: plan.memory_per_node)


if __name__ == "__main__":
    sys.exit(main())
