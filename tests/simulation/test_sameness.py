"""Processes that were started differently, and nodes that read other data, are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command import TINY
from mpirun import mpirun
from plain_digits import PLAIN_DIGITS

from fedkd_mpi.config.load import load
from fedkd_mpi.errors import UserError
from fedkd_mpi.simulation import sameness


@pytest.mark.parametrize(
    ("odd", "words"),
    [(["seed=1"], "has seed=1, but rank 0"), (["--overwrite"], "has --overwrite=True,")],
)
def test_a_rank_that_was_started_differently_is_named(
    odd: list[str], words: str, mpi_vendor: str, tmp_path: Path
) -> None:
    arguments = [*TINY, PLAIN_DIGITS, "--output", tmp_path / "x.h5"]
    done = mpirun(
        3, Path(__file__).parents[1] / "helpers" / "worker_odd_rank.py", "2", *odd, "--", *arguments, mpi=mpi_vendor
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("fedkd_mpi")]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1
    assert said[0].startswith("fedkd_mpi: rank 2 on ")
    assert words in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_fails_before_mpi_ends_those_that_wait_for_it(mpi_vendor: str, tmp_path: Path) -> None:
    arguments = [*TINY, PLAIN_DIGITS, "--output", tmp_path / "x.h5"]
    worker = Path(__file__).parents[1] / "helpers" / "worker_odd_rank.py"
    done = mpirun(3, worker, "0", "nonsense=1", "--", *arguments, mpi=mpi_vendor)
    assert (done.returncode, done.stderr.count("fedkd_mpi: unknown key nonsense")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("odd", ["0", "2"])
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["--print-config"], ["--dry-run"]],
    ids=" ".join,
)
def test_a_rank_that_only_answers_is_named(arguments: list[str], odd: str, mpi_vendor: str, tmp_path: Path) -> None:
    worker = Path(__file__).parents[1] / "helpers" / "worker_odd_rank.py"
    output = ["--output", tmp_path / "x.h5"]
    done = mpirun(3, worker, odd, *arguments, "--", *TINY, PLAIN_DIGITS, *output, mpi=mpi_vendor)
    said = [line for line in done.stderr.splitlines() if line.startswith("fedkd_mpi")]
    assert (done.returncode, len(said)) == (2, 1), done.stderr
    assert said[0].startswith(f"fedkd_mpi: rank {1 if odd == '0' else 2} on ")  # the first that differs from rank 0
    assert arguments[0] in said[0]
    assert "mode=a new run" in said[0]
    assert (done.stdout == "") == (odd != "0")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_answer_differently_are_named(mpi_vendor: str) -> None:
    worker = Path(__file__).parents[1] / "helpers" / "worker_odd_rank.py"
    done = mpirun(3, worker, "1", "seed=4", "--", "--dry-run", *TINY, PLAIN_DIGITS, mpi=mpi_vendor)
    assert done.returncode == 2
    assert done.stderr.count("fedkd_mpi: rank 1 on ") == done.stderr.count("has seed=4, but rank 0 on ") == 1


def test_an_exception_before_mpi_ends_the_job(mpi_vendor: str) -> None:
    worker = Path(__file__).parents[1] / "helpers" / "worker_odd_rank.py"
    done = mpirun(2, worker, "0", "raise", "--", *TINY, PLAIN_DIGITS, mpi=mpi_vendor)
    assert done.returncode == 1
    assert done.stderr.count("TypeError: 'NoneType' object is not callable") == 1


class Pair:
    """Two processes, seen from the second, the leader of a node of its own."""

    mpi_rank, world_size, hostname, hostnames, is_root, is_node_leader = 1, 2, "b", ["a", "b"], False, True

    def __init__(self, first: dict[str, str]):
        import json

        self.first = json.dumps(first)

    def allgather(self, own: np.ndarray) -> np.ndarray:
        import hashlib

        other = hashlib.blake2b(self.first.encode(), digest_size=own.nbytes).digest()
        first = np.ones(1, np.uint8) if own.nbytes == 1 else np.frombuffer(other, np.uint8)
        return np.array([first, own.view(np.uint8)])

    def from_root(self, text: str) -> str:
        return self.first

    def broadcast_on_node(self, message: object) -> object:
        return message

    def first_message(self, text: str | None) -> str:
        return text or self.first


def test_another_array_on_a_node_is_named() -> None:
    images, labels = np.arange(8.0).reshape(2, 4), np.array([0, 1])
    data = {"train/image": images, "train/label": labels}
    sameness.require_same_data(Pair(sameness.contents(data, {})), data, {})
    for name, other in (("train/label", labels[::-1].copy()), ("train/image", images.astype(np.float32))):
        with pytest.raises(UserError, match=f"rank 1 on b has the data's {name}="):
            sameness.require_same_data(Pair(sameness.contents(data, {})), data | {name: other}, {})


def test_what_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    part = tmp_path / "own" / "part.py"
    (tmp_path / "own" / "__init__.py").write_text("raise SystemExit")  # nothing is imported for it
    monkeypatch.syspath_prepend(tmp_path)
    config = load(overrides=["data.name=own.part:Digits"])
    seen = []
    for text in ("a = 1", "a = 2"):
        part.write_text(text)
        seen.append(sameness.start(config, {}, "a new run"))
    first, second = seen
    assert {key for key in first if first[key] != second[key]} == {"source of own.part:Digits"}
    assert {"seed", "compression.t_end", "fedkd_mpi", "Python", "torch", "numpy", "h5py", "mpi4py"} <= set(first)


def test_files_of_weights_and_libraries_of_networks_are_compared(tmp_path: Path) -> None:
    file, seen = tmp_path / "w.safetensors", []
    network = f"{{name: torchvision:resnet18, weights: {file}, learning_rate: 0.1}}"
    config = load(overrides=[f"teacher={network}"])
    for content in ("one", "two"):
        file.write_text(content)
        seen.append(sameness.start(config, {}, "a new run"))
    first, second = seen
    assert {key for key in first if first[key] != second[key]} == {f"file {file}"}
    assert "torchvision" in first
    assert "torchvision" not in sameness.start(load(), {}, "a new run")
