"""log.spectra from run to report: at the threshold that was used, the report counts the bytes that were sent."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd_mpi.report import energy
from fedkd_mpi.report.runs import Run, Target
from fedkd_mpi.run import main

TINY = ["rounds=2", "num_clients=4", "local.epochs=1", "teacher.hidden=[16]", "student.hidden=[16, 8]", "device=cpu"]


def test_the_report_counts_from_spectra_what_the_run_sent(tmp_path, in_process):
    path = tmp_path / "x.h5"
    keys = [*TINY, "log.spectra=true", "compression.t_start=0.9", "compression.t_end=0.9"]
    code, _, said = in_process(main, *keys, "--output", path)
    assert code == 0, said
    run = Run(path, Target())
    found = energy.costs(run, [0.5, 0.9, 1.0])
    assert found[0.9] == run.total_bytes[-1]
    assert found[0.5] < found[0.9] < found[1.0] == pytest.approx(run.rounds["student_dense_bytes"].sum(), rel=0.2)
    spectra = run.log["uplink"]["spectrum"]
    assert spectra.shape == (8, 16 + 8 + 8)
    assert (np.diff(spectra[:, :16], axis=1) <= 0).all()
