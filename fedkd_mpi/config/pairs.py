"""Compatibility of data sets, tasks and models, checked before data are read; a user's own parts may be of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedkd_mpi.errors import UserError, shown

if TYPE_CHECKING:
    from fedkd_mpi.config.schema import Config


class Needs(NamedTuple):
    """The requirements of a task: names of data sets and models, and the contents that a user's data set must have."""

    data: tuple[str, ...]
    models: tuple[str, ...]
    arrays: tuple[str, ...]
    meta: tuple[str, ...]


PICTURES = (
    "digits",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "cifar100",
    "tiny_imagenet",
    "flowers102",
    "folder",
    "npz",
    "hf",
)
NETWORKS = ("mlp", "cnn", "resnet", "torchvision", "hf")  # of pictures
TEXT = ("vocabulary", "length", "pad")
TASKS = {
    "image_classification": Needs(PICTURES, NETWORKS, ("x", "y"), ("classes", "scale", "mean", "std")),
    "tabular": Needs(("csv", "npz", "hf"), ("mlp",), ("x", "y"), ("classes", "mean", "std")),
    "denoising": Needs(("mayo_ct",), ("redcnn",), ("x", "y"), ("window",)),
    "text_classification": Needs(("ade", "smm4h", "csv", "hf"), ("bert",), ("ids", "y"), ("classes", *TEXT)),
    "ner": Needs(("medical_ner",), ("bert",), ("ids", "tags", "missed"), ("kinds", *TEXT)),
    "news": Needs(("mind_small", "mind_large"), ("bert",), ("history", "candidates", "clicked"), TEXT),
}


def check(config: Config) -> None:
    """Raise UserError naming the task and the first data set or model of this package that does not match it."""
    needs = TASKS.get(config.task.name)
    if needs is None:
        return
    networks = [("student", config.student), *_teachers(config)]
    for key, name, fitting, kinds in (
        ("data.name", config.data.name, needs.data, [known.data for known in TASKS.values()]),
        *(
            (f"{key}.name", part.name, needs.models, [known.models for known in TASKS.values()])
            for key, part in networks
        ),
    ):
        if name in fitting or not any(name in kind for kind in kinds):
            continue
        others = [task for task, kind in zip(TASKS, kinds, strict=True) if name in kind]
        raise UserError(
            f"{key}={name} does not match task={config.task.name}, which needs {', '.join(fitting)}; {name} is for"
            f" task={' or '.join(others)}"
        )


def require(task: str, name: str, parts: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Raise UserError if arrays or metadata that a task of this package needs are missing in a data set.

    `parts` are the arrays of "train" and "test".
    """
    needs = TASKS.get(task)
    if needs is None:
        return
    for part, arrays in parts.items():
        if missing := [key for key in needs.arrays if key not in arrays]:
            raise UserError(
                f"data.name={name} does not match task={task}: {', '.join(missing)} missing in {part}, which has"
                f" {shown(', '.join(map(str, arrays)))}"
            )
    if missing := [key for key in needs.meta if key not in meta]:
        raise UserError(f"data.name={name} does not match task={task}: {', '.join(missing)} missing in meta")


def _teachers(config: Config) -> list[tuple[str, Any]]:
    if config.teachers:
        return [(f"teachers.{index}", network) for index, network in enumerate(config.teachers)]
    return [("teacher", config.teacher)]
