"""Tables against the logs read by h5py alone: exact where they claim it, one unit per column, differences of pairs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from made_logs import MB, a_round, write
from mpirun import PATIENCE
from scipy import stats

from fedkd_mpi.report import columns, tex
from fedkd_mpi.report.__main__ import main

SEEDS = range(4)


def a_grid(folder: Path) -> list[Path]:
    """Write three configurations of four seeds each, in the order b, a, c of their codecs."""
    paths = []
    for number, codec in enumerate(("b", "a", "c")):
        for seed in SEEDS:
            rng = np.random.default_rng((number, seed))
            up = tuple(int(size) for size in rng.integers(10**3 * 30**number, 10**4 * 30**number, 2))
            made = [a_round(n, float(rng.random()), up=up, down=up[0], seconds=float(rng.random())) for n in range(2)]
            paths.append(write(folder / f"{codec}{seed}.h5", made, seed=seed, compression={"codec": codec}))
    return paths


def printed(capsys: pytest.CaptureFixture, *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def sums(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["uplink/bytes"][:].sum() + (file["downlink/bytes"][:] * file["rounds/cohort_size"][:]).sum())


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown_csv_and_json_are_exact(tmp_path, capsys):
    paths = a_grid(tmp_path)[::4]
    expected = [sums(path) for path in paths]
    rows = json.loads(printed(capsys, *paths, "--format", "json"))["runs"]
    assert [row["total_bytes"] for row in rows] == expected
    rows = list(csv.DictReader(io.StringIO(printed(capsys, *paths, "--format", "csv"))))
    assert [int(row["total_bytes"]) for row in rows] == expected
    text = printed(capsys, *paths, "--format", "markdown", "--columns", "total_bytes,global_student_last,codec")
    lines = [cells_of(line) for line in text.splitlines() if line.startswith("|")]
    assert lines[0][0] == "bytes of all clients (B)"
    assert [int(line[0]) for line in lines[2:]] == expected
    for path, line in zip(paths, lines[2:], strict=True):
        with h5py.File(path) as file:
            assert float(line[1]) == file["rounds/global_student_accuracy"][-1]


@pytest.mark.parametrize("form", ["table", "latex"])
def test_a_column_has_one_unit_and_keeps_three_digits_of_its_smallest_number(tmp_path, capsys, form):
    paths = a_grid(tmp_path)
    text = printed(capsys, *paths, "--columns", "run,total_bytes,seconds_train", "--format", form)
    unit = re.search(r"\((k?M?G?B)\)", text)[1]
    size = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    found = re.findall(r"made-up-(\d)[ &]+([\d.e-]+) (?:±|\$\\pm\$) ([\d.e-]+)", text)
    assert len(found) == 3
    for index, mean, deviation in found:
        values = [sums(path) for path in paths[4 * int(index) - 4 :][:4]]
        assert float(mean) * size == pytest.approx(np.mean(values), rel=5e-3)
        assert float(deviation) * size == pytest.approx(
            np.std(values, ddof=1), abs=size * 10 ** -len(mean.split(".")[1])
        )
    assert len({len(mean.partition(".")[2]) for _, mean, _ in found}) == 1


@pytest.mark.parametrize(
    ("of", "values", "expected"),
    [
        ("bytes", [1.0, 20.0, 900.0], ("B", 1.0)),
        ("bytes", [24_000.0, 2_000_000.0, 16_000_000.0], ("MB", 1e6)),
        ("bytes", [0.0, float("nan")], ("B", 1.0)),
        ("seconds", [0.002, 0.003], ("ms", 1e-3)),
        ("seconds", [1e-9], ("µs", 1e-6)),
        ("seconds", [90.0, 5000.0, 7200.0], ("h", 3600.0)),
        ("score", [0.1], ("", 1.0)),
    ],
)
def test_units_fit_the_values(of: str, values: Sequence[float], expected: tuple[str, float]):
    name, size = columns.unit(of, values)
    assert (name, size) == expected


def test_a_small_number_is_never_shown_as_zero():
    header, cells = columns.spreads("sent", "bytes", [[3.0], [5e9], [6e9]])
    assert header == "sent\n(GB)"
    assert cells == ["3.0e-09", "5.0000", "6.0000"]
    assert columns.spreads("x", "count", [[1.0, 1.0], [1.0, 2.0], [float("nan")]])[1] == ["1.0", "1.5 ± 0.7", "-"]


def test_rows_are_in_the_order_given_and_columns_in_the_order_chosen(tmp_path, capsys):
    paths = a_grid(tmp_path)
    text = printed(capsys, *paths, "--columns", "codec,run")
    assert [line.split() for line in text.splitlines()[3:]] == [
        ["b", "made-up-1"],
        ["a", "made-up-2"],
        ["c", "made-up-3"],
    ]
    rows = json.loads(printed(capsys, *paths[::-1], "--format", "json", "--columns", "seed,codec,compression.codec"))
    assert rows["runs"][0] == {"seed": 3, "codec": "c", "compression.codec": "c"}
    assert [row["seed"] for row in rows["runs"]] == [3, 2, 1, 0] * 3


def test_an_unknown_column_is_one_line_with_what_was_meant(tmp_path, capsys):
    path = write(tmp_path / "a.h5", [a_round(0)])
    assert main([str(path), "--columns", "total_byte"]) == 2
    assert "did you mean total_bytes" in capsys.readouterr().err


def test_a_log_that_is_named_twice_is_one_run(tmp_path, capsys):
    path = write(tmp_path / "a.h5", [a_round(0)])
    assert len(json.loads(printed(capsys, path, tmp_path, path, "--format", "json"))["runs"]) == 1


def test_a_baseline_gives_paired_differences_with_the_interval_of_a_t_test(tmp_path, capsys):
    paths = a_grid(tmp_path)
    made = json.loads(printed(capsys, *paths, "--format", "json", "--baseline", "codec=a"))
    assert made["baseline"] == "made-up-2"
    values = {
        run: [row for row in made["runs"] if row["run"] == run] for run in ("made-up-1", "made-up-2", "made-up-3")
    }
    for run in ("made-up-1", "made-up-3"):
        for key in ("global_student_last", "bytes_per_client", "seconds_total"):
            own, base = ([row[key] for row in values[name]] for name in (run, "made-up-2"))
            interval = stats.ttest_rel(own, base).confidence_interval(0.95)
            found = made["differences"][run][key]
            assert found["pairs"] == 4
            assert found["mean"] == pytest.approx(np.mean(own) - np.mean(base))
            assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
            assert [row[f"difference_{key}"] for row in values[run]] == [a - b for a, b in zip(own, base, strict=True)]
    text = printed(capsys, *paths, "--baseline", "codec=a")
    found = made["differences"]["made-up-1"]["global_student_last"]
    assert f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]" in text


def test_seeds_without_a_partner_are_left_out_of_a_difference(tmp_path, capsys):
    paths = a_grid(tmp_path)
    made = json.loads(printed(capsys, *paths[:3], *paths[5:7], paths[11], "--format", "json", "--baseline", "codec=b"))
    pairs = [made["differences"][f"made-up-{number}"]["total_bytes"]["pairs"] for number in (1, 2, 3)]
    assert pairs == [3, 2, 0]
    assert made["differences"]["made-up-3"]["total_bytes"]["mean"] is None
    text = printed(capsys, *paths[:3], paths[4], "--baseline", "codec=b").split("Difference to")[1]
    assert "[" not in text.splitlines()[4]  # one pair has no interval


def test_the_table_for_print_is_short_and_compiles(tmp_path, capsys):
    configs = [
        {"name": f"50% & {n}_a", "method": "fedavg", "averaging": {"network": f"#{n}"}, "x": {"y{}": n}}
        for n in range(3)
    ]
    paths = [write(tmp_path / f"{n}.h5", [a_round(0)], **config) for n, config in enumerate(configs)]
    text = printed(capsys, *paths, "--format", "latex", "--target", "0.4", "--baseline", paths[0])
    for table in text.split("\n\n"):
        assert r"\begin{table}  % needs \usepackage{booktabs}" in table
        assert re.search(r"\\caption\{.+\}\n\\label\{tab:[a-z0-9-]+\}", table)
        kinds = re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)[1]
        assert len(kinds) <= 7
        body = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert len(lines) >= 3
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(kinds) - 1
            assert not re.search(r"(?<!\\)[%#_]", line)
            assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")
        assert table.count("$") % 2 == 0


def test_every_output_has_the_bytes_of_a_log_with_catch_up(tmp_path, capsys):
    made = []
    for number in range(3):
        rounds, *others = a_round(number, up=(1_234_500 + number, 89), down=765_400 + number)
        made.append((rounds | {"catchup_bytes": 70_001 + number}, *others))
    path = write(tmp_path / "a.h5", made)
    with h5py.File(path) as file:
        legs = {leg: int(file[f"rounds/{leg}_bytes"][:].sum()) for leg in ("uplink", "downlink", "catchup")}
        assert legs["uplink"] == file["uplink/bytes"][:].sum()
        assert legs["downlink"] == (file["downlink/bytes"][:] * file["rounds/cohort_size"][:]).sum()
    total = sum(legs.values())
    assert total == sums(path) + 3 * 70_001 + 3
    (row,) = json.loads(printed(capsys, path, "--json"))["runs"]
    (line,) = csv.DictReader(io.StringIO(printed(capsys, path, "--format", "csv")))
    for found in (row, line):
        assert int(found["total_bytes"]) == total
        assert float(found["bytes_per_client"]) == total / 2
        assert {leg: int(found[f"{leg}_bytes"]) for leg in legs} == legs
    columns = ",".join(f"{leg}_bytes" for leg in legs) + ",total_bytes"
    cells = cells_of(printed(capsys, path, "--format", "markdown", "--columns", columns).splitlines()[4])
    assert [int(cell) for cell in cells] == [*legs.values(), total]
    assert f" {total / 1e6:.4g} " in printed(capsys, path).split("\n\n")[1].splitlines()[-2] + " "
    assert rf"& {total / 2e6:.3g} &" in printed(capsys, path, "--format", "latex")
    (found,) = json.loads(printed(capsys, path, "--messages", "--json"))["messages"].values()
    for leg in ("uplink", "downlink"):
        assert sum(each["total_bytes"] for each in found["messages"] if each["leg"] == leg) == legs[leg]


@pytest.mark.parametrize(
    "option", ["--columns", "--baseline", "--plot", "--html", "--tensorboard", "--network", "--metric"]
)
def test_an_option_without_its_value_is_refused(tmp_path, capsys, monkeypatch, option):
    path = write(tmp_path / "a.h5", [a_round(0)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):  # as `--plot "$DIR"` with a variable that is not set
        main([str(path), option, ""])
    assert f"argument {option}: is empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--columns", "run,,seed"], "a name is missing"),
        (["--formats", "svg"], "give it too"),
        (["--baseline", "none"], "is no run of this report: the ids of the runs are made-up"),
        (["--plot", "a.h5"], "cannot write the plots to a.h5: File exists"),
        (["--html", "."], "cannot write --html .: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, monkeypatch, given, message):
    write(tmp_path / "a.h5", [a_round(0)])
    monkeypatch.chdir(tmp_path)
    assert main(["a.h5", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


HOSTILE = [
    "50% & a_b #1",
    r"C:\new\x~y^2 {z} $5$ \end{table} \input{/etc/passwd}",
    "µ-Größe ± né Ő č ß ≥ αΩ → \u2013 “q” …",
    "שלום 模型 é\u0301 \u202e",
    "[x] *y* / | -1 <a> -- --- ''b'' ?`",
    "a" * 90,
]


def test_pdflatex_compiles_tables_of_any_text(tmp_path, capsys):
    latex = shutil.which("pdflatex")
    if latex is None:
        pytest.skip("pdflatex is not installed: Debian's texlive-latex-recommended")
    for number, name in enumerate(HOSTILE):
        for seed in range(2):
            settings = {"name": name, "seed": seed, "codec": name, "[k_%]": [number], "x": {name[:50]: number}}
            write(tmp_path / f"{number}{seed}.h5", [a_round(0, 0.3 + seed / 9)], **settings)
    options = ["--baseline", "50-a_b-1", "--network", "4g", "--energy", "--messages"]
    text = printed(capsys, tmp_path, "--format", "latex", *options)
    text += printed(capsys, tmp_path, "--format", "latex", "--columns", "codec,log,[k_%],seed,total_bytes")
    whole = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\listoftables" + f"\n{text}\n\\end{{document}}\n"
    )
    (tmp_path / "x.tex").write_text(whole, encoding="utf-8")
    for _ in range(2):  # the second time with the captions in the list of tables
        command = [latex, "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_latex_says_what_a_text_says():
    written = {
        "a_b": r"a\_b",
        "e\u0301ß": r"\'{e}\ss{}",
        "\u22121 ± 2 µs": r"$-$1 $\pm$ 2 $\mu$s",
        "--": "-{}-",
        "[1]*": "{[}1]{*}",
        "模": r"\uchar{模}{U+6A21}",
        "Γδ": r"$\Gamma$$\delta$",
    }
    assert {text: tex.escaped(text) for text in written} == written
    assert tex.number("-1 [+0.5, -2e-09] 2-3") == "$-$1 {[}$+$0.5, $-$2e-09] 2-3"


def test_csv_cells_stay_in_their_columns_where_logs_differ(tmp_path, capsys):
    paths = [write(tmp_path / f"{n}.h5", [a_round(0)], rounds=n + 1, codec=f"={n}") for n in range(2)]
    lines = list(csv.reader(io.StringIO(printed(capsys, *paths, "--format", "csv", "--energy"))))
    assert len({len(line) for line in lines}) == 1
    assert lines[1][lines[0].index("bytes_at_0.9")] == ""
    assert sums(paths[0]) == 4 * MB
