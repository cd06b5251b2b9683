"""Bytes and seconds of codec rdsvd against the paper's count and numpy's SVD at equal energy, on recorded updates."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.recorded import Recorded, cpu_seconds, geometric_mean, matrices, smallest_rank
from fedkd_mpi.codecs import Codec, Record, State, factory
from fedkd_mpi.codecs.wire import RECORD_BYTES
from fedkd_mpi.common.random_streams import generator
from fedkd_mpi.config.compression import CompressionConfig
from fedkd_mpi.models.layer import Layer


def run(arguments: list[str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return ratios of bytes (record headers included) and of CPU time on one thread.

    The paper's count is 4 (PK + K^2 + KQ) with K from a float64 SVD, even if raw would be smaller. The folded count is
    4 K (P + Q) or raw, whichever is smaller. The energy is that of the decoded tensor, computed in float64.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    rows: list[dict[str, Any]] = []
    for recorded in matrices():
        rows_, columns = recorded.matrix.shape
        layers = [Layer(recorded.layer, tuple(recorded.update.shape), True)]
        codec = factory.build(CompressionConfig(codec="rdsvd"), layers)
        array = recorded.matrix.numpy()
        for threshold in (0.95, 0.98):
            state: State = {}
            codec.encode([recorded.before], threshold, state, generator(0, "benchmark"))
            encode = partial(_encode, codec, recorded, threshold, state)
            records = encode()
            (decoded,) = codec.decode(records, "cpu")
            numpy_seconds, encode_seconds, decode_seconds = cpu_seconds(
                partial(np.linalg.svd, array, full_matrices=False),
                encode,
                partial(codec.decode, records, "cpu"),
            )
            update = recorded.update.double()
            lost = float((update - decoded.double()).square().sum() / update.square().sum())
            rank = smallest_rank(recorded.matrix, threshold)
            size, dense = RECORD_BYTES + records[0].data.size, 4 * rows_ * columns
            folded = min(4 * rank * (rows_ + columns), dense)
            rows.append(
                {
                    "student": recorded.student,
                    "layer": recorded.layer,
                    "matrix": f"{rows_}x{columns}",
                    "T": threshold,
                    "K": rank,
                    "energy": 1 - lost,
                    "bytes": size,
                    "paper / rdsvd": 4 * rank * (rows_ + columns + rank) / size,
                    "folded / rdsvd": folded / size,
                    "dense / rdsvd": dense / size,
                    "numpy ms": 1e3 * numpy_seconds,
                    "encode / numpy": encode_seconds / numpy_seconds,
                    "decode / numpy": decode_seconds / numpy_seconds,
                }
            )
    ratios = [row["paper / rdsvd"] for row in rows]
    claims = {
        "paper_over_rdsvd_median": float(np.median(ratios)),
        "paper_over_rdsvd_min": min(ratios),
        "folded_over_rdsvd_median": float(np.median([row["folded / rdsvd"] for row in rows])),
        "energy_short_of_threshold": float(sum(row["energy"] <= row["T"] for row in rows)),
        "encode_over_numpy_svd": geometric_mean([row["encode / numpy"] for row in rows]),
        "decode_over_numpy_svd": geometric_mean([row["decode / numpy"] for row in rows]),
    }
    return claims, rows


def _encode(codec: Codec, recorded: Recorded, threshold: float, state: State) -> list[Record]:
    return codec.encode([recorded.update], threshold, dict(state), generator(0, "benchmark"))
