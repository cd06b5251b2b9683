"""A user's own arrays are checked before they are shared: each fault is one line naming array, index and value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpirun import REPOSITORY, mpirun

from fedkd_mpi import tasks
from fedkd_mpi.datasets import Dataset, checks
from fedkd_mpi.errors import UserError
from fedkd_mpi.tasks.image_classification import ImageClassification


def images() -> dict[str, Any]:
    x, y = np.zeros((20, 1, 4, 4), np.float32), np.arange(20, dtype=np.int64) % 10
    meta = {"classes": list("0123456789"), "scale": 1.0, "mean": [0.5], "std": [0.25]}
    return {"train": {"x": x, "y": y}, "test": {"x": x.copy(), "y": y.copy()}, "meta": meta}


def put(part: str, key: str, value: Callable[[Any], Any]) -> Callable[[dict], None]:
    def change(data: dict) -> None:
        data[part][key] = value(data[part][key])

    return change


def nan(x: np.ndarray) -> np.ndarray:
    x[7, 0, 1, 2] = np.nan
    return x


FAULTS = {
    "one-based": (put("train", "y", lambda y: y + 1), r"train\['y'\] has 10 at index 9, .*0\.\.9"),
    "one-based test": (put("test", "y", lambda y: y + 1), r"test\['y'\] has 10 at index 9"),
    "negative": (put("train", "y", lambda y: y - 1), "has -1 at index 0"),
    "float": (put("train", "y", lambda y: y.astype(float)), "float64"),
    "int32": (put("train", "y", lambda y: y.astype(np.int32)), "int32"),
    "big endian": (put("train", "y", lambda y: y.astype(">i8")), "byte order"),
    "list": (put("train", "y", lambda y: y.tolist()), "is a list"),
    "strings": (put("train", "y", lambda y: y.astype(str)), "<U21"),
    "one-hot": (put("train", "y", lambda y: np.eye(10, dtype=np.int64)[y]), r"\[20, 10\]"),
    "nan": (put("test", "x", nan), r"test\['x'\] has nan at \[7, 0, 1, 2\]"),
    "channels last": (put("train", "x", lambda x: x.transpose(0, 2, 3, 1)), "alike in train and test|one per channel"),
    "no channel": (put("train", "x", lambda x: x[:, 0]), r"\[n, channels, height, width\]"),
    "empty": (put("test", "y", lambda y: y[:0]), "at least one sample"),
    "float32 mean": (put("meta", "mean", lambda m: [np.float32(0.5)]), "float32 is not JSON"),
    "std": (put("meta", "std", lambda m: [0.0]), "above 0"),
    "one class": (put("meta", "classes", lambda m: ["only"]), "2 or more classes"),
}


def door(data: dict[str, Any]) -> None:
    checks.check_dataset("own", data["train"], data["test"], {}, data["meta"])
    tasks.check_data("image_classification", "own", data["train"], data["test"], data["meta"])


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_wrong_is_named(case: str):
    change, message = FAULTS[case]
    data = images()
    change(data)
    with pytest.raises(UserError, match=message) as caught:
        door(data)
    assert "\n" not in str(caught.value)


def test_what_is_right_and_what_another_task_may_have_passes():
    data = images()
    checks.check_dataset("own", data["train"], data["test"], {}, data["meta"])
    tasks.check_data("image_classification", "own", data["train"], data["test"], data["meta"])
    masks = {"x": np.zeros((3, 4, 4)), "mask": np.ones((3, 4, 4), bool), "ids": np.zeros((3, 9), np.int32)}
    masks |= {"weights": np.full((3, 2), np.nan), "names": np.array(["a", "b", "c"])}
    checks.check_dataset("own", masks, masks, {"titles": np.zeros((2, 5), np.int32)}, {})
    tasks.check_data("test_own_data:Plain", "own", masks, masks, {})
    with pytest.raises(UserError, match=r"train\['weights'\] has nan at \[0, 0\]"):
        tasks.check_data("test_own_data:Weighted", "own", masks, masks, {})


class Plain(ImageClassification):
    """A task that declares nothing."""

    check = None


class Weighted(Plain):
    """A task that says which numbers must be finite."""

    inputs = ("x", "weights")


def small(task: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    text = {"vocabulary": 9, "length": 4, "pad": 0}
    ids = np.array([[2, 8, 3, 0], [2, 3, 0, 0]], np.int32)
    if task == "denoising":
        return {key: np.zeros((2, 1, 11, 11), np.int16) for key in "xy"}, {"window": [-160, 240]}
    if task == "ner":
        tags = np.array([[-1, 1, -1, -1], [-1, -1, -1, -1]], np.int8)
        return {"ids": ids, "tags": tags, "missed": np.zeros(2, np.int64)}, {"kinds": ["drug"], **text}
    shown = np.array([[1, 2, 0], [2, 1, 1]], np.int32)
    clicked = np.array([[1, 0, 0], [0, 0, 1]], np.int8)
    return {"history": shown, "candidates": shown, "clicked": clicked, "titles": np.vstack([0 * ids[:1], ids])}, text


@pytest.mark.parametrize(
    ("task", "key", "change", "message"),
    [
        ("denoising", "y", lambda y: y[:, :, :3], "x like y"),
        ("denoising", "x", lambda x: x.astype(np.float32) * np.nan, r"\['x'\] has nan"),
        ("denoising", "x", lambda x: x.astype(np.longdouble), "at most 8 bytes"),
        ("ner", "tags", lambda tags: tags + 2, r"\['tags'\] has 3 at \[0, 1\]"),
        ("ner", "tags", lambda tags: tags[:, :3], "expected int8"),
        ("ner", "tags", lambda tags: np.abs(tags), "which is padding"),
        ("ner", "missed", lambda missed: missed - 1, "has -1 at"),
        ("news", "candidates", lambda rows: rows + 2, r"has 3 at \[0, 0\]"),
        ("news", "clicked", lambda clicked: clicked * 0, "must have a click"),
        ("news", "titles", lambda ids: ids + 1, "has 9 at|behind padding"),
    ],
)
def test_tasks_of_this_package_name_what_they_do_not_take(task: str, key: str, change: Callable, message: str):
    arrays, meta = small(task)
    tasks.check_data(task, "own", arrays, arrays, meta)
    wrong = {**arrays, key: change(arrays[key])}
    with pytest.raises(UserError, match=message) as caught:
        tasks.check_data(task, "own", wrong, wrong, meta)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"lack.* '?{key}"):
        tasks.check_data(task, "own", *(2 * [{name: array for name, array in arrays.items() if name != key}]), meta)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([2, 9, 3, 0], r"test\['ids'\] has 9 at \[1, 1\], expected 0\.\.8"),
        ([2, -1, 3, 0], "has -1 at"),
        ([0, 2, 3, 0], r"behind padding at \[1, 1\]"),
    ],
)
def test_tokens_are_of_the_vocabulary_and_padded_at_the_end(row: list[int], message: str):
    meta = {"vocabulary": 9, "length": 4, "pad": 0}
    good = {"ids": np.array([[2, 8, 3, 0], [2, 3, 0, 0]], np.int32)}
    checks.check_texts("own", good, good, meta)
    with pytest.raises(UserError, match=message):
        checks.check_texts("own", good, {"ids": np.array([[2, 3, 0, 0], row], np.int32)}, meta)


def one_based(root: Path | None, seed: int) -> Dataset:
    data = images()
    data["test"]["y"] += 1
    return Dataset(data["train"], data["test"], data["meta"])


def test_three_processes_say_it_once(mpi_vendor: str, tmp_path: Path):
    keys = ["rounds=1", "num_clients=2", "partition={kind: iid}", "data.name=test_own_data:one_based"]
    path = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests/helpers:{Path(__file__).parent}"}
    done = mpirun(3, "-m", "fedkd_mpi.run", *keys, mpi=mpi_vendor, cwd=tmp_path, env=path)
    assert done.returncode == 2
    assert done.stderr.count("fedkd_mpi: data.name=test_own_data:one_based: test['y'] has 10 at index 9") == 1
    assert done.stderr.count("fedkd_mpi") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.h5"))
