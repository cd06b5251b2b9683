"""Names of runs: the keys in which their configurations differ, and an id that tables, legends and files share."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd_mpi.config.methods import averages
from fedkd_mpi.errors import UserError, plain, shown
from fedkd_mpi.report.runs import LONGEST, Run

LONGEST_ID = 40
ABSENT = "-"  # of a key that a run does not have, or that is null
FIRST = ("method", "compression.codec", "averaging.network")  # the columns that people look for first
OWN = ("name", "seed")  # keys that are no setting: the id and the list of seeds show them


@dataclass(frozen=True)
class Name:
    """The name of one group of runs, which differ in the seed alone.

    `settings` maps every column to the run's value as text; all groups of a report have the same columns.
    """

    id: str  # unique in the report, and a file name
    given: str  # the name in the configuration
    settings: Mapping[str, str]
    every: Mapping[str, str]  # all settings of the first log, by dotted key
    seeds: tuple[int, ...]
    logs: tuple[str, ...]  # paths, in the order of seeds

    @property
    def text(self) -> str:
        """The settings that distinguish the run, for example "codec=svd, weighting=uniform"; "" if nothing differs."""
        return ", ".join(self._parts())

    def label(self, longest: int = 80) -> str:
        """Return id, settings and the number of seeds, in about `longest` characters: "digits-1: codec=svd (3 seeds)".

        Settings that do not fit are left out, and "…" says so; the table of the same id shows them.
        """
        kept: list[str] = []
        for part in self._parts():
            if kept and len(", ".join([self.id, *kept, part])) > longest:
                kept.append("…")
                break
            kept.append(plain(part, longest))
        seeds = f" ({len(self.seeds)} seeds)" if len(self.seeds) > 1 else ""
        return f"{self.id}: {', '.join(kept)}{seeds}" if kept else f"{self.id}{seeds}"

    def _parts(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.settings.items() if value != ABSENT]


def name(groups: Sequence[Sequence[Run]]) -> list[Name]:
    """Return the names of groups of runs, in their order.

    The columns of settings are the keys in which the groups differ; method and codec if there is only one group. Groups
    of equal settings are distinguished by the number of processes and the version of the package, if those differ.
    """
    firsts = [group[0] for group in groups]
    given = [run.name for run in firsts]
    every = [settings(run) for run in firsts]
    columns = differing(every) if len(groups) > 1 else [key for key in FIRST[:2] if key in every[0]]
    short = shortened({key for found in every for key in found})
    facts = [{short[key]: found.get(key, ABSENT) for key in columns} for found in every]
    if len({tuple(fact.values()) for fact in facts}) < len(facts):
        for key, values in _facts(firsts).items():
            if len(set(values)) > 1:
                facts = [fact | {key: value} for fact, value in zip(facts, values, strict=True)]
    return [
        Name(
            ident,
            own,
            fact,
            whole,
            tuple(int(run.log.attrs["seed"]) for run in group),
            tuple(plain(str(run.path)) for run in group),
        )
        for ident, own, fact, whole, group in zip(_ids(given), given, facts, every, groups, strict=True)
    ]


def find(names: Sequence[Name], wanted: str, option: str) -> int:
    """Return the index of the group with an id or, where no id is the same, a given name, settings or a path of a log.

    Raises UserError that lists the ids if there is none, or more than one.
    """
    found = [index for index, known in enumerate(names) if wanted == known.id]
    found = found or [
        index for index, known in enumerate(names) if wanted in (known.given, known.text, *known.logs) and wanted
    ]
    if len(found) == 1:
        return found[0]
    problem = "means several runs" if found else "is no run of this report"
    ids = ", ".join(known.id for known in names[:20]) + (", …" if len(names) > 20 else "")
    raise UserError(f"{option} {shown(wanted)} {problem}: the ids of the runs are {ids}")


def settings(run: Run) -> dict[str, str]:
    """Return the configuration of a run as dotted key -> value as one line of text, without name and seed.

    Keys that the run does not use are left out: those of `averaging` for methods that do not average, and those of
    `compression` for runs in which nothing passes a codec.
    """
    flat = {key: value for key, value in flattened(run.config).items() if key not in OWN}
    unused = [] if averages(str(flat.get("method"))) else ["averaging."]
    unused += [] if run.compresses else ["compression."]
    return {
        plain(key, LONGEST): value_text(value)
        for key, value in flat.items()
        if not key.startswith(tuple(unused)) and value is not None
    }


def flattened(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the leaves of a nested configuration by dotted key, in its order; lists are leaves."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flattened(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found


def value_text(value: Any) -> str:
    """Return a value of a configuration as it is written in YAML, in one line of at most LONGEST characters."""
    if value is None:
        return ABSENT
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), LONGEST)


def differing(found: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values are not the same in all mappings: first those of FIRST, then in their order."""
    keys = list(dict.fromkeys([*FIRST, *(key for mapping in found for key in mapping)]))
    return [key for key in keys if len({mapping.get(key, ABSENT) for mapping in found}) > 1]


def shortened(keys: set[str]) -> dict[str, str]:
    """Return each dotted key's last part where no other key or section has it, and else the whole key."""
    lasts = Counter(key.rpartition(".")[2] for key in keys)
    sections = {key.partition(".")[0] for key in keys if "." in key}
    return {key: last if lasts[last := key.rpartition(".")[2]] == 1 and last not in sections else key for key in keys}


def _facts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return what may differ between runs of one configuration."""
    return {
        "processes": [str(run.log.attrs["world_size"]) for run in runs],
        "version": [plain(str(run.log.attrs["package_version"]), LONGEST) for run in runs],
    }


def _ids(given: Sequence[str]) -> list[str]:
    """Return unique file names: the given names, numbered in their order where several are the same."""
    stems = [_stem(own) for own in given]
    total = Counter(stem.lower() for stem in stems)
    # A file system may not distinguish case, and a name that was given may look like a numbered one.
    taken = {stem.lower() for stem in stems if total[stem.lower()] == 1}
    numbers: Counter[str] = Counter()
    ids = []
    for stem in stems:
        ident = stem
        while total[stem.lower()] > 1:
            numbers[stem.lower()] += 1
            ident = f"{stem}-{numbers[stem.lower()]}"
            if ident.lower() not in taken:
                taken.add(ident.lower())
                break
        ids.append(ident)
    return ids


def _stem(own: str) -> str:
    """Return a name as a file name: letters and digits of any script, ".", "_" and "-"."""
    whole = unicodedata.normalize("NFKC", own)
    return re.sub(r"[^\w.]+", "-", whole).strip("-").lstrip(".-")[:LONGEST_ID].rstrip("-.") or "run"
