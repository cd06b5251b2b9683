"""FedDistill: clients exchange mean logits per class (federated distillation, Jeong et al. 2018, arXiv:1811.11479)."""

from __future__ import annotations

from torch import Tensor

from fedkd_mpi.methods.class_means import ClassMeans
from fedkd_mpi.models.output import Output


class FedDistill(ClassMeans):
    """A vector is the teacher's logits of a sample.

    The paper draws to the mean of the other clients by cross-entropy. As in the libraries that compare it, the mean is
    that of all clients and the distance a squared error; weighting=clients is theirs.
    """

    vector = "mean logits"

    def width(self) -> int:
        return self.task.num_classes

    def vectors(self, output: Output) -> Tensor:
        return output.logits
