"""The page of --html: what it contains, against the logs; and what it does, in a headless Chromium."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser as browsers
import h5py
import logs
import made_logs
import numpy as np
import pytest
import yaml

from fedkd_mpi import costlog
from fedkd_mpi.report import page_data
from fedkd_mpi.report.__main__ import main

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

HOSTILE = '"><script>window.hacked=1</script><b>bold</b> \' & שלום <a href="javascript:window.hacked=2">x</a>'
METRIC = "<img src=x onerror=window.hacked=3>"
LAYER = "</script><!--<script>\u2028\u202e\nlayer%{x}"
ROUNDS, CLIENTS = 6, 4
MOST = 6_000_000  # bytes of a page of 12 runs


def write(path: Path, rounds: int = ROUNDS, score: float = 0.5, **config: Any) -> Path:
    """Write a log of 4 clients whose names are markup wherever a log can name anything."""
    settings = {"name": HOSTILE, "seed": 1, "rounds": rounds, "method": "fedkd", "compression": {"codec": "svd"}}
    text = yaml.safe_dump(settings | config)
    attrs = logs.ATTRS | {"config": text, "config_digest": hashlib.sha256(text.encode()).hexdigest()}
    attrs |= {"seed": (settings | config)["seed"], "hostnames": [HOSTILE, "node\n2"], "mpi_library": HOSTILE}
    clients = {name: np.full(CLIENTS, 7) for name in ("train_samples", "test_samples")} | {"mpi_rank": np.arange(4) % 3}
    layers = [(LAYER, (8, 4), True), ("bias", (4,), False)]
    writer = costlog.Writer.create(path, attrs, layers, clients, [METRIC, "f1"], 3)
    for number in range(rounds):
        parts = logs.make_round(number, cohort=3, layers=2, metrics=(METRIC, "f1"))
        parts[0].update({f"global_student_{METRIC}": score + number / 100, "cohort_size": 3, "catchup_bytes": 5})
        parts[0].update({f"seconds_{phase}": 0.5 for phase in ("train", "total")})
        writer.append_round(*parts)
    writer.event(rounds - 1, 2, "warning", "<i>late</i>\u2028&amp;")
    writer.finish("completed")
    return path


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return four logs of three configurations; the first two differ in the seed alone."""
    folder = tmp_path_factory.mktemp("lo'gs")
    changes: list[dict[str, Any]] = [{"seed": 1}, {"seed": 2}, {"compression": {"codec": "topk"}}, {"method": "fedavg"}]
    return [write(folder / f"{number}.h5", score=0.3 + number / 10, **change) for number, change in enumerate(changes)]


