"""Figures at 1 to 40 runs: nothing cut, axes named after what they show, numbers those of the log."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import logs
import numpy as np
import pytest
from made_logs import MB, a_round, write

from fedkd_mpi import costlog
from fedkd_mpi.report import canvas, clients, columns, drawing, layers, pareto, plots
from fedkd_mpi.report.__main__ import main
from fedkd_mpi.report.runs import Run, Target, groups
from fedkd_mpi.report.tables import Report
from fedkd_mpi.run import main as run_main

pytest.importorskip("matplotlib")


def many(folder: Path, count: int, rounds: int = 3, **more: Any) -> list[list[Run]]:
    """Return the groups of runs that differ in settings of long names."""
    paths = []
    for number in range(count):
        made = [a_round(n, 0.5 + n / 10 - number / 100, down=MB + number) for n in range(rounds)]
        config = {"compression": {"codec": f"codec-number-{number}", "options": ["a long list", "of options", number]}}
        paths.append(write(folder / f"{number}.h5", made, **config, **more))
    return groups([Run(path, Target()) for path in paths])


def texts(figure: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def assert_nothing_is_cut(figure: Any) -> None:
    """Title, legend and axes with their texts are inside the figure, and none of them lies on another."""
    canvas.render(figure, "png")
    renderer = figure.canvas.get_renderer()
    whole, boxes = figure.bbox, [figure._suptitle.get_window_extent(renderer)]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for axes in figure.axes:  # those of colour bars are parts of others
        boxes.append(axes.get_tightbbox(renderer))
        assert axes.get_window_extent(renderer).height > 100
    for legend in figure.legends:
        assert all(whole.x0 <= text.get_window_extent(renderer).x1 <= whole.x1 for text in legend.get_texts())
    for box in boxes:
        assert whole.x0 - 1 <= box.x0 <= box.x1 <= whole.x1 + 1
        assert whole.y0 - 1 <= box.y0 <= box.y1 <= whole.y1 + 1
    for one, other in itertools.combinations([box.padded(-2) for box in boxes], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize(("count", "given"), [(1, "x"), (3, "y" * 60), (12, "z " * 40), (40, "w")])
def test_nothing_is_cut_or_covered_at_any_number_of_runs(tmp_path: Path, count: int, given: str):
    found = many(tmp_path, count, name=given)
    for figure in plots.overview(found, Target(0.6)).values():
        assert_nothing_is_cut(figure)
        assert len(figure.legends[0].get_texts()) == count


def test_nothing_is_cut_or_covered_in_the_figures_of_a_run(tmp_path: Path):
    path = tmp_path / "wide.h5"
    clients = {"train_samples": np.full(4, 60_000), "test_samples": np.full(4, 7), "mpi_rank": np.arange(4)}
    shapes = [("a.module.of.a.long.name.that.goes.on.and.on", (2**14, 2**10), True), ("b", (4,), False)]
    writer = costlog.Writer.create(path, logs.ATTRS, shapes, clients, ["accuracy"], 3)
    for number in range(2):
        writer.append_round(*logs.make_round(number, layers=2, metrics=("accuracy",)))
    writer.finish("completed")
    run = Run(path, Target())
    for draw in drawing.PARTS.values():
        with canvas.style():
            figure = draw(run, "a title that is long " * 12, "and another line")
        assert_nothing_is_cut(figure)


def test_axes_are_named_after_the_metric_and_metrics_do_not_share_them(tmp_path: Path):
    path = tmp_path / "f1.h5"
    writer = logs.create(path, layers=1, metrics=("f1",))
    for number in range(2):
        rounds, *others = logs.make_round(number, layers=1, metrics=("f1",))
        writer.append_round(rounds | {"global_student_f1": 0.5, "cohort_size": 4}, *others)
    writer.finish("completed")
    both = [Run(path, Target()), Run(write(tmp_path / "a.h5", [a_round(0), a_round(1)]), Target())]
    figures = plots.overview(groups(both), Target())
    assert list(figures) == ["scores", "pareto", "scores-accuracy", "pareto-accuracy"]
    assert "F1\nglobal student" in texts(figures["scores"])
    assert "accuracy" not in texts(figures["scores"])
    assert "accuracy\nglobal student" in texts(figures["scores-accuracy"])
    assert "F1" in texts(clients.clients(both[0], "x"))


def test_a_line_that_lies_on_another_is_dashed_and_named(tmp_path: Path):
    made = [a_round(0, 0.2), a_round(1, 0.4)]
    paths = [write(tmp_path / f"{n}.h5", made, rounds=n + 2) for n in range(2)]
    figure = plots.overview(groups([Run(path, Target()) for path in paths]), Target())["scores"]
    assert "made-up-2: rounds=3, the same scores and bytes as made-up-1" in texts(figure)
    first, second = figure.axes[0].lines
    assert first.get_linestyle() != second.get_linestyle()


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_runs_of_no_and_one_round_are_drawn(tmp_path: Path, rounds: int):
    found = many(tmp_path, 1, rounds)
    said: list[str] = []
    paths = drawing.save(found, Target(), tmp_path / "plots", said.append, workers=1)
    stems = ["scores", *(["pareto", "made-up-layers", "made-up-time", "made-up-clients"] if rounds else [])]
    kinds = {stem: ("png", "svg", "pdf") if stem in ("scores", "pareto") else ("png", "pdf") for stem in stems}
    assert [path.name for path in paths] == [f"{stem}.{kind}" for stem in stems for kind in kinds[stem]]
    beginnings = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(path.read_bytes().startswith(beginnings[path.suffix[1:]]) for path in paths)
    assert [line.split("]")[0] for line in said] == [f"[{n}/{len(stems)}" for n in range(1, len(stems) + 1)]


def test_several_processes_draw_what_one_draws(tmp_path: Path):
    found = many(tmp_path, 3)
    one = drawing.save(found, Target(), tmp_path / "one", lambda line: None, 1, ("svg", "pdf"))
    two = drawing.save(found, Target(), tmp_path / "two", lambda line: None, 2, ("svg", "pdf"))
    assert sorted(path.name for path in one) == sorted(path.name for path in two)
    for path in one:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_formats_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture):
    path, page = write(tmp_path / "a.h5", [a_round(0)]), tmp_path / "page.html"
    assert main([str(path), "--plot", str(tmp_path / "plots"), "--formats", "pdf", "--html", str(page)]) == 0
    assert {made.suffix for made in (tmp_path / "plots").iterdir()} == {".pdf"}
    assert page.read_text().count("data:image/svg+xml") == 2
    assert main([str(path), "--plot", str(tmp_path / "other"), "--formats", "pdf,gif"]) == 2
    assert "--formats gif is unknown: give some of png,svg,pdf" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_rounds_count_from_one(tmp_path: Path):
    (group,) = many(tmp_path, 1)
    figure = layers.by_layer(group[0], "x")
    assert figure.axes[0].images[0].get_extent()[:2] == [0.5, 3.5]
    scores = plots.overview([group], Target())["scores"]
    assert scores.axes[1].lines[0].get_xdata().tolist() == [1, 2, 3]


def test_bytes_by_client_sum_to_those_of_the_rounds(tmp_path: Path):
    path = tmp_path / "partial.h5"
    how = ["num_clients=5", "cohort_size=2", "rounds=3", "teacher.hidden=[16]", "student.hidden=[8]", "local.epochs=1"]
    assert run_main(["--output", str(path), *how]) == 0
    run = Run(path, Target())
    sent, received = clients.bytes_by_client(run)
    assert sent.sum() == run.rounds["uplink_bytes"].sum()
    assert received.sum() == run.rounds["downlink_bytes"].sum()
    up = run.log["uplink"]
    expected = [up["layer_bytes"][up["round"] == number].mean(axis=0) for number in range(3)]
    np.testing.assert_allclose(layers.means(up, "layer_bytes", run.rounds["round"]), expected)


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for less in (False, True):
        sent, values = rng.integers(0, 9, 30).tolist(), rng.integers(0, 9, 30).tolist()
        better = [-value if less else value for value in values]
        unbeaten = {
            (sent[i], values[i])
            for i in range(30)
            if not any(
                sent[j] <= sent[i] and better[j] >= better[i] and (sent[j], better[j]) != (sent[i], better[i])
                for j in range(30)
            )
        }
        found = pareto.front(sent, values, less)
        assert {(sent[i], values[i]) for i in found} == unbeaten
        assert len(found) == len(unbeaten)


def test_scores_at_equal_bytes_are_linear_between_evaluated_rounds(tmp_path: Path):
    one = [a_round(0, 0.2), a_round(1, np.nan), a_round(2, 0.8)]  # 2 MB per client and round
    two = [a_round(0, 0.1, up=(MB // 2,) * 2, down=MB // 2), a_round(1, 0.9, up=(MB // 2,) * 2, down=MB // 2)]
    runs = [Run(write(tmp_path / f"{n}.h5", made), Target()) for n, made in enumerate((one, two))]
    assert pareto.at_bytes(runs[0], "global_student", 4 * MB) == pytest.approx(0.5)
    assert pareto.at_bytes(runs[0], "global_student", 3 * MB) == pytest.approx(0.35)
    assert np.isnan(pareto.at_bytes(runs[0], "global_student", MB))
    assert np.isnan(pareto.at_bytes(runs[0], "global_student", 7 * MB))
    report = Report(groups(runs), Target())
    made = pareto.sheet(report)
    assert [header.split("\n")[0] for header in made.headers[-3:]] == ["at 0.5 MB", "at 1 MB", "at 2 MB"]
    assert [row[-3:] for row in made.rows] == [["-", "-", "0.2000"], ["-", "0.1000", "0.9000"]]
    assert pareto.sheet(Report(groups(runs[:1]), Target())) is None


def test_every_look_differs_up_to_56_runs_and_units_fit():
    found = list(itertools.islice(canvas.looks(), 56))
    assert len(set(found)) == 56
    assert canvas.scaled([20.0, 3e6], "bytes") == ("MB", 1e6)
    assert canvas.scaled([], "seconds") == columns.UNITS["seconds"][0]
