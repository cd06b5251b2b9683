"""LG-FedAvg: clients keep their lower layers and average the upper ones (Liang et al. 2020, arXiv:2001.01523)."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call

from fedkd_mpi.common.options import Options as Checked
from fedkd_mpi.common.registry import nearest
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import Method, make_teacher, started
from fedkd_mpi.tasks import Examples


class LGFedAvg(Method):
    """The teacher's layers named by `layers`, or else its head, are the exchanged student; the others are private.

    `layers` are names as in named_modules(). Lower layers of different teachers may differ, shared ones not. All are
    trained on the labels, with the teacher's learning rate (that of the first, where there are several). With
    server.weighting=samples the weights are those of the paper. After local training a teacher has its client's values
    of the shared layers. Raises UserError for unknown layers, and shared ones of different shapes.
    """

    predicts = False
    role = "teacher"

    class Options(Checked):
        layers: list[str] | None = None

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})

    def student(self) -> nn.Module:
        networks = [make_teacher(self.config, self.task, index) for index in range(len(self.config.architectures))]
        keys = [f"teachers.{index}" if self.config.teachers else "teacher" for index in range(len(networks))]
        shared = [self._shared(network, key) for key, network in zip(keys, networks, strict=True)]
        shapes = [[tuple(tensor.shape) for tensor in _tensors(layers)] for layers in shared]
        for key, other in zip(keys, shapes, strict=True):
            if other != shapes[0]:
                raise UserError(
                    f"method=lgfedavg shares layers of one shape, but they are {_text(shapes[0])} in {keys[0]} and"
                    f" {_text(other)} in {key}: give the teachers last hidden layers of one width"
                )
        started(self.config, self.role, networks[0])
        return nn.ModuleDict({name.replace(".", "_"): deepcopy(layer) for name, layer in shared[0].items()})

    def exchanged(self) -> str:
        names = self.options["layers"] or ["the head"]
        return f"{', '.join(names)} of {super().exchanged()}"

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(student, nn.ModuleDict)  # the method exchanges one
        joined = _Joined(private["teacher"], dict(self._pairs(private["teacher"], student)))
        loss = self.task.loss(self.task.predict(cast("nn.Module", joined), batch), batch)
        return loss, loss.detach(), loss.new_full((), float("nan"))

    def settle(self, private: nn.ModuleDict, student: nn.Module) -> None:
        teacher = private["teacher"]
        assert isinstance(student, nn.ModuleDict)
        own = dict(chain(teacher.named_parameters(remove_duplicate=False), teacher.named_buffers()))
        for name, tensor in self._pairs(teacher, student):
            own[name].copy_(tensor)

    def _pairs(self, teacher: nn.Module, student: nn.ModuleDict) -> Iterator[tuple[str, Tensor]]:
        """Yield the teacher's names of the student's tensors, and these."""
        for name, layer in zip(self._shared(teacher, "teacher"), student.values(), strict=True):
            for part, tensor in chain(layer.named_parameters(), layer.named_buffers()):
                yield f"{name}.{part}", tensor

    def _shared(self, network: nn.Module, key: str) -> dict[str, nn.Module]:
        """Return the layers of a teacher that are shared, by name."""
        layers = dict(network.named_modules())
        names = self.options["layers"]
        if names is None:
            with_own = [name for name, layer in layers.items() if name and any(True for _ in layer.parameters(False))]
            names = ["head"] if "head" in layers else with_own[-1:]
        for name in names:
            if not name or name not in layers:
                near = nearest(name, [known for known in layers if known])
                more = f"; did you mean {near}?" if near else ""
                raise UserError(f"{key}: method.layers names {name}, which is no layer of the network{more}")
        if not names:
            raise UserError(f"{key}: method=lgfedavg shares layers with parameters, of which the network has none")
        return {name: layers[name] for name in names}


class _Joined:
    """A teacher that computes with other tensors in the place of some of its own, called as the teacher is."""

    def __init__(self, teacher: nn.Module, tensors: dict[str, Tensor]):
        self._teacher, self._tensors = teacher, tensors

    def __call__(self, *inputs: Any) -> Any:
        return functional_call(self._teacher, self._tensors, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)


def _tensors(layers: dict[str, nn.Module]) -> Iterator[Tensor]:
    for layer in layers.values():
        yield from chain(layer.parameters(), layer.buffers())


def _text(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "a number" for shape in shapes)
