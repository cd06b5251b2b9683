"""Creation of the codec of a configuration, with its byte budget and error feedback."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd_mpi.codecs import CODECS, Codec
from fedkd_mpi.codecs.byte_budget import ByteBudget, require_room, smallest, spread
from fedkd_mpi.codecs.error_feedback import Ef21, ErrorFeedback
from fedkd_mpi.codecs.none import Raw
from fedkd_mpi.common.registry import resolve, subclass_of
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


def build(
    compression: CompressionConfig, layers: Sequence[Layer], rounds: int = 1, cohort: int = 1, *, reserved: int = 0
) -> Codec:
    """Return the codec of a configuration with its byte budget and error feedback; raises UserError if it is unknown.

    `layers` are the student's parameters. `rounds` and `cohort` (clients per round) divide a budget for the whole run.
    `reserved` are the bytes per message of the student's buffers, which count towards the budget but pass no codec.
    Where there are no parameters there is nothing to compress.
    """
    kind = resolve(
        compression.codec, CODECS, "compression.codec", subclass_of(Codec, "subclass of fedkd_mpi.codecs.Codec")
    )
    if not layers:
        return Raw(compression, layers)
    codec = kind(compression, layers)
    if compression.byte_budget is not None:
        require_room("byte_budget", compression.byte_budget, smallest(codec) + reserved)
        codec = ByteBudget(codec, [compression.byte_budget - reserved])
    if compression.run_budget is not None:
        shape = rounds, cohort, compression.budget_growth or 1.0
        require_room("run_budget", compression.run_budget, smallest(codec) + reserved, *shape)
        codec = ByteBudget(codec, [budget - reserved for budget in spread(compression.run_budget, *shape)])
    wrap = {"none": lambda inner: inner, "ef": ErrorFeedback, "ef21": Ef21}[compression.error_feedback]
    return wrap(codec)
