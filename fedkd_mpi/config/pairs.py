"""Which data, task and models go together, known before anything is read; parts of a user's own may be of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from fedkd_mpi.errors import UserError, shown

if TYPE_CHECKING:
    from fedkd_mpi.config.schema import Config


class Needs(NamedTuple):
    """What a task learns from: its data sets and models by name, and what a data set of one's own must hold for it."""

    data: tuple[str, ...]
    models: tuple[str, ...]
    arrays: tuple[str, ...]
    meta: tuple[str, ...]


PICTURES = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "flowers102")
TEXT = ("vocabulary", "length", "pad")
TASKS = {
    "image_classification": Needs(PICTURES, ("mlp", "cnn", "resnet"), ("x", "y"), ("classes", "scale", "mean", "std")),
    "denoising": Needs(("mayo_ct",), ("redcnn",), ("x", "y"), ("window",)),
    "text_classification": Needs(("ade", "smm4h"), ("bert",), ("ids", "y"), ("classes", *TEXT)),
    "ner": Needs(("medical_ner",), ("bert",), ("ids", "tags", "missed"), ("kinds", *TEXT)),
    "news": Needs(("mind_small", "mind_large"), ("bert",), ("history", "candidates", "clicked"), TEXT),
}


def check(config: Config) -> None:
    """Raise UserError naming the task and the first data set or model of this package that does not fit it."""
    needs = TASKS.get(config.task)
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
            f"{key}={name} does not fit task={config.task}: that takes {', '.join(fitting)}; {name} is for"
            f" task={' or '.join(others)}"
        )


def require(task: str, name: str, parts: Mapping[str, Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Raise UserError where a data set lacks what a task of this package learns from; `parts` are train and test."""
    needs = TASKS.get(task)
    if needs is None:
        return
    for part, arrays in parts.items():
        if missing := [key for key in needs.arrays if key not in arrays]:
            raise UserError(
                f"data.name={name} does not fit task={task}: {part} lacks {', '.join(missing)}, it has"
                f" {shown(', '.join(map(str, arrays)))}"
            )
    if missing := [key for key in needs.meta if key not in meta]:
        raise UserError(f"data.name={name} does not fit task={task}: meta lacks {', '.join(missing)}")


def _teachers(config: Config) -> list[tuple[str, Any]]:
    if config.teachers:
        return [(f"teachers.{index}", network) for index, network in enumerate(config.teachers)]
    return [("teacher", config.teacher)]
