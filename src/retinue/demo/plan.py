"""The plan: which tasks look at a repository, and which of them wait for which. Values only."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from retinue.demo.repository import Repository
from retinue.tasks.model import Priority, TaskSpec

FILES_A_SLICE: Final = 25
COMMITS_A_SLICE: Final = 50
MOST_SLICES: Final = 8
SHARES: Final = 4  # of the notes whose age is looked up
TIMEOUT: Final = 60.0  # seconds, of any task
READING: Final = timedelta(seconds=35)  # for files and history
DATING: Final = timedelta(seconds=15)  # for the age of notes, after that

STAGES: Final = {  # in the order in which people see them
    "count": "count files and lines",
    "python": "compile Python",
    "notes": "find TODO and FIXME",
    "secrets": "look for secrets",
    "history": "read the history",
    "ages": "date TODO and FIXME",
    "report": "add it all up",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One task: its name, its stage, its arguments, and the names of those it waits for."""

    name: str
    stage: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = field(default=())


def plan(repository: Repository, now: datetime) -> Iterator[Step]:
    """Every step, those it waits for before it. Tasks stop reading in time, and say so."""
    merges = []
    until = now + READING
    if repository.chosen:
        slices = _slices(len(repository.chosen), FILES_A_SLICE)
        for verb in ("count", "python", "notes", "secrets"):
            yield from _looks(verb, slices, until)
            yield _merge(verb, slices)
            merges.append(f"merge {verb}")
    if repository.commits:
        slices = _slices(repository.commits, COMMITS_A_SLICE)
        yield from _history(repository, slices, until)
        yield _merge("history", slices)
        merges.append("merge history")
    if repository.chosen and repository.head:
        for share in range(1, SHARES + 1):
            yield Step(
                f"ages {share}/{SHARES}",
                "ages",
                ("ages", f"--slice={share}", f"--slices={SHARES}", f"--head={repository.head}", _until(until + DATING)),
                ("merge notes",),
            )
        yield _merge("ages", SHARES)
        merges.append("merge ages")
    yield Step("report", "report", ("report",), tuple(merges))


@dataclass(frozen=True, slots=True)
class Setting:
    """What all tasks of a run have in common: the repository, the folder they share, what their node must have."""

    repo: str
    folder: str
    requires: list[str]


def spec(step: Step, setting: Setting, ids: dict[str, str], session: str) -> TaskSpec:
    """The step as a task; `ids` has the ids of those it waits for. It runs after them even when one failed."""
    verb, *rest = step.arguments
    return TaskSpec(
        name=step.name,
        description=STAGES[step.stage],
        command=[sys.executable, "-m", "retinue.demo", verb, setting.repo, setting.folder, *rest],
        after=[ids[name] for name in step.after],
        after_policy="any",
        priority=Priority.HIGH if step.stage in ("history", "ages", "notes") else Priority.MEDIUM,
        timeout_seconds=TIMEOUT,
        pass_env=["PYTHONPATH"],
        requires=setting.requires,
        tags={"stage": step.stage},
        session=session,
    )


def _looks(verb: str, slices: int, until: datetime) -> Iterator[Step]:
    for number in range(1, slices + 1):
        yield Step(f"{verb} {number}/{slices}", verb, (verb, f"--slice={number}", f"--slices={slices}", _until(until)))


def _history(repository: Repository, slices: int, until: datetime) -> Iterator[Step]:
    each = -(-repository.commits // slices)
    for number in range(1, slices + 1):
        skip = (number - 1) * each
        arguments = [f"--slice={number}", f"--head={repository.head}", f"--skip={skip}", _until(until)]
        arguments += [f"--most={min(each, repository.commits - skip)}"] + ["--shallow"] * repository.shallow
        yield Step(f"history {number}/{slices}", "history", ("history", *arguments))


def _merge(verb: str, slices: int) -> Step:
    after = tuple(f"{verb} {number}/{slices}" for number in range(1, slices + 1))
    return Step(f"merge {verb}", verb, ("merge", f"--of={verb}", f"--slices={slices}"), after)


def _slices(things: int, each: int) -> int:
    return max(1, min(MOST_SLICES, -(-things // each)))


def _until(until: datetime) -> str:
    return f"--until={until.isoformat()}"
