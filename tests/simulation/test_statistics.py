"""BatchNorm's statistics travel as they are, whatever happens to parameters."""

from __future__ import annotations

import numpy as np
import pytest
from simulate import play

STUDENT = "student={name: resnet, depth: 8, width: 4, norm: batch, learning_rate: 0.1}"
SMALL = [STUDENT, "num_clients=3", "rounds=2", "local.epochs=2", "compression.t_start=0.6", "compression.t_end=0.85"]
WAYS = {
    "none": ["compression.codec=none"],
    "rdsvd, ef": ["compression.codec=rdsvd", "compression.error_feedback=ef"],
    "svd, ef21": ["compression.codec=svd", "compression.error_feedback=ef21"],
    "topk, ef": ["compression.codec=topk", "compression.error_feedback=ef"],
    "fetchsgd": ["compression.codec=fetchsgd", "compression.sketch_share=0.9"],
    "budget": ["compression.codec=rdsvd", "compression.error_feedback=ef", "compression.byte_budget=6000"],
    "rate 2": ["compression.codec=none", "server.learning_rate=2"],
    "fedadam": ["compression.codec=none", "server.optimizer=fedadam", "server.learning_rate=0.05"],
    "weighted": ["compression.codec=none", "server.weighting=samples"],
}


@pytest.mark.parametrize("way", WAYS)
def test_statistics_are_finite_never_negative_and_cost_their_float32(way: str):
    run, log = play(*SMALL, *WAYS[way])
    _, buffers = run.exchange.student.exchanged_parts(run.exchange.replica)
    variances = [
        buffer
        for layer, buffer in zip(run.exchange.student.exchanged_buffers, buffers, strict=True)
        if layer.name.endswith("running_var")
    ]
    assert variances
    assert all(bool((variance >= 0).all()) for variance in variances)
    assert np.isfinite(log["rounds"]["global_student_accuracy"]).all()
    count = len(run.exchange.student.parameter_layers)
    for leg in ("uplink", "downlink"):
        assert (log[leg]["layer_rank"][..., count:] == -1).all()
        assert (log[leg]["layer_energy"][..., count:] == 1).all()
        sizes = [4 * layer.numel for layer in run.exchange.student.exchanged_buffers]
        assert (log[leg]["layer_bytes"][..., count:] == sizes).all()


def test_the_global_statistics_do_not_depend_on_the_servers_rate():
    means = []
    for rate in (0.5, 2):
        run, _ = play(*SMALL, "rounds=1", "compression.codec=none", f"server.learning_rate={rate}")
        means.append(
            [buffer.numpy().copy() for buffer in run.exchange.student.exchanged_parts(run.exchange.replica)[1]]
        )
    for one, other in zip(*means, strict=True):
        np.testing.assert_array_equal(one, other)
