"""Events for TensorBoard, read by its own reader, against the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loaded_modules import loaded_after
from made_logs import MB, a_round, write

from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.runs import Run, Target

pytest.importorskip("tensorboard")


def test_events_are_the_numbers_of_the_log(tmp_path: Path):
    made = []
    for number, score in enumerate((0.25, np.nan, 0.75)):
        rounds, *others = a_round(number, score, up=(MB + number, 100))
        made.append((rounds | {"catchup_bytes": 7 * number}, *others))
    paths = [write(tmp_path / f"{seed}.h5", made, seed=seed) for seed in range(2)]
    for _ in range(2):  # another export replaces the first
        assert main([*map(str, paths), "--tensorboard", str(tmp_path / "events")]) == 0
    assert {path.name for path in (tmp_path / "events").iterdir()} == {"made-up-s0", "made-up-s1"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "events" / "made-up-s1"))
    found.Reload()
    run = Run(paths[1], Target())
    scores = found.Scalars("accuracy/global_student")
    assert [(event.step, event.value) for event in scores] == [(1, 0.25), (3, 0.75)]
    legs = {leg: run.log["rounds"][f"{leg}_bytes"] for leg in ("uplink", "downlink", "catchup")}
    for leg, sent in legs.items():
        assert [event.value for event in found.Scalars(f"bytes_per_round/{leg}")] == np.float32(sent).tolist()
    so_far = found.Scalars("bytes/so_far")
    assert [event.value for event in so_far] == np.float32(np.cumsum(sum(legs.values()))).tolist()
    ranks = [event.value for event in found.Scalars("rank_downlink/weight")]
    known = run.log["downlink"]["layer_rank"][:, 0]
    assert ranks == known[known >= 0].tolist()


def test_neither_torch_nor_mpi_is_loaded(tmp_path: Path):
    path = write(tmp_path / "a.h5", [a_round(0)])
    code = (
        f"from fedkd_mpi.report.__main__ import main\nmain([{str(path)!r}, '--tensorboard', {str(tmp_path / 'e')!r}])"
    )
    assert loaded_after(code).isdisjoint({"torch", "mpi4py", "tensorflow"})
    assert (tmp_path / "e").is_dir()
