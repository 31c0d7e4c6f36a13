"""What a demonstration found, for people and as JSON."""

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retinue.demo.findings import LARGEST, Ages, Count, History, Look, Python, Secrets, Tally
from retinue.demo.git import shown
from retinue.demo.run import Ran

LISTED = 8  # rows of each part


class Report:
    """The readable report of one run. `now` dates what it says is old; `kept` is the data directory with the logs."""

    def __init__(self, console: Console, ran: Ran, kept: Path, now: datetime) -> None:
        self._console = console
        self._ran = ran
        self._kept = kept
        self._now = now

    def print(self) -> None:
        """Print all of it."""
        found = self._ran.found
        self._about()
        if found.count is not None:
            self._count(found.count)
        if found.history is not None:
            self._history(found.history)
        if found.notes is not None:
            self._notes(found.notes.count, found.ages)
        if found.secrets is not None:
            self._secrets(found.secrets)
        if found.python is not None:
            self._python(found.python)
        self._tasks()

    def _about(self) -> None:
        repository = self._ran.repository
        title = Text(shown(repository.path), style="bold")
        if repository.head:
            title.append(f"  {repository.branch or 'detached'} at {repository.head[:10]}", style="dim")
        self._line(title)
        for remark in remarks(self._ran):
            self._line(Text(f"  {remark}", style="yellow"))

    def _count(self, count: Count) -> None:
        total = count.total
        self._head(f"{_n(total.files, 'file')}, {_n(total.lines, 'line')}, {_bytes(total.size)}")
        table = _table("folder", "files", "lines", "")
        most = max((tally.lines for tally in count.folders.values()), default=0) or 1
        for name, tally in _top(count.folders):
            table.add_row(Text(name), f"{tally.files:,}", f"{tally.lines:,}", _bar(tally.lines, most))
        self._rest(table, len(count.folders), "folders")
        kinds = ", ".join(f"{name} {tally.lines:,}" for name, tally in _top(count.kinds) if tally.lines)
        if kinds:
            self._line(Text(f"  lines by suffix: {kinds}", style="dim"))
        if count.largest:
            largest = ", ".join(f"{one.file} {_bytes(one.size)}" for one in count.largest[:4])
            self._line(Text(f"  largest: {largest}", style="dim"))

    def _history(self, history: History) -> None:
        dates = [moment for author in history.authors.values() for moment in (author.first, author.last)]
        span = f", {_day(min(dates))} to {_day(max(dates))}" if dates else ""
        self._head(f"{_n(history.commits, 'commit')} by {_n(len(history.authors), 'author')}{span}")
        table = _table("changed most often", "commits", "", "")
        most = max(history.files.values(), default=1)
        for file, commits in sorted(history.files.items(), key=lambda item: (-item[1], item[0]))[:LARGEST]:
            table.add_row(Text(file), f"{commits:,}", "", _bar(commits, most))
        self._line(table)
        self._line(Text())
        table = _table("author", "commits", "from", "to")
        for name, author in sorted(history.authors.items(), key=lambda item: (-item[1].commits, item[0]))[:LISTED]:
            table.add_row(Text(name), f"{author.commits:,}", _day(author.first), _day(author.last))
        self._rest(table, len(history.authors), "authors")

    def _notes(self, count: int, ages: Ages | None) -> None:
        dated = [note for note in ages.found if note.at is not None] if ages is not None else []
        which = f", {_n(len(dated), 'line')} dated" if dated else ""
        self._head(f"{_n(count, 'TODO or FIXME', 'TODO and FIXME')}{which}" if count else "No TODO and no FIXME")
        table = _table("oldest", "age", "", "")
        for note in dated[:LISTED]:
            age = self._now - datetime.fromtimestamp(note.at or 0, UTC)
            table.add_row(Text(f"{note.file}:{note.line}"), _age(age.days), "", Text(f"{note.text}", style="dim"))
        if dated:
            self._line(table)

    def _secrets(self, secrets: Secrets) -> None:
        self._head(f"{_n(secrets.count, 'possible secret')}" if secrets.count else "Nothing looks like a secret")
        for one in secrets.found[:LISTED]:
            self._line(Text(f"  {one.file}:{one.line}  {one.kind}"))
        if secrets.count > LISTED:
            self._line(Text(f"  and {secrets.count - LISTED:,} more", style="dim"))

    def _python(self, python: Python) -> None:
        if not python.look.files:
            return
        files = _n(python.look.files, "Python file")
        if not python.count:
            self._head(f"{files}: all compile with Python {python.version}")
            return
        self._head(f"{python.count:,} of {files} do not compile with Python {python.version}")
        for one in python.found[:LISTED]:
            self._line(Text(f"  {one.file}:{one.line}  {one.problem}"))
        if python.count > LISTED:
            self._line(Text(f"  and {python.count - LISTED:,} more", style="dim"))

    def _tasks(self) -> None:
        ran = self._ran
        nodes = ", ".join(sorted({attempt.node for task in ran.tasks for attempt in task.attempts}))
        attempts = sum(len(task.attempts) for task in ran.tasks)
        self._line(Text())
        self._line(
            Text(
                f"{_n(len(ran.tasks), 'task')}, {_n(attempts, 'attempt')}, on node {nodes}"
                f" with {_n(ran.workers, 'worker')}:"
                f" {ran.work.total_seconds():.1f} s of work in {ran.took.total_seconds():.1f} s.",
                style="bold",
            )
        )
        for task in ran.failed:
            self._line(Text(f"  {task.name} {task.status}: {task.error} ({task.id})", style="red"))
        where = f"Every task, its output and its events are kept in {self._kept}; remove it when you like."
        self._line(Text(where, style="dim"))
        kept = f"--data-dir {shlex.quote(str(self._kept))}"
        example = (ran.failed or ran.tasks)[0].id
        for command in (f"task list {kept}", f"task log {example} {kept}", f"events {kept}"):
            self._line(Text(f"  retinue {command}", style="dim"))

    def _head(self, text: str) -> None:
        self._line(Text())
        self._line(Text(text, style="bold"))

    def _rest(self, table: Table, there: int, what: str) -> None:
        self._line(table)
        if there > LISTED:
            self._line(Text(f"  and {there - LISTED:,} more {what}", style="dim"))

    def _line(self, what: Text | Table) -> None:
        text = isinstance(what, Text)
        self._console.print(what if text else Padding(what, (0, 0, 0, 2), expand=False), soft_wrap=text)


