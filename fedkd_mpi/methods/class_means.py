"""What methods have in common in which clients exchange a mean vector per class in the place of a network."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd_mpi.common.options import Options as Checked
from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import Method, make_teacher
from fedkd_mpi.models.flat import FlatModel
from fedkd_mpi.models.output import Output
from fedkd_mpi.tasks import Examples, Task


class Means(nn.Module):
    """The exchanged table: per class a sum of vectors [classes, width] and its weight [classes], as buffers.

    Buffers travel as values. The server's mean of sums over its mean of weights is the weighted mean over clients.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.sums: Tensor
        self.weights: Tensor
        self.register_buffer("sums", torch.zeros(classes, width))
        self.register_buffer("weights", torch.zeros(classes))


class ClassMeans(Method):
    """A teacher learns from its labels, and its vector of a sample is drawn to the mean of the sample's class.

    The loss of a batch is that of the labels + strength * MSE(vector, mean of the class over all clients). Samples of
    a class of which no client of the last round had any have no second term, and all samples in the first round.
    A client's vectors are those of its training passes in the round. Its mean of a class counts as often as the
    class was seen there (`weighting` samples), or as much as that of any other client that has the class (clients).
    """

    predicts = False
    vector = ""  # what a vector is, for people

    class Options(Checked):
        strength: float = Field(1.0, ge=0, le=1e6)
        weighting: Literal["samples", "clients"] = "samples"

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self.notes.append(f"method={config.method.name}: {self.vector} travel as float32, without compression.codec")
        self._seen = Means(0, 0)

    def width(self) -> int:
        """Return the width of a sample's vector."""
        raise NotImplementedError

    def vectors(self, output: Output) -> Tensor:
        """Return the vectors of a batch, [N, width], of a teacher's output."""
        raise NotImplementedError

    def private(self, architecture: int = 0) -> nn.ModuleDict:
        return nn.ModuleDict({"teacher": make_teacher(self.config, self.task, architecture)})

    def student(self) -> nn.Module:
        return Means(self.task.num_classes, self.width())

    def exchanged(self) -> str:
        return f"{self.vector} by class"

    def examine(self, student: nn.Module, batch: Examples) -> None:
        y = batch.get("y")
        if y is None or y.dim() != 1 or y.dtype != torch.int64:
            raise UserError(
                f"method={self.config.method.name} needs one class per sample, as y (int64 [n]) in the batches of"
                f" task={self.config.task.name}"
            )

    def begin(self, round_index: int, device: str) -> None:
        self._seen = Means(self.task.num_classes, self.width()).to(device)

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(student, Means)  # the method exchanges one
        output, y = self.task.predict(private["teacher"], batch), batch["y"]
        vectors, supervised = self.vectors(output).float(), self.task.loss(output, batch)
        self._seen.sums.index_add_(0, y, vectors.detach())
        self._seen.weights.index_add_(0, y, torch.ones_like(y, dtype=torch.float32))
        weights = student.weights[y]
        means = student.sums[y] / torch.where(weights > 0, weights, 1.0)[:, None]
        error = ((vectors - means).square() * (weights > 0)[:, None]).mean()
        total = supervised + self.options["strength"] * error
        return total, supervised.detach(), supervised.new_full((), float("nan"))

    def finish(self, student: FlatModel, start: Tensor, state: dict[str, Tensor]) -> None:
        sums, weights = self._seen.sums, self._seen.weights
        if self.options["weighting"] == "clients":
            sums = sums / weights.clamp_min(1)[:, None]
            weights = (weights > 0).float()
        assert isinstance(student.module, Means)
        student.module.sums.copy_(sums)
        student.module.weights.copy_(weights)
