"""README, CONTRIBUTING, CHANGELOG, docs/: what they link to or name exists, and the words are those of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mpirun import REPOSITORY

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
PACKAGE = REPOSITORY / "fedkd_mpi"
SOURCES = sorted(file for name in ("fedkd_mpi", "benchmarks", "tests") for file in (REPOSITORY / name).rglob("*.py"))
WORDS = "crews?|shelf|shelves|doorbells?|rings?|naps?|napping|lays?|laying|brings?|bringing|brought|workbench"
DIALECT = rf"(?i)(?<![a-z])(?:{WORDS}|last words)(?![a-z])"  # in names too, between underscores


def prose(page: Path) -> str:
    """Return a page without its blocks and spans of code."""
    return re.sub(r"(?s)```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MkDocs both give a page's headings."""
    titles = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8")))
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path):
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose(page))
    for target in (first or second for first, second in targets):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.is_file(), f"{page.name}: {target} is no file"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} is no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_private_dialect(page: Path):
    assert not re.findall(DIALECT, prose(page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path):
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8")))
    assert not {name for name in named if not any((root / name).is_file() for root in (REPOSITORY, PACKAGE))}


def test_no_program_has_a_private_dialect():
    texts = {file: f"{file.stem}\n{file.read_text(encoding='utf-8')}" for file in SOURCES if file != Path(__file__)}
    found = {str(file.relative_to(REPOSITORY)): re.findall(DIALECT, text) for file, text in texts.items()}
    assert not {file: words for file, words in found.items() if words}