@pytest.fixture(scope="module")
def page(paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main([*map(str, paths), "--html", str(path), "--target", "0.5"]) == 0
    return path


class Elements(HTMLParser):
    """The start tags of a page, and the text of its scripts by id."""

    def __init__(self, page: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        tag, attrs = self.tags[-1] if self.tags else ("", {})
        if tag == "script":
            name = attrs.get("id") or f"own {sum(tag == 'script' and 'id' not in attrs for tag, attrs in self.tags)}"
            self.scripts[name] = self.scripts.get(name, "") + data


def test_nothing_is_loaded_from_outside_and_only_its_own_scripts_may_run(page):
    found = Elements(page)
    for tag, attrs in found.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert (attrs.get(name) or "data:").startswith(("data:", "#")), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
    assert [attrs.get("id") for tag, attrs in found.tags if tag == "script"] == ["data", "plotly", None, None, None]
    (policy,) = (attrs["content"] for tag, attrs in found.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    library = gzip.decompress(base64.b64decode(found.scripts["plotly"]))
    scripts = [*(found.scripts[f"own {number}"].encode() for number in (1, 2, 3)), library]
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    assert policy.split(";")[1].split() == ["script-src", *(f"'sha256-{each}'" for each in hashes)]
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy.split(";")[1]
    assert "form-action 'none'" in policy


def test_the_numbers_of_the_page_are_those_of_the_logs_to_the_byte(page, paths):
    found = json.loads(Elements(page).scripts["data"])
    assert [entry["group"] for entry in found["logs"]] == [0, 0, 1, 2]
    for entry, path in zip(found["logs"], paths, strict=True):
        with h5py.File(path) as file:
            rounds = {name: column[:] for name, column in file["rounds"].items()}
            total = sum(rounds[f"{leg}_bytes"] for leg in ("uplink", "downlink", "catchup"))
            assert entry["bytes"] == total.cumsum().tolist()
            assert entry["rounds"] == list(range(1, ROUNDS + 1))
            for name in ("uplink_bytes", "downlink_bytes", "catchup_bytes"):
                assert entry["values"][name] == rounds[name].tolist()
            np.testing.assert_allclose(entry["seconds"], rounds["seconds_total"].cumsum(), rtol=1e-5)
            scores = rounds[f"global_student_{METRIC}"]
            np.testing.assert_allclose(entry["values"][f"global_student {METRIC}"], scores, rtol=1e-8)
            sizes, of_round = file["uplink/layer_bytes"][:], file["uplink/round"][:]
            means = [[sizes[of_round == number, layer].mean() for number in range(ROUNDS)] for layer in range(2)]
            np.testing.assert_allclose(entry["layers"]["uplink bytes"]["values"], means, rtol=1e-5)
            sent = np.full((CLIENTS, ROUNDS), np.nan)
            sent[file["uplink/client"][:], of_round] = file["uplink/bytes"][:]
            np.testing.assert_allclose(np.array(entry["clientMaps"]["uplink bytes"]["values"], float), sent, rtol=1e-5)
            assert len(entry["events"]) == len(file["events/round"]) == 1


def test_a_page_of_twelve_runs_stays_small_however_many_rounds_layers_and_clients(tmp_path):
    paths = [write(tmp_path / f"{number}.h5", 40, partition={"alpha": number}) for number in range(12)]
    page = tmp_path / "report.html"
    assert main([*map(str, paths), "--html", str(page)]) == 0
    assert page.stat().st_size < MOST / 1.5
    # Heat maps of any size share a fixed number of cells; about 7 bytes each are left for them.
    assert page.stat().st_size + 7 * page_data.CELLS < MOST
    rng = np.random.default_rng(0)
    for shape in ((3, 5000), (700, 9), (1, 1)):
        table = rng.random(shape)
        table[0, 0] = np.nan
        means, step = page_data._binned(table, 1000)
        assert means.size <= 1000 + 2 * shape[0]
        np.testing.assert_allclose(means[-1, 0], np.nanmean(table[-1, :step]) if table.size > 1 else np.nan)


# --- In a browser ---


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def opened(started: Any, page: Path) -> Any:
    """The page, newly loaded with its charts."""
    browsers.size(started, 1200)
    browsers.prefer(started, "light")
    return load(started, page)


def load(browser: Any, page: Path) -> Any:
    browser.get(f"file://{page}")
    wait(browser, "return document.querySelectorAll('.chart .main-svg').length >= 5")
    return browser


def wait(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, 0.05).until(lambda found: found.execute_script(condition))


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def choose(browser: Any, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    found = Select(find(browser, f"#{name}"))
    (index,) = (index for index, option in enumerate(found.options) if text in option.text)
    found.select_by_index(index)


def lines(browser: Any) -> list[dict[str, Any]]:
    """The drawn lines without the bands: name, x and y as plotly has them."""
    return browser.execute_script(
        "return document.getElementById('plot').data.filter(trace => trace.text)"
        ".map(trace => ({name: trace.name, x: [...trace.x], y: [...trace.y], text: [...trace.text]}))"
    )


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def test_runs_measure_and_axes_are_chosen_and_the_chart_has_the_logs_numbers(opened, paths):
    with h5py.File(paths[2]) as file:
        rounds = {name: column[:] for name, column in file["rounds"].items()}
    assert len(lines(opened)) == 3
    assert not complaints(opened)
    find(opened, "#runs li:nth-child(1) label").click()
    find(opened, "#runs li:nth-child(3) label").click()
    (line,) = lines(opened)
    np.testing.assert_allclose(line["y"], rounds[f"global_student_{METRIC}"], rtol=1e-8)
    assert "1 of 3 runs chosen" in find(opened, "#status").text
    total = sum(rounds[f"{leg}_bytes"] for leg in ("uplink", "downlink", "catchup")).cumsum()
    for along, x in (("bytes per client", total / CLIENTS / 1e9), ("all clients", total / 1e9)):
        choose(opened, "along", along)
        np.testing.assert_allclose(lines(opened)[0]["x"], x, rtol=1e-9)
    choose(opened, "along", "rounds")
    assert lines(opened)[0]["x"] == list(range(1, ROUNDS + 1))
    choose(opened, "measure", "uplink")
    np.testing.assert_allclose(lines(opened)[0]["y"], rounds["uplink_bytes"] / 1e9, rtol=1e-9)
    find(opened, "#logy").click()
    kinds = "return ['xaxis', 'yaxis'].map(name => document.getElementById('plot')._fullLayout[name].type)"
    assert opened.execute_script(kinds) == ["linear", "log"]
    find(opened, "#all").click()
    assert len(lines(opened)) == 3
    find(opened, "#each").click()
    assert len(lines(opened)) == 4
    choose(opened, "measure", "f1: teachers, global test set")  # the same made-up values in all logs
    assert "lies on" in find(opened, "#status").text
    find(opened, "#none").click()
    assert lines(opened) == []
    assert not complaints(opened)


def test_a_line_of_two_seeds_is_their_mean_with_a_band(opened, paths):
    scores = []
    for path in paths[:2]:
        with h5py.File(path) as file:
            scores.append(file[f"rounds/global_student_{METRIC}"][:])
    np.testing.assert_allclose(lines(opened)[0]["y"], np.mean(scores, axis=0), rtol=1e-7)
    assert "2 seeds" in lines(opened)[0]["text"][0]
    band = opened.execute_script("return [...document.getElementById('plot').data.find(trace => trace.fill).y]")
    np.testing.assert_allclose(band, [*np.max(scores, axis=0), *np.min(scores, axis=0)[::-1]], rtol=1e-7)


def test_a_pointer_over_a_point_shows_its_values_and_a_click_opens_its_run(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    choose(opened, "along", "rounds")
    find(opened, "#none").click()
    find(opened, "#runs li:nth-child(2) label").click()
    opened.execute_script("document.getElementById('curves').scrollIntoView()")
    x, y = opened.execute_script(
        "const plot = document.getElementById('plot'), { xaxis, yaxis } = plot._fullLayout;"
        "const box = plot.getBoundingClientRect(), line = plot.data.find(trace => trace.text);"
        "return [box.x + xaxis._offset + xaxis.l2p(3), box.y + yaxis._offset + yaxis.l2p(line.y[2])].map(Math.round)"
    )
    actions = ActionChains(opened)
    actions.w3c_actions.pointer_action.move_to_location(x, y)
    actions.perform()
    wait(opened, "return document.querySelector('#plot .hoverlayer text') !== null")
    shown = opened.execute_script("return document.querySelector('#plot .hoverlayer').textContent")
    assert "round 3" in shown
    assert "0.52" in shown
    ActionChains(opened).click().perform()
    wait(opened, "return document.getElementById('facts').textContent.includes('2.h5')")


def test_zoom_by_buttons_keys_and_pointer(opened):
    from selenium.webdriver.common.action_chains import ActionChains

    extent = "return document.getElementById('plot')._fullLayout.xaxis.range.map(Number)"
    low, high = opened.execute_script(extent)
    find(opened, "[data-zoom='0.5']").click()
    near = opened.execute_script(extent)
    assert near[1] - near[0] == pytest.approx((high - low) / 2)
    chart = find(opened, "#plot")
    opened.execute_script("arguments[0].focus()", chart)
    ActionChains(opened).send_keys("-").perform()
    assert opened.execute_script(extent) == pytest.approx([low, high])
    ActionChains(opened).send_keys("\ue014").perform()  # the right arrow
    assert opened.execute_script(extent)[0] > low
    ActionChains(opened).send_keys("0").perform()
    assert opened.execute_script(extent) == pytest.approx([low, high])
    ActionChains(opened).move_to_element(chart).click_and_hold().move_by_offset(120, 60).release().perform()
    wait(opened, f"const [a, b] = (() => {{ {extent} }})(); return b - a < {0.5 * (high - low)}")


def test_tables_are_sorted_by_a_click_and_filtered_by_text(opened):
    table = "document.querySelector('#tables table')"
    texts = f"return [...{table}.tBodies[0].rows].filter(row => !row.hidden).map(row => row.textContent)"
    before = opened.execute_script(texts)
    heads = opened.find_elements("css selector", "#tables table:first-of-type th button")
    column = next(at for at, head in enumerate(heads) if head.text.startswith("global student"))
    numbers = f"return [...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[{column}].textContent))"
    heads[column].click()
    assert opened.execute_script(numbers) == sorted(opened.execute_script(numbers))
    heads[column].click()
    assert opened.execute_script(numbers) == sorted(opened.execute_script(numbers), reverse=True)
    sorted_by = opened.execute_script(f"return [...{table}.querySelectorAll('th')].map(head => head.ariaSort)")
    assert [at for at, kind in enumerate(sorted_by) if kind] == [column]
    find(opened, "#filter").send_keys("topk")
    assert opened.execute_script(texts) == [text for text in before if "topk" in text]


def test_the_shown_values_have_one_unit_per_column_by_which_a_click_sorts(started, tmp_path):
    size, page = 200_000, tmp_path / "report.html"  # 400, 800, 1,200 and 1,600 kB per client
    made = [made_logs.a_round(number, up=(size, size), down=size) for number in range(4)]
    assert main([str(made_logs.write(tmp_path / "x.h5", made)), "--html", str(page)]) == 0
    load(started, page)
    find(started, "#values summary").click()
    wait(started, "return document.querySelectorAll('#values tbody tr').length === 4")
    heads = started.find_elements("css selector", "#values th button")
    assert heads[2].text == "bytes per client (MB)"
    heads[2].click()
    heads[2].click()
    cells = "return [...document.querySelectorAll('#values tbody tr')].map(row => row.cells[{}].textContent)"
    assert started.execute_script(cells.format(1)) == ["4", "3", "2", "1"]
    assert started.execute_script(cells.format(2)) == ["1.6", "1.2", "0.8", "0.4"]


def test_one_run_shows_its_layers_clients_configuration_provenance_and_events(opened, paths):
    choose(opened, "one", "3.h5")
    choose(opened, "layerwhat", "downlink rank")
    cells = "return document.getElementById('{}').data[0].z.map(row => [...row])"
    with h5py.File(paths[3]) as file:
        ranks = file["downlink/layer_rank"][:].T.astype(float)
        losses = np.full((CLIENTS, ROUNDS), np.nan)
        losses[file["training/client"][:], file["training/round"][:]] = file["training/student_loss"][:]
    ranks[ranks < 0] = np.nan
    np.testing.assert_allclose(np.array(opened.execute_script(cells.format("layers")), float), ranks)
    choose(opened, "clientwhat", "loss, student")
    np.testing.assert_allclose(np.array(opened.execute_script(cells.format("clients")), float), losses, rtol=1e-5)
    find(opened, "#layerlog").click()
    np.testing.assert_allclose(
        np.array(opened.execute_script(cells.format("layers")), float),
        np.log10(ranks, where=ranks > 0, out=np.full(ranks.shape, np.nan)),
    )
    for summary in opened.find_elements("css selector", "#run summary"):
        summary.click()
    assert "fedavg" in find(opened, "#configuration").text
    find(opened, "#keys").send_keys("codec")
    assert find(opened, "#configuration").text.splitlines()[1:] == ["compression.codec svd"]
    assert "hostnames" in find(opened, "#provenance").text
    assert "<i>late</i>" in find(opened, "#events").text
    assert not complaints(opened)


def test_the_difference_of_two_runs(opened):
    choose(opened, "first", "0.h5")
    choose(opened, "second", "2.h5")
    cells = [cell.text for cell in opened.find_elements("css selector", "#differences td")]
    assert cells[:4] == ["configuration", "compression.codec", "svd", "topk"]
    assert "their bits part in round 1: losses, scores" in find(opened, "#bits").text
    choose(opened, "second", "0.h5")
    assert f"equal in all columns but times and placement, {ROUNDS} rounds" in find(opened, "#bits").text


def test_names_from_logs_stay_text(opened, page):
    """No element, no script and no markup of a chart comes from a log, wherever it can name something."""
    choose(opened, "layerwhat", "uplink bytes")
    assert opened.execute_script("return typeof window.hacked") == "undefined"
    markup = "return document.querySelectorAll('main b, main i, main a[href*=javascript], img:not(.static img)').length"
    assert opened.execute_script(markup) == 0
    text = opened.execute_script("return document.getElementById('layers').textContent")
    assert "</script><!--<script>" in text
    assert METRIC in opened.execute_script("return document.getElementById('plot').textContent")
    find(opened, "#run summary").click()
    assert HOSTILE in opened.execute_script("return document.getElementById('configuration').textContent")
    everything = opened.execute_script("return document.body.innerText")
    assert not set("\u2028\u202e") & set(everything)
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    assert not complaints(opened)


def test_every_control_has_a_label_every_chart_and_picture_a_text(opened):
    unnamed = (
        "return [...document.querySelectorAll('main input, main select, main button')].filter(each => !("
        "each.closest('.modebar') || (each.labels && each.labels.length) || each.ariaLabel || each.textContent.trim()"
        ")).map(each => each.outerHTML)"
    )
    assert opened.execute_script(unnamed) == []
    charts = opened.execute_script("return [...document.querySelectorAll('.chart')].map(each => each.ariaLabel || '')")
    assert len(charts) == 5
    assert all(len(text) > 20 for text in charts)
    assert all(image.get_attribute("alt") for image in opened.find_elements("css selector", "img"))
    buttons = {each.get_attribute("aria-label") for each in opened.find_elements("css selector", ".modebar-btn")}
    assert buttons <= {"Download plot as a SVG", "Download plot", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}
    targets = "return [...document.querySelectorAll('nav a')].map(each => document.querySelector(each.hash) !== null)"
    assert opened.execute_script(targets) == [True] * 4
    find(opened, "#values summary").click()
    wait(opened, f"return document.querySelectorAll('#values tbody tr').length === {3 * ROUNDS}")


@pytest.mark.parametrize("width", [400, 800, 1200, 2500])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_width_in_light_and_dark_and_on_paper(started, page, width, scheme):
    browsers.size(started, width)
    browsers.prefer(started, scheme)
    load(started, page)
    assert started.execute_script("return document.documentElement.scrollWidth") <= width
    wide = (
        "return [...document.querySelectorAll('.chart')]"
        ".map(each => each.querySelector('.main-svg').clientWidth - each.clientWidth)"
    )
    assert max(started.execute_script(wide)) <= 0
    shine = "return getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
    back, ink = (started.execute_script(shine.format(name)) for name in ("backgroundColor", "color"))
    assert (back < ink) == (scheme == "dark")
    browsers.prefer(started, scheme, "print")
    assert started.execute_script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    assert started.execute_script(shine.format("backgroundColor")) > started.execute_script(shine.format("color"))
    paper = base64.b64decode(started.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"])
    assert paper.startswith(b"%PDF")
    browsers.prefer(started, scheme)


def test_without_scripts_there_are_tables_and_figures_and_no_empty_controls(started, page):
    browsers.scripts(started, run=False)
    try:
        started.get(f"file://{page}")
        shown = started.execute_script(
            "return ['.static img', '#tables table', 'noscript', '#axes', '#run', '#difference']"
            ".map(each => document.querySelector(each).getClientRects().length > 0)"
        )
        size = started.execute_script("return document.querySelector('.static img').naturalWidth")
    finally:
        browsers.scripts(started, run=True)
    assert shown == [True, True, True, False, False, False]
    assert size > 100


def test_a_browser_that_cannot_draw_keeps_tables_and_figures(started, page, tmp_path):
    old = tmp_path / "old.html"
    text = page.read_text(encoding="utf-8")
    (packed,) = re.findall(r'<script type="text/plain" id="plotly">([^<]*)', text)
    old.write_text(text.replace(packed, packed[:5000]), encoding="utf-8")
    started.get(f"file://{old}")
    wait(started, "return document.querySelector('header .problem') !== null")
    assert find(started, ".static img").is_displayed()
    assert not find(started, "#run").is_displayed()
    started.get_log("browser")


@pytest.mark.parametrize("rounds", [0, 1])
def test_runs_of_no_and_of_one_round(started, tmp_path, rounds):
    path, page = write(tmp_path / "x.h5", max(rounds, 1)), tmp_path / "report.html"
    if not rounds:
        with h5py.File(path, "r+") as file:
            file["rounds/round"][0] = -1
    assert main([str(path), "--html", str(page)]) == 0
    started.get_log("browser")
    started.get(f"file://{page}")
    if rounds:
        wait(started, "return document.querySelectorAll('.chart .main-svg').length >= 5")
        assert not find(started, "#difference").is_displayed()
    assert not complaints(started)


def test_without_plotly_the_page_is_refused_in_one_line(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert main([str(paths[0]), "--html", str(tmp_path / "x.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "fedkd_mpi.report: --html needs plotly: pip install 'fedkd-mpi[report]'"
    assert not (tmp_path / "x.html").exists()
