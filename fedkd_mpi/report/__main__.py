"""python -m fedkd_mpi.report LOG...: scores and costs of runs.

python -m fedkd_mpi.report runs/*.h5                               tables of scores, bytes and seconds
python -m fedkd_mpi.report runs/*.h5 --target 0.9 --network 4g     bytes, and time over 4G, to a score of 0.9
python -m fedkd_mpi.report runs/*.h5 --plot pictures --html report.html
python -m fedkd_mpi.report --diff a.h5 b.h5                        what differs, and where the bits of two runs part
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedkd_mpi.common.console import Lenient, say, tell
from fedkd_mpi.config import sweep_file
from fedkd_mpi.errors import UserError, plain
from fedkd_mpi.privacy import protocols
from fedkd_mpi.report import (
    baseline,
    client_table,
    command_line,
    energy,
    exact,
    links,
    messages,
    names,
    network,
    pareto,
    published,
    runs,
    secure,
    sheets,
    tables,
)
from fedkd_mpi.report.runs import Target

SILENT_SECONDS = 1.0  # of reading, after which a terminal shows how far it has come


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 if no log could be read or an argument is invalid."""
    chosen = command_line.arguments(argv)
    try:
        return report(chosen)
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 0


def report(chosen: argparse.Namespace) -> int:
    """Write the requested output; raises UserError."""
    paths = _expand(chosen.logs)
    if chosen.follow:
        from fedkd_mpi.report.follow import follow

        if len(paths) != 1:
            raise UserError("--follow shows one log: name a single log")
        follow(paths[0])
        return 0
    others = sweep_file.published(chosen.published) if chosen.published else None
    target, kinds = Target(chosen.target, chosen.score, chosen.metric), command_line.kinds(chosen)
    profiles = [links.find(name) for name in chosen.network]
    thresholds = energy.thresholds(chosen.energy) if chosen.energy else []
    given = protocols.parse(chosen.protocol, "--protocol") if chosen.protocol else protocols.Parameters()
    if chosen.protocol and not chosen.privacy:
        raise UserError("--protocol sets parameters of --privacy: give that too")
    if chosen.diff and len(paths) != 2:
        raise UserError(f"--diff compares two logs, not {len(paths)}: name two logs")
    found, problems = runs.load(_watched(paths if chosen.diff else _distinct(paths)), target)
    for problem in problems:
        _complain(problem)
    if not found or (chosen.diff and len(found) < 2):
        return 2
    if chosen.diff:
        from fedkd_mpi.report import difference

        tell(difference.write(found[0], found[1], chosen.format))
        return 0
    whole = tables.Report(runs.groups(found), target)
    keys = command_line.listed("--columns", chosen.columns)
    base = names.find(whole.names, chosen.baseline, "--baseline") if chosen.baseline else None
    differences = [] if base is None else baseline.differences(whole, base)
    replays = [(profile, {run.path: network.replay(run, profile, target) for run in found}) for profile in profiles]
    if chosen.format in ("csv", "json"):
        made = exact.chosen(whole, keys) if keys else exact.rows(whole, replays, thresholds, differences)
        in_order = [made[run.path] | (secure.row(run, given) if chosen.privacy else {}) for run in found]
        more: dict[str, Any] = {}
        if base is not None:
            more |= {"baseline": whole.names[base].id, "differences": _by_id(whole, differences)}
        if others is not None:
            more["published"] = published.rows(whole, others)
        if chosen.clients:
            more["clients"] = {plain(str(run.path)): client_table.rows(run) for run in found}
        if chosen.messages:
            more["messages"] = {plain(str(run.path)): messages.rows(run) for run in found}
        tell(exact.as_csv(in_order) if chosen.format == "csv" else exact.as_json(in_order, problems, more))

    def chosen_sheets(form: str) -> list[sheets.Sheet]:
        if keys:
            made = [whole.sheet("Runs", keys, form)]
        else:
            made = [tables.short(whole)] if form == "latex" else tables.build(whole, form)
        if not keys and form != "latex" and (equal := pareto.sheet(whole, form)) is not None:
            made.insert(2, equal)
        made += [] if others is None else [published.sheet(whole, others, form)]
        made += [client_table.sheet(whole, form)] if chosen.clients else []
        made += [] if base is None else [baseline.sheet(whole, base, differences, form)]
        made += [network.sheet(whole, profile, results, form) for profile, results in replays]
        made += [energy.sheet(whole, thresholds, form)] if thresholds else []
        made += [secure.sheet(whole, given, form)] if chosen.privacy else []
        return made + (messages.sheets(whole, form) if chosen.messages else [])

    if chosen.format in sheets.RENDERERS:
        tell("\n\n".join(sheets.RENDERERS[chosen.format](sheet) for sheet in chosen_sheets(chosen.format)))
    if chosen.tensorboard:
        from fedkd_mpi.report import events

        for path in events.write(whole.groups, chosen.tensorboard):
            _progress(str(path))
    if chosen.plot or chosen.html:
        _draw(chosen, whole, kinds, lambda: chosen_sheets("table"), problems)
    return 0


def _draw(
    chosen: argparse.Namespace,
    whole: tables.Report,
    kinds: Sequence[str],
    made: Callable[[], list[sheets.Sheet]],
    problems: Sequence[str],
) -> None:
    """Write plots and page."""
    from fedkd_mpi.report import canvas, drawing, page, plots

    def write_page(pictures: Mapping[str, bytes]) -> None:
        page.write(chosen.html, whole.groups, whole.target, made(), pictures, problems)
        _progress(str(chosen.html))

    if chosen.html:
        page.require(chosen.html)
    if chosen.plot:
        meanwhile = write_page if chosen.html else None
        drawing.save(whole.groups, whole.target, chosen.plot, _progress, kinds=kinds, meanwhile=meanwhile)
    else:
        figures = plots.overview(whole.groups, whole.target)
        write_page({name: canvas.render(figure, "svg") for name, figure in figures.items()})


def _watched(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield paths; on a terminal a line says which log is read, once this has taken a second."""
    stream, began, written = Lenient(), time.monotonic(), False
    watched = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    for number, path in enumerate(paths, 1):
        if watched and time.monotonic() - began > SILENT_SECONDS:
            written = True
            stream.write(f"\r\x1b[Kreading log {number} of {len(paths)}: {plain(path.name, 30)}")
            stream.flush()
        yield path
    if written:
        stream.write("\r\x1b[K")
        stream.flush()


def _by_id(whole: tables.Report, differences: Sequence[Mapping[str, baseline.Difference]]) -> dict[str, Any]:
    return {known.id: baseline.rows(found) for known, found in zip(whole.names, differences, strict=True)}


def _expand(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.h5")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"the folder {path} contains no *.h5")
        found += inside
    return found


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Return the paths without those of a file that came before: it would count as another run."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]


def _progress(line: str) -> None:
    say(line, error=True)


def _complain(line: str) -> int:
    say(f"fedkd_mpi.report: {plain(line)}", error=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
