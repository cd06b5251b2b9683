"""FedAvg: clients train copies of one network and the server averages them (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from fedkd_mpi.config.schema import Config
from fedkd_mpi.methods import Method
from fedkd_mpi.tasks import Examples, Task


class FedAvg(Method):
    """Without a teacher: the network of averaging.network is trained on the labels and exchanged.

    The mean of the updates gives the mean of the models, because all start from the same model. With
    server.weighting=samples the weights are those of the paper.
    """

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self.role = config.averaging.network

    def loss(self, private: nn.ModuleDict, student: nn.Module | None, batch: Examples) -> tuple[Tensor, Tensor, Tensor]:
        assert student is not None  # it exchanges
        loss = self.task.loss(self.task.predict(student, batch), batch)
        return loss, loss.new_full((), float("nan")), loss.detach()
