"""The configuration: every key settable, mistakes refused with one line that names the key, nothing heavy imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mpirun import mpirun, run
from pydantic import ValidationError

from fedkd_mpi.config.load import load
from fedkd_mpi.config.schema import Config
from fedkd_mpi.config.shipped import presets
from fedkd_mpi.errors import UserError

# Every key at another value than the default's; keys that go together stand together.
SETTINGS = [
    "name=mine",
    "seed=7",
    "rounds=3",
    "num_clients=5",
    "clients_in_memory=2",
    "cohort_size=4",
    "method=local",
    "device=cpu",
    "stack=4",
    "compile=true",
    "precision=bfloat16",
    "threads_per_rank=2",
    "threads_per_rank=auto",
    "on_nonfinite=skip",
    "task=mine:Task",
    "data.name=cifar10",
    "data.root=/somewhere",
    "partition.kind=iid partition.alpha=null",
    "partition.kind=natural partition.alpha=null",
    "partition.kind=pathological partition.alpha=null partition.classes_per_client=2",
    "partition.kind=file partition.alpha=null partition.path=parts.json",
    "partition.alpha=0.125",
    "partition.balanced=true",
    "partition.kind=pathological partition.alpha=null partition.classes_per_client=2 partition.unbalanced=true",
    "data.pooled=0",
    "data.pixels=half",
    "local.shuffle=false",
    "local.drop_last=true",
    "optimizer.renew=true",
    "partition.min_samples=3",
    "partition.test_fraction=0.25",
    "teacher.hidden=[7,6]",
    "student.hidden=[5]",
    "student.activation=tanh",
    "teacher.learning_rate=0.03",
    "student.learning_rate=0.04",
    "optimizer.name=adam optimizer.momentum=0.0",
    "optimizer.momentum=0.25",
    "optimizer.nesterov=true",
    "optimizer.name=adamw optimizer.momentum=0.0 optimizer.betas=[0.5,0.75] optimizer.eps=0.125",
    "optimizer.weight_decay=0.125",
    "optimizer.clip_norm=2.5",
    "schedule.warmup_rounds=2",
    "schedule.name=step schedule.step_rounds=3 schedule.gamma=0.5",
    "schedule.name=cosine schedule.minimum=0.125",
    "schedule.every=step schedule.warmup_steps=5 schedule.name=step schedule.step_steps=7",
    "schedule.name=mine:schedule",
    "optimizer.name=mine:Optimizer optimizer.momentum=0.0",
    "local.accumulate=4",
    "stop.metric=accuracy stop.patience=3 stop.min_delta=0.125",
    "precision=float16",
    "portable_bits=true",
    "local.label_smoothing=0.125",
    "local.epochs=2",
    "local.epochs=null local.steps=9",
    "local.batch_size=9",
    "server.learning_rate=0.5",
    "server.weighting=samples",
    "server.buffers=local",
    "distillation.adaptive=false",
    "distillation.logits=false",
    "distillation.hidden=false",
    "distillation.attention=false",
    "distillation.floor=0.125",
    "distillation.shared_map=true",
    "compression.codec=none",
    "compression.t_start=0.5",
    "compression.t_end=0.99",
    "compression.error_feedback=ef",
    "compression.codec=rdsvd compression.error_feedback=ef21 compression.energy_scope=model",
    "compression.byte_budget=70000",
    "compression.run_budget=7000000 compression.budget_growth=2.5",
    "exchange=gradient_sum server.optimizer=fedadam server.learning_rate=0.01",
    "server.optimizer=fedadam server.learning_rate=0.01 server.beta1=0.5 server.beta2=0.75 server.tau=0.125",
    "server.momentum=0.5",
    "server.optimizer=fedadagrad server.learning_rate=0.01",
    "server.optimizer=fedyogi server.learning_rate=0.01",
    "compression.warm_start=true",
    "compression.codec=quantize compression.bits=4",
    "compression.codec=topk compression.density=0.125",
    "compression.codec=eden compression.bits=0.5",
    "compression.codec=dadaquant compression.patience=3",
    "compression.codec=sz3 compression.error_bound=0.125",
    "compression.codec=powersgd compression.rank=2",
    "compression.codec=fetchsgd compression.sketch_rows=3",
    "compression.codec=fetchsgd compression.sketch_share=0.25",
    "privacy.encryption=aes-gcm",
    "privacy.clip_norm=0.5 privacy.noise_multiplier=2.0 privacy.delta=0.0001 privacy.where=client",
    "privacy.clip_norm=0.5 privacy.target_epsilon=4.0 privacy.delta=0.0001 privacy.max_epsilon=3.0",
    "cohort_size=2 privacy.clip_norm=0.5 privacy.noise_multiplier=2.0 privacy.delta=0.0001 privacy.secret_cohorts=true",
    "compression.schedule=mine:schedule",
    "cohort_size=2 sampler=mine:sampler",
    "server.aggregator=mine:rule",
    'evaluate.metrics=["mine:Metric"]',
    "data.augment=true",
    "evaluate.every=3",
    "evaluate.global_teachers=true",
    "averaging.network=teacher",
    "averaging.proximal=0.5",
    "averaging.keep=0.5",
    "log.spectra=true",
    "balance=false",
    "checkpoint.every=3",
    "checkpoint.last=false",
    "checkpoint.best=all",
    f"init.student=/a.safetensors init.student_digest={'a' * 64}",
    f"method=local init.teacher=/a.safetensors init.teacher_digest={'b' * 64}",
    "watchdog.seconds=30.5",
    "watchdog.abort_seconds=5000.5",
    "time_limit=90.5",
]


def leaves(config: Config) -> dict[str, Any]:
    def walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            yield from walk(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    return dict(walk(yaml.safe_load(config.to_yaml()), ""))


def refusal(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_key_is_settable_and_moves_nothing_else(settings: str):
    expected = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in settings.split())}
    before, after = leaves(load()), leaves(load(overrides=settings.split()))
    assert {key: value for key, value in after.items() if before[key] != value} == expected


def test_the_settings_above_name_every_key():
    keys = {text.partition("=")[0] for settings in SETTINGS for text in settings.split()}
    assert set(leaves(load())) - keys == {
        "teachers",
        "teacher.name",
        "teacher.activation",
        "teacher.features",
        "student.name",
        "student.features",
        "compression.options",
        "partition.options",
        "optimizer.options",
    }


def test_another_optimiser_lets_go_of_the_momentum_of_a_file():
    config = load(overrides=["optimizer.name=adam"])
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.clip_norm) == ("adam", 0.0, 1.0)
    assert load(overrides=["optimizer.name=sgd"]).digest() == load().digest()


def test_a_section_can_be_replaced_as_a_whole():
    config = load(overrides=["teacher={name: resnet, norm: batch, learning_rate: 0.5}"])
    assert config.teacher.options() == {"depth": 20, "width": None, "norm": "batch"}
    assert (config.teacher.name, config.teacher.learning_rate) == ("resnet", 0.5)


def test_any_printed_value_can_be_given_back_as_an_override():
    config = load()
    overrides = [f"{key}={json.dumps(value)}" for key, value in leaves(config).items()]  # JSON is YAML on one line
    assert load(overrides=overrides).digest() == config.digest()


@pytest.mark.parametrize("path", sorted(presets().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load_and_print_as_they_are(path: Path, tmp_path: Path):
    config = load(path)
    assert load(own(tmp_path, config.to_yaml())).digest() == config.digest()
    assert config.name == path.stem
    assert load(Path(path.name)).digest() == load(Path(path.stem)).digest() == config.digest()


def test_digits_is_built_in():
    assert load().digest() == load(presets() / "digits.yaml").digest()
    assert (load().num_clients, load().compression.t_start, load().compression.t_end) == (32, 0.95, 0.98)


def test_the_digest_is_that_of_the_values(tmp_path: Path):
    assert load(overrides=["seed=0"]).digest() == load().digest()
    assert load(overrides=["seed=1"]).digest() != load().digest()
    reordered = dict(reversed(yaml.safe_load((presets() / "digits.yaml").read_text(encoding="utf-8")).items()))
    assert load(own(tmp_path, yaml.safe_dump(reordered))).digest() == load().digest()


def test_a_configuration_is_frozen():
    for section in (load(), load().compression, load().teacher):
        with pytest.raises(ValidationError):
            section.name = "other"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("rouds=3", "unknown key rouds; did you mean rounds?"),
        ("compression.tstart=0.9", "unknown key compression.tstart; did you mean compression.t_start?"),
        ("t_start=0.9", "unknown key t_start; did you mean compression.t_start?"),
        ("compresion.t_start=0.9", "unknown key compresion; did you mean compression?"),
        ("student.hiden=[3]", "unknown key student.hiden; did you mean student.hidden?"),
        ("student.depth=3", "unknown key student.depth; keys of mlp: hidden, activation"),
        ("lr=0.1", "unknown key lr; did you mean teacher.learning_rate and student.learning_rate?"),
        ("local.lr=0.1", "unknown key local.lr; did you mean teacher.learning_rate and student.learning_rate?"),
        ("teacher.lr=0.1", "unknown key teacher.lr; did you mean teacher.learning_rate?"),
        ("batch_size=8", "unknown key batch_size; did you mean local.batch_size?"),
        ("activation=relu", "unknown key activation; did you mean teacher.activation and student.activation?"),
        ("compression.codec=svdd", "compression.codec=svdd is unknown; did you mean svd?"),
        ("task=denoise", "task=denoise is unknown; did you mean denoising?"),
        ("data.name=cifar_10", "data.name=cifar_10 is unknown; did you mean cifar10?"),
        ("zzz=1", "unknown key zzz; --print-config shows all keys"),
        ("teacher.name=mpl", "teacher.name=mpl is unknown; did you mean mlp?"),
        ("cohort_size=33", "cohort_size (33) must not exceed num_clients (32)"),
        ("compression.t_start=0.99", "compression.t_start (0.99) must not exceed compression.t_end (0.98)"),
        ("compression.t_start=0", "compression.t_start=0"),
        ("compression.t_end=1.01", "compression.t_end=1.01"),
        ("compression.t_end=.nan", "compression.t_end=nan"),
        ("rounds=0", "rounds=0"),
        ("rounds=many", "rounds=many"),
        ("rounds=", "rounds=None"),
        ("num_clients=0", "num_clients=0"),
        ("seed=-1", "seed=-1"),
        ("local.steps=3", "give one of local.epochs and local.steps (set the other to null)"),
        ("local.epochs=null", "give one of local.epochs and local.steps (set the other to null)"),
        ("partition.kind=iid partition.alpha=0.5", "partition.alpha belongs to partition.kind=dirichlet, not iid"),
        ("partition.kind=dirichlet partition.alpha=null", "partition.kind=dirichlet needs partition.alpha"),
        ("partition.kind=pathological partition.alpha=null", "needs partition.classes_per_client"),
        ("partition.classes_per_client=2", "partition.classes_per_client belongs to partition.kind=pathological"),
        ("partition.alpha=0", "partition.alpha=0"),
        ("optimizer.name=adam optimizer.momentum=0.9", "optimizer.momentum belongs to optimizer.name=sgd"),
        ("server.tau=0.01", "server.tau belongs to server.optimizer=fedadagrad or fedadam or fedyogi, not sgd"),
        (
            "server.optimizer=fedadagrad server.learning_rate=0.1 server.beta2=0.9",
            "server.beta2 belongs to server.optimizer=fedadam or fedyogi, not fedadagrad",
        ),
        (
            "server.optimizer=fedyogi server.learning_rate=0.1 server.momentum=0.9",
            "server.momentum belongs to server.optimizer=sgd, not fedyogi",
        ),
        ("method=scaffold server.momentum=0.9", "method=scaffold needs server.momentum=null"),
        ("optimizer.betas=[0.9,0.99]", "optimizer.betas belongs to optimizer.name=adam or adamw, not sgd"),
        ("optimizer.betas=[0.9,1.0] optimizer.name=adam optimizer.momentum=0", "optimizer.betas.1=1"),
        ("schedule.gamma=0.5", "schedule.gamma belongs to schedule.name=step, not constant"),
        ("schedule.name=step", "schedule.name=step needs one of schedule.step_rounds and schedule.step_steps"),
        (
            "schedule.name=step schedule.step_rounds=2 schedule.minimum=0.1",
            "schedule.minimum belongs to schedule.name=cosine",
        ),
        ("rounds=4 schedule.warmup_rounds=4", "schedule.warmup_rounds (4) must be below rounds (4)"),
        ("local.label_smoothing=1", "local.label_smoothing=1"),
        ("optimizer.eps=0.1", "optimizer.eps belongs to optimizer.name=adam or adamw, not sgd"),
        ("optimizer.momentum=0 optimizer.nesterov=true", "optimizer.nesterov=true needs optimizer.momentum above 0"),
        (
            "optimizer.name=adamw optimizer.momentum=0 optimizer.nesterov=true",
            "optimizer.nesterov belongs to optimizer.name=sgd",
        ),
        ("server.optimizer=fedadam", "server.optimizer=fedadam needs server.learning_rate"),
        ("server.optimizer=adam", "server.optimizer=adam"),
        ("student.learning_rate=0", "student.learning_rate=0"),
        ("student.hidden=[0]", "student.hidden.0=0"),
        ("method=fedave", "method=fedave"),
        ("device=gpu", "device=gpu"),
        ("stack=0", "stack=0: "),
        ("threads_per_rank=0", "threads_per_rank=0: must be greater than or equal to 1 or must be 'auto'"),
        ("on_nonfinite=ignore", "on_nonfinite=ignore"),
        ("name=a/b", "name=a/b"),
        ("data=5", "data=5"),
        ("rounds", "override 'rounds' is not KEY=VALUE"),
        ("=3", "override '=3' is not KEY=VALUE"),
        ("rounds.x=3", "override 'rounds.x=3': rounds is not a section"),
        ("student.hidden=[3", "override 'student.hidden=[3': the value is not YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(overrides: str, words: str):
    assert words in refusal(*overrides.split())


def test_several_mistakes_are_told_at_once():
    text = refusal("rouds=3", "seed=-1", "local.batch_size=0")
    assert all(key in text for key in ("rouds", "seed=-1", "local.batch_size=0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds: [1", "is not YAML"),
        ("- rounds", "must be a mapping of keys to values"),
        ("", "must be a mapping of keys to values"),
        ("rounds: 3", "num_clients is missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, words: str):
    assert words in refusal(path=own(tmp_path, text))


def test_a_missing_file_is_named_with_what_is_shipped(tmp_path: Path):
    text = refusal(path=tmp_path / "none.yaml")
    assert str(tmp_path / "none.yaml") in text
    assert "digits.yaml" in text


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_bytes(b"\xff\xfe\x00rounds")
    assert "is not YAML" in refusal(path=path)


def test_the_threshold_rises_linearly_from_the_first_round_to_the_last():
    config = load(overrides=["rounds=4", "compression.t_start=0.9", "compression.t_end=0.96"])
    assert [config.threshold(index) for index in range(4)] == pytest.approx([0.9, 0.92, 0.94, 0.96], abs=1e-12)
    assert load(overrides=["rounds=1"]).threshold(0) == 0.95


# Loading one of these takes a second.
LIGHT = [Path(__file__).parents[1] / "helpers" / "worker_without.py", "torch,mpi4py,h5py,sklearn,pandas"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "usage: python -m fedkd_mpi.run"),
        (["--print-config", "seed=5"], 0, "seed: 5"),
        (["rouds=3"], 2, "fedkd_mpi: unknown key rouds; did you mean rounds?"),
        (["--colour"], 2, "unrecognized arguments: --colour; --help shows the usage"),
        (["--config", "none.yaml"], 2, "--config none.yaml does not exist"),
        (["student.hidden=[0]"], 2, "student.hidden.0=0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_need_neither_torch_nor_mpi(arguments: list[str], code: int, words: str, tmp_path: Path):
    done = run([sys.executable, *LIGHT, "run", *arguments], cwd=tmp_path)
    said, silent = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert (done.returncode, silent) == (code, "")
    assert words in said
    assert len(said.splitlines()) == 1 or not code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("job --help", 0, "usage: python -m fedkd_mpi.job"),
        ("job digits.yaml --time 3h", 2, "--time '3h' must be"),
        ("job digits.yaml rouds=3", 2, "did you mean rounds?"),
        ("sweep --help", 0, "usage: python -m fedkd_mpi.sweep"),
        ("sweep none.yaml", 2, "the sweep none.yaml does not exist"),
        ("sweep table1/digits.yaml --list", 0, "fedkd-rdsvd-s2.h5"),
        ("sweep table1/digits.yaml --jobs 0", 2, "argument --jobs: 0 is not a whole number from 1"),
    ],
)
def test_scripts_and_sweeps_need_neither_torch_nor_mpi_to_be_checked(
    command: str, code: int, words: str, tmp_path: Path
):
    done = run([sys.executable, *LIGHT, *command.split()], cwd=tmp_path)
    said, silent = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert (done.returncode, silent) == (code, "")
    assert words in said
    assert len(said.splitlines()) == 1 or not code
    assert not list(tmp_path.iterdir())


def test_print_config_is_a_configuration_file(tmp_path: Path):
    settings = ["rounds=3", "student.hidden=[5]", "data.root=/somewhere", "cohort_size=2"]
    done = run([sys.executable, *LIGHT, "run", "--print-config", *settings])
    assert load(own(tmp_path, done.stdout)).digest() == load(overrides=settings).digest()


def test_under_a_launcher_a_mistake_is_told_once(mpi_vendor: str, tmp_path: Path):
    done = mpirun(3, *LIGHT, "run", "rouds=3", mpi=mpi_vendor, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    ours = [line for line in done.stderr.splitlines() if "fedkd_mpi" in line or "Traceback" in line]
    assert ours == ["fedkd_mpi: unknown key rouds; did you mean rounds?"]


def test_under_a_launcher_the_configuration_is_printed_once(mpi_vendor: str, tmp_path: Path):
    done = mpirun(3, *LIGHT, "run", "--print-config", mpi=mpi_vendor, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert load(own(tmp_path, done.stdout)).digest() == load().digest()
