"""Findings as values: what a task writes about its slice, and what slices add up to. No I/O."""

import heapq
from collections.abc import Iterable
from typing import Final

import msgspec

LARGEST: Final = 8
MOST_LISTED: Final = 200  # of one kind of finding, in any slice


class Tally(msgspec.Struct):
    """Files, lines and bytes of something."""

    files: int = 0
    lines: int = 0
    size: int = 0

    def add(self, other: "Tally") -> None:
        """Count what the other counted."""
        self.files += other.files
        self.lines += other.lines
        self.size += other.size


class Look(msgspec.Struct):
    """How much of its slice a task looked at."""

    files: int = 0
    too_large: int = 0
    unreadable: int = 0  # or gone since the list was made
    late: int = 0  # left out as time was up

    def add(self, other: "Look") -> None:
        """Count what the other counted."""
        self.files += other.files
        self.too_large += other.too_large
        self.unreadable += other.unreadable
        self.late += other.late


class Sized(msgspec.Struct, frozen=True, order=True):
    """A file and its size in bytes."""

    size: int
    file: str


class Count(msgspec.Struct):
    """Files and lines: in all, by folder, by kind of file."""

    look: Look = msgspec.field(default_factory=Look)
    total: Tally = msgspec.field(default_factory=Tally)
    folders: dict[str, Tally] = {}
    kinds: dict[str, Tally] = {}
    largest: list[Sized] = []


class Secret(msgspec.Struct, frozen=True, order=True):
    """A place that looks like a secret. What it says is kept nowhere."""

    file: str
    line: int
    kind: str


class Secrets(msgspec.Struct):
    """Places that look like secrets."""

    look: Look = msgspec.field(default_factory=Look)
    count: int = 0
    found: list[Secret] = []


class Note(msgspec.Struct, frozen=True):
    """A TODO or FIXME; `path` is the file's name as the disk has it."""

    path: bytes
    file: str
    line: int
    word: str
    text: str


class Notes(msgspec.Struct):
    """TODOs and FIXMEs."""

    look: Look = msgspec.field(default_factory=Look)
    count: int = 0
    found: list[Note] = []


class Broken(msgspec.Struct, frozen=True, order=True):
    """A Python file that does not compile."""

    file: str
    line: int
    problem: str


class Python(msgspec.Struct):
    """Python files, compiled and not run."""

    look: Look = msgspec.field(default_factory=Look)
    version: str = ""
    count: int = 0
    found: list[Broken] = []


class Author(msgspec.Struct):
    """Somebody's commits, with the first and the last as Unix times."""

    commits: int
    first: int
    last: int


class History(msgspec.Struct):
    """Commits: who made them, and how often each file was in one."""

    commits: int = 0
    late: bool = False
    files: dict[str, int] = {}
    authors: dict[str, Author] = {}


class Aged(msgspec.Struct, frozen=True):
    """A note with who wrote its line and when (a Unix time); None when it is not committed or git cannot say."""

    file: str
    line: int
    word: str
    text: str
    author: str
    at: int | None


class Ages(msgspec.Struct):
    """Notes by age."""

    asked: int = 0
    late: int = 0
    found: list[Aged] = []


class Found(msgspec.Struct):
    """Everything together; a part is None when no task of its kind could be merged."""

    count: Count | None = None
    history: History | None = None
    notes: Notes | None = None
    ages: Ages | None = None
    secrets: Secrets | None = None
    python: Python | None = None
    missing: list[str] = []  # the names of tasks whose part is not there


def add_counts(parts: Iterable[Count]) -> Count:
    """All slices as one."""
    whole = Count()
    for part in parts:
        whole.look.add(part.look)
        whole.total.add(part.total)
        for name, tally in part.folders.items():
            whole.folders.setdefault(name, Tally()).add(tally)
        for name, tally in part.kinds.items():
            whole.kinds.setdefault(name, Tally()).add(tally)
        whole.largest = heapq.nlargest(LARGEST, [*whole.largest, *part.largest])
    return whole


def add_secrets(parts: Iterable[Secrets]) -> Secrets:
    """All slices as one."""
    whole = Secrets()
    for part in parts:
        whole.look.add(part.look)
        whole.count += part.count
        whole.found = sorted([*whole.found, *part.found])[:MOST_LISTED]
    return whole


def add_notes(parts: Iterable[Notes]) -> Notes:
    """All slices as one."""
    whole = Notes()
    for part in parts:
        whole.look.add(part.look)
        whole.count += part.count
        whole.found += part.found
    return whole


def add_python(parts: Iterable[Python]) -> Python:
    """All slices as one."""
    whole = Python()
    for part in parts:
        whole.look.add(part.look)
        whole.version = part.version
        whole.count += part.count
        whole.found = sorted([*whole.found, *part.found])[:MOST_LISTED]
    return whole


def add_histories(parts: Iterable[History]) -> History:
    """All slices as one."""
    whole = History()
    for part in parts:
        whole.commits += part.commits
        whole.late = whole.late or part.late
        for file, commits in part.files.items():
            whole.files[file] = whole.files.get(file, 0) + commits
        for name, author in part.authors.items():
            known = whole.authors.get(name)
            if known is None:
                whole.authors[name] = author
            else:
                known.commits += author.commits
                known.first = min(known.first, author.first)
                known.last = max(known.last, author.last)
    return whole


def add_ages(parts: Iterable[Ages]) -> Ages:
    """All shares as one, the oldest first; what has no date comes last."""
    whole = Ages()
    for part in parts:
        whole.asked += part.asked
        whole.late += part.late
        whole.found += part.found
    whole.found.sort(key=lambda note: (note.at is None, note.at or 0, note.file, note.line))
    return whole
