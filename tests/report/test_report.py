"""The report against the logs read by h5py alone, and against replays and ranks worked out by hand."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import logs
import numpy as np
import pytest
from command import TINY
from loaded_modules import loaded_after
from made_logs import CLIENTS, MB, a_round, write
from mpirun import PATIENCE, clean_environment
from plain_digits import PLAIN_DIGITS

from fedkd_mpi import costlog
from fedkd_mpi.errors import UserError
from fedkd_mpi.report import energy, links, network
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.follow import follow
from fedkd_mpi.report.runs import Run, Target
from fedkd_mpi.run import main as run_main
from fedkd_mpi.simulation import accounting
from fedkd_mpi.simulation.summary import summary


def as_json(capsys: pytest.CaptureFixture, *arguments: str | Path) -> dict[str, Any]:
    assert main([*map(str, arguments), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_totals_equal_the_logs_to_the_byte(tmp_path, capsys):
    odd = [a_round(n, up=(1_234_567 + n, 89), down=4_242_424 + 3 * n) for n in range(5)]
    path = write(tmp_path / "a.h5", odd)
    (row,) = as_json(capsys, path)["runs"]
    with h5py.File(path) as file:
        up = int(file["uplink/bytes"][:].sum())
        down = int((file["downlink/bytes"][:] * file["rounds/cohort_size"][:]).sum())
    assert (row["uplink_bytes"], row["downlink_bytes"], row["total_bytes"]) == (up, down, up + down)
    assert row["bytes_per_client"] == (up + down) / CLIENTS
    assert row["saving"] == pytest.approx(1 - (up + down) / (5 * 20 * MB))
    assert main([str(path), "--format", "csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert int(line["total_bytes"]) == up + down


def test_target_counts_bytes_and_rounds_until_the_first_round_that_reaches_it(tmp_path, capsys):
    scores = [0.2, np.nan, 0.8, 0.7, 0.9]
    path = write(tmp_path / "a.h5", [a_round(n, score) for n, score in enumerate(scores)])
    (row,) = as_json(capsys, path, "--target", "0.75")["runs"]
    assert (row["rounds_to_target"], row["bytes_to_target"]) == (3, 3 * 4 * MB)
    assert (row["global_student_last"], row["global_student_best"]) == (0.9, 0.9)
    (row,) = as_json(capsys, path, "--target", "0.95")["runs"]
    assert row["rounds_to_target"] is None


def test_seeds_of_one_configuration_are_one_row_of_mean_and_deviation(tmp_path, capsys):
    for seed, last in enumerate((0.6, 0.8)):
        write(tmp_path / f"{seed}.h5", [a_round(0, last)], seed=seed)
    write(tmp_path / "other.h5", [a_round(0, 0.1)], name="other")
    assert main([str(tmp_path)]) == 0
    first = capsys.readouterr().out.split("\n\n")[0]
    assert "0.7000 ± 0.1414" in first
    assert [line.split()[0] for line in first.splitlines()[4:6]] == ["made-up", "other"]


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_shows_which_log_is_read_and_nothing_of_it_stays(tmp_path, capsys, monkeypatch, kind):
    paths = [str(write(tmp_path / f"{seed}.h5", [a_round(0)], seed=seed)) for seed in (1, 2)]
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("fedkd_mpi.common.console.Lenient.isatty", lambda self: True)
    monkeypatch.setattr("fedkd_mpi.report.__main__.SILENT_SECONDS", -1.0)
    assert main(paths) == 0
    lines = "\r\x1b[Kreading log 1 of 2: 1.h5\r\x1b[Kreading log 2 of 2: 2.h5\r\x1b[K"
    assert capsys.readouterr().err == (lines if kind == "xterm" else "")


def test_what_cannot_be_read_has_its_own_line_and_the_rest_is_reported(tmp_path, capsys):
    good = write(tmp_path / "good.h5", [a_round(0), a_round(1)])
    running = write(tmp_path / "running.h5", [a_round(0)], status=None, rounds=9, name="still")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(good.read_bytes()[:20_000])
    text, foreign, old = tmp_path / "notes.txt", tmp_path / "foreign.h5", tmp_path / "old.h5"
    text.write_text("hello")
    h5py.File(foreign, "w").close()
    with h5py.File(old, "w") as file:
        file.attrs["schema_version"] = 0
    bad = [cut, text, foreign, old, tmp_path / "missing.h5"]
    assert main([str(path) for path in (*bad, good, running)]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [str(path) in line for path, line in zip(bad, lines, strict=True)] == [True] * 5
    for line, word in zip(
        lines[1:], ["not an HDF5 file", "no schema_version", "schema_version 0", "No such file"], strict=True
    ):
        assert word in line
    assert "running or killed, 1 of 9 rounds" in out
    assert main([str(text)]) == 2


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ("table", ["0.4321", "4.000", "80.00", "(MB)"]),
        ("markdown", ["| 0.4321 |", "| 4000000 |", "| 0.8 |", "(B)"]),
        ("latex", ["0.432 ", "2.00 ", "80.0 ", r"\\ (MB)"]),
    ],
)
def test_every_format_holds_the_numbers(tmp_path, capsys, form, numbers):
    path = write(tmp_path / "a.h5", [a_round(0, 0.4321)])
    assert main([str(path), "--format", form, "--network", "home", "--energy"]) == 0
    out = capsys.readouterr().out
    assert [number for number in numbers if number not in out] == []


def test_replay_equals_the_time_worked_out_by_hand(tmp_path):
    run = Run(write(tmp_path / "a.h5", [a_round(0, 0.2, up=(MB, 2 * MB)), a_round(1, 0.8)]), Target())
    line = links.Profile(name="line", up_mbit=8, down_mbit=16, latency_ms=250, slowdown=10)
    # Down 1 MB at 2 MB/s, train 60 s (client 1), up at 1 MB/s, two latencies of 0.25 s, then 0.5 s on the server.
    first, second = 0.5 + 60 + 2 + 0.5 + 0.5, 0.5 + 60 + 1 + 0.5 + 0.5
    found = network.replay(run, line, Target(0.8))
    np.testing.assert_allclose(found.rounds, [first, second], rtol=1e-12)
    assert found.to_target == pytest.approx(first + second)
    assert (found.training, found.transfer) == pytest.approx((120, 3 + 2))
    # The server's 0.1 Mbit/s moves 5 MB and 4 MB in 400 s and 320 s; one that waits 40 s at most leaves client 1 out.
    narrow = network.replay(run, line.model_copy(update={"server_mbit": 0.1}), Target())
    np.testing.assert_allclose(narrow.rounds, [400.5, 320.5])
    hasty = network.replay(run, line.model_copy(update={"timeout_seconds": 40.0}), Target())
    np.testing.assert_allclose(hasty.rounds, [40.5, 40.5])
    assert hasty.left_out == 0.5


@pytest.mark.parametrize(
    "settings",
    [["compression.codec=svd"], ["compression.codec=none", "server.optimizer=fedadam", "server.learning_rate=0.01"]],
)
def test_replay_lets_those_catch_up_who_missed_rounds(tmp_path, in_process, settings):
    """The bytes of each client are those that the run itself counts, client by client."""
    path, counted = tmp_path / "a.h5", {}
    arguments = [*TINY, PLAIN_DIGITS, "num_clients=6", "cohort_size=2", "rounds=12", *settings, "--output", path]

    class Watched(accounting.Accounting):
        def _catchup(self, this):
            for client in this.cohort:
                missed = self._broadcasts[-1] - self._broadcasts[self._last_seen[client] + 1]
                counted[this.index, client] = min(missed, self._newcomer)
            return super()._catchup(this)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "Accounting", Watched)
        assert in_process(run_main, *arguments)[0] == 0
    run = Run(path, Target())
    training = run.log["training"]
    places = list(zip(training["round"].tolist(), training["client"].tolist(), strict=True))
    np.testing.assert_allclose(network.fetched(run), [counted[place] for place in places], rtol=1e-12)
    assert len({counted[place] for place in places}) > 3
    # One client alone is on a slow line: a round that it is in takes as long as its own bytes.
    line = links.Profile(name="line", up_mbit=1e9, down_mbit=8, slowdown=0)
    found = network.replay(run, line, Target())
    down = run.log["downlink"]["bytes"]
    slowest = [max(counted[place] for place in places if place[0] == number) for number in range(12)]
    np.testing.assert_allclose(found.rounds - run.rounds["seconds_aggregate"], (down + slowest) / 1e6, rtol=1e-4)
    assert not found.spread_evenly


def test_replay_says_when_the_log_does_not_tell_who_missed_rounds(tmp_path, capsys):
    made = [a_round(0), a_round(1)]
    made[1][0]["catchup_bytes"] = 4 * MB  # more than the broadcasts before it
    path = write(tmp_path / "a.h5", made)
    found = network.replay(
        Run(path, Target()), links.Profile(name="line", up_mbit=8, down_mbit=8, slowdown=0), Target()
    )
    np.testing.assert_allclose(found.rounds, [0.5 + 2, 0.5 + 4])
    assert main([str(path), "--network", "home"]) == 0
    assert "Catch-up is spread evenly" in " ".join(capsys.readouterr().out.split())


def test_replay_of_a_million_clients_waits_for_the_slowest_device(tmp_path):
    run = Run(write(tmp_path / "a.h5", [a_round(0)]), Target())
    crowd = links.Profile(name="crowd", up_mbit=8, down_mbit=8, cohort=1_000_000, slowdown=0, spread=0.5)
    (seconds,) = network.replay(run, crowd, Target()).rounds - 0.5
    # 2 s at the median; the slowest of n normal numbers lies near -sqrt(2 ln n) ~ -4.9 (mean -4.86) for a million.
    assert 2 * np.exp(0.5 * 4.4) < seconds < 2 * np.exp(0.5 * 6.5)
    lossy = crowd.model_copy(update={"dropout": 0.25})
    assert network.replay(run, lossy, Target()).left_out == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("up_mbit: -1\ndown_mbit: 1", "up_mbit"),
        ("up_mbit: 1", "down_mbit"),
        ("like: 4g\nspeed: 3", "speed"),
        ("like: 7g", "like"),
        ("- 1", "keys"),
    ],
)
def test_a_wrong_profile_is_one_line(tmp_path, text, word):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        links.find(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="5g is unknown"):
        links.find("5g")


def test_a_profile_may_start_from_a_preset(tmp_path):
    path = tmp_path / "ward.yaml"
    path.write_text("like: hospitals\nlatency_ms: 40\n")
    assert links.find(str(path)) == links.find("hospitals").model_copy(update={"name": "ward", "latency_ms": 40})


def test_energy_counts_the_smallest_rank_above_each_threshold():
    parts = [energy.Layer("a", (8, 4), True), energy.Layer("b", (5,), False)]
    spectra = np.array([[2.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # energies 4, 1, 1: shares 2/3, 5/6, 1
    overhead = 40 + 2 * 13 + 4 * 5
    expected = {0.5: 4 * 12, 0.7: 4 * 24, 0.9: 4 * 32}  # rank 3 would be 36 numbers: 8 x 4 raw are fewer
    for threshold, size in expected.items():
        assert energy.message_bytes(spectra, parts, threshold).tolist() == [overhead + size, overhead]


def test_plots_are_written_for_every_run_that_has_a_round(tmp_path):
    pytest.importorskip("matplotlib")
    logs_of = [write(tmp_path / f"{n}.h5", [a_round(0, 0.2), a_round(1, 0.4 + n / 10)], seed=n) for n in range(2)]
    other = write(tmp_path / "none.h5", [], name="a run/of nothing", status="interrupted")
    arguments = [*logs_of, other, "--plot", tmp_path / "plots"]
    assert main([str(argument) for argument in arguments]) == 0
    expected = {f"{name}.{kind}" for name in ("scores", "pareto") for kind in ("png", "svg", "pdf")}
    expected |= {f"made-up-{name}.{kind}" for name in ("layers", "time", "clients") for kind in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == expected


def test_follow_shows_every_round_of_a_run_that_goes_on(tmp_path):
    path = tmp_path / "x.h5"
    said: list[str] = []
    worker = Path(__file__).parents[1] / "helpers" / "worker_growing_log.py"
    child = subprocess.Popen([sys.executable, worker, path], env=clean_environment())
    try:
        while not path.exists():
            assert child.poll() in (None, 0)
            time.sleep(0.02)
        follow(path, said.append, poll=0.05)
    finally:
        assert child.wait(PATIENCE) == 0
    assert [line.split("/")[0] for line in said[1:-1]] == [f"round {number}" for number in (1, 2, 3, 4)]
    assert said[-1] == "completed after 4 rounds"


def test_the_report_loads_neither_mpi_nor_torch():
    modules = loaded_after("from fedkd_mpi.report.__main__ import main\nmain(['nothing.h5'])")
    assert modules.isdisjoint({"torch", "mpi4py", "pandas", "matplotlib", "sklearn"})


def test_what_clients_catch_up_with_is_part_of_every_total_and_best_is_of_all_clients(tmp_path: Path):
    path = tmp_path / "partial.h5"
    how = ["num_clients=6", "cohort_size=2", "rounds=12", "teacher.hidden=[16]", "student.hidden=[8]", "local.epochs=1"]
    assert run_main(["--output", str(path), *how]) == 0
    log = costlog.read(path)
    rounds, training = log["rounds"], log["training"]
    run = Run(path, Target(0.3))
    row = run.row(Target(0.3))
    total = sum(int(rounds[f"{leg}_bytes"].sum()) for leg in ("uplink", "downlink", "catchup"))
    assert rounds["catchup_bytes"].any()
    assert row["total_bytes"] == run.total_bytes[-1] == total
    assert row["factor"] == rounds["teacher_dense_bytes"].sum() / total
    at = int(np.argmax(rounds["global_student_accuracy"] >= 0.3))
    assert row["bytes_to_target"] == sum(
        rounds[f"{leg}_bytes"][: at + 1].sum() for leg in ("uplink", "downlink", "catchup")
    )
    latest, means = {}, []
    for index in range(12):
        rows = training["round"] == index
        latest |= dict(zip(training["client"][rows].tolist(), training["teacher_accuracy"][rows].tolist(), strict=True))
        means += [np.mean(list(latest.values()))] if len(latest) == 6 else []
    assert row["teacher_best"] == pytest.approx(max(means))
    assert row["teacher_last"] == pytest.approx(means[-1])
    assert f"{total:,} bytes" in summary(path)


def test_the_log_says_of_which_metrics_less_is_better(tmp_path: Path):
    path = tmp_path / "x.h5"
    writer = logs.create(path, layers=1, world_size=3, metrics=("blur", "psnr"), lower_is_better=("blur",))
    for number, (blur, psnr) in enumerate([(3.0, 20.0), (1.0, 30.0), (2.0, 25.0)]):
        rounds, *others = logs.make_round(number, layers=1, metrics=("blur", "psnr"))
        writer.append_round(
            rounds | {"global_student_blur": blur, "global_student_psnr": psnr, "cohort_size": 4}, *others
        )
    writer.finish("completed")
    best = {metric: Run(path, Target(metric=metric)).row(Target(metric=metric)) for metric in ("blur", "psnr")}
    assert best["blur"]["global_student_best"] == 1.0
    assert best["psnr"]["global_student_best"] == 30.0
    goal = Target(1.5, metric="blur")
    assert Run(path, goal).row(goal)["rounds_to_target"] == 2