def remarks(ran: Ran) -> list[str]:
    """What people have to know before they believe the figures."""
    repository, found = ran.repository, ran.found
    said = []
    if not repository.head:
        said.append("no commits yet: only the files are looked at")
    if repository.bare:
        said.append("no work tree here: only the history is looked at")
    elif not repository.files:
        said.append("no files in the work tree")
    if repository.sampled:
        said.append(f"{len(repository.chosen):,} of {repository.files:,} files are looked at, evenly spread")
    if repository.more_commits:
        said.append(f"only the last {repository.commits:,} commits are looked at")
    if repository.shallow:
        said.append("a shallow clone: its history is cut off")
    if repository.changed:
        said.append(f"{_n(repository.changed, 'file')} with uncommitted work, looked at as they are now")
    looks = [part.look for part in (found.count, found.notes, found.secrets, found.python) if part is not None]
    late = max((look.late for look in looks), default=0)
    if late or (found.history is not None and found.history.late) or (found.ages is not None and found.ages.late):
        said.append("some of it was left out to be done within a minute" + (f": {_n(late, 'file')}" if late else ""))
    said += _left_out(found.count.look if found.count is not None else Look())
    if found.missing:
        said.append(f"without the results of {_n(len(found.missing), 'task')}: {', '.join(found.missing[:4])}")
    return said


def _left_out(look: Look) -> list[str]:
    said = []
    if look.too_large:
        said.append(f"{_n(look.too_large, 'file')} over 2 MiB: size counted, content not read")
    if look.unreadable:
        said.append(f"{_n(look.unreadable, 'file')} could not be read")
    return said


def document(ran: Ran, kept: Path) -> dict[str, Any]:
    """The same as one JSON document."""
    repository = ran.repository
    statuses: dict[str, int] = {}
    for task in ran.tasks:
        statuses[task.status] = statuses.get(task.status, 0) + 1
    return {
        "repository": {
            "path": shown(repository.path),
            "head": repository.head or None,
            "branch": repository.branch or None,
            "bare": repository.bare,
            "shallow": repository.shallow,
            "files": repository.files,
            "files_looked_at": len(repository.chosen),
            "commits_looked_at": repository.commits,
            "uncommitted": repository.changed,
        },
        "remarks": remarks(ran),
        "found": _without_paths(ran),
        "tasks": {
            "count": len(ran.tasks),
            "by_status": statuses,
            "failed": [{"id": task.id, "name": task.name, "error": task.error} for task in ran.failed],
        },
        "workers": ran.workers,
        "work_seconds": round(ran.work.total_seconds(), 3),
        "seconds": round(ran.took.total_seconds(), 3),
        "data_dir": str(kept),
    }


def _without_paths(ran: Ran) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(ran.found)
    for note in (found["notes"] or {}).get("found", ()):
        del note["path"]
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    first, *rest = columns
    table.add_column(first, overflow="fold", max_width=60)
    for column in rest:
        table.add_column(column, justify="right" if column in ("files", "lines", "commits", "age") else "left")
    return table


def _top(tallies: dict[str, Tally]) -> Iterable[tuple[str, Tally]]:
    return sorted(tallies.items(), key=lambda item: (-item[1].lines, -item[1].files, item[0]))[:LISTED]


def _bar(value: int, most: int) -> Text:
    return Text("━" * max(1, round(24 * value / most)) if value else "", style="cyan")


def _n(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {plural or f'{noun}s'}"


def _bytes(size: int) -> str:
    for unit, of in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= of:
            return f"{size / of:.1f} {unit}"
    return f"{size} B"


def _day(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return "?"


def _age(days: int) -> str:
    if days < 1:
        return "today"
    if days < 60:
        return _n(days, "day")
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"
