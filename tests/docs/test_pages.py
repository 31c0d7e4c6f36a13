"""The pages for people are true as text: links resolve, generated parts are current, nothing names a machine."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import pages
from pages import PAGES, ROOT, name


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generator", ROOT / "tools" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_are_what_the_code_says_now() -> None:
    stale = [name(path) for path, old, new in generator().pages() if old != new]

    assert stale == [], "run tools/docs.py"


def test_verbs_settings_events_errors_and_planted_bugs_each_have_their_page() -> None:
    found = {part for path in PAGES for part in re.findall(r"<!-- generated: (\w+) -->", path.read_text())}

    assert found == set(generator().PARTS)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_within_the_repository_leads_somewhere(path: Path) -> None:
    broken = []
    for target in pages.LINK.findall(pages.without_blocks(path)):
        if re.match(r"[a-z]+:", target):
            continue
        where, _, anchor = target.partition("#")
        there = (path.parent / where).resolve() if where else path
        if not there.exists() or (anchor and anchor not in pages.anchors(there)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_page_names_somebodys_machine(path: Path) -> None:
    found = re.findall(r"(?<![\w.])/(?:work|tmp|home|root|Users|opt)/\S*", path.read_text())

    assert found == []


@pytest.mark.parametrize(
    ("page", "most"), [("README.md", 120), ("AGENTS.md", 150)], ids=["the readme", "the rules for contributors"]
)
def test_what_everybody_reads_stays_short(page: str, most: int) -> None:
    lines = len((ROOT / page).read_text().splitlines())

    assert lines <= most


def test_a_decision_says_context_decision_cost_and_what_would_change_our_mind_in_forty_lines() -> None:
    parts = ["## Context", "## Decision", "## Cost", "## What would change our mind"]
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    texts = {path.name: path.read_text() for path in decisions}

    assert {file: [part for part in parts if f"\n{part}\n" not in text] for file, text in texts.items()} == {
        file: [] for file in texts
    }
    assert {file: len(text.splitlines()) for file, text in texts.items() if len(text.splitlines()) > 40} == {}
    assert [path.name[:4] for path in decisions] == [f"{number:04}" for number in range(1, len(decisions) + 1)]


def test_a_change_is_named_after_its_issue_and_kind() -> None:
    names = [path.name for path in (ROOT / "changes").iterdir()]

    assert [one for one in names if not re.fullmatch(r"\d+\.(added|changed|fixed|removed)\.md", one)] == []
