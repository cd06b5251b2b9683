"""FedProto: clients exchange class prototypes, means of hidden features (Tan et al., AAAI 2022, Algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from fedkd_mpi.config.schema import Config
from fedkd_mpi.errors import UserError
from fedkd_mpi.methods import make_teacher
from fedkd_mpi.methods.class_means import ClassMeans
from fedkd_mpi.models.output import Output, hidden_sizes
from fedkd_mpi.tasks import Task


class FedProto(ClassMeans):
    """A vector is the teacher's last hidden feature, of texts the mean over tokens; `strength` is the paper's lambda.

    With weighting=samples the global prototype is the paper's (equation 6, without its factor 1 / |N_j|), with
    weighting=clients that of the authors' and others' code. Scores are those of the teachers' own heads.
    Raises UserError if teachers have no hidden features, or last ones of different widths.
    """

    vector = "prototypes"

    def __init__(self, config: Config, task: Task):
        super().__init__(config, task)
        self._width = 0

    def width(self) -> int:
        self._width = self._width or self._common_width()
        return self._width

    def _common_width(self) -> int:
        widths = {}
        for index in range(len(self.config.architectures)):
            key = f"teachers.{index}" if self.config.teachers else "teacher"
            sizes = hidden_sizes(make_teacher(self.config, self.task, index))
            if not sizes:
                raise UserError(
                    f"{key}: the network has no hidden features, whose means method=fedproto exchanges: name layers in"
                    f" {key}.features, or choose a network with hidden layers"
                )
            widths[key] = sizes[-1]
        if len(set(widths.values())) > 1:
            told = ", ".join(f"{key} {width}" for key, width in widths.items())
            raise UserError(f"method=fedproto needs last hidden features of one width in all teachers, not {told}")
        return next(iter(widths.values()))

    def vectors(self, output: Output) -> Tensor:
        last = output.hidden[-1]
        if output.mask is None:
            return last
        return (last * output.mask[..., None]).sum(1) / output.mask.sum(1, keepdim=True).clamp_min(1)
