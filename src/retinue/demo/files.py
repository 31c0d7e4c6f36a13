"""What tasks do with a slice of the files: count, look for secrets, find notes, compile Python. Nothing is run."""

import os
import platform
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import Final

from retinue.demo.findings import (
    LARGEST,
    MOST_LISTED,
    Broken,
    Count,
    Look,
    Note,
    Notes,
    Python,
    Secret,
    Secrets,
    Sized,
    Tally,
)
from retinue.demo.git import line, shown

LARGEST_READ: Final = 2 * 1024 * 1024
NOTE: Final = re.compile(rb"(?:#|//|/\*|\*|--|;|%|<!--)\s*@?(?P<comment>TODO|FIXME)\b|\b(?P<marked>TODO|FIXME)[:(]")
SECRETS: Final = {
    "private key": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----"),
    "AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "GitHub token": re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{60,}"),
    "Slack token": re.compile(rb"\bxox[abeoprs]-[0-9A-Za-z-]{20,}"),
    "Google API key": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b"),
    "Stripe live key": re.compile(rb"\b[rs]k_live_[0-9A-Za-z]{20,}"),
    "API key of a model": re.compile(rb"\bsk-(?:ant-|proj-)[0-9A-Za-z_-]{30,}"),
    "password in a URL": re.compile(rb"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"<>{}$%]{1,60}:[^\s:/@'\"<>{}$%*]{6,80}@[\w.-]{3,}"),
}  # fmt: skip


class Slice:
    """Some of the repository's files, read one by one while there is time."""

    def __init__(self, repo: bytes, names: Sequence[bytes], in_time: Callable[[], bool]) -> None:
        self.repo = repo
        self.names = names
        self.look = Look()
        self._in_time = in_time

    def sizes(self) -> Iterator[tuple[bytes, int]]:
        """Name and size of each regular file; links, folders and what is gone are passed over."""
        for place, name in enumerate(self.names):
            if not self._in_time():
                self.look.late += len(self.names) - place
                return
            try:
                status = os.lstat(os.path.join(self.repo, name))
            except OSError:
                self.look.unreadable += 1
                continue
            if stat.S_ISREG(status.st_mode):
                yield name, status.st_size

    def contents(self, suffix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Name and content of each regular file of at most 2 MiB."""
        for name, size in self.sizes():
            if not name.endswith(suffix):
                continue
            if size > LARGEST_READ:
                self.look.too_large += 1
                continue
            try:
                with open(os.path.join(self.repo, name), "rb") as file:
                    data = file.read(LARGEST_READ)
            except OSError:
                self.look.unreadable += 1
                continue
            self.look.files += 1
            yield name, data


def count(files: Slice) -> Count:
    """Files, lines and bytes, by folder and by kind."""
    found = Count(look=files.look)
    sizes: list[Sized] = []
    for name, size in files.sizes():
        tally = Tally(1, 0, size)
        sizes.append(Sized(size, shown(name)))
        if size > LARGEST_READ:
            files.look.too_large += 1
        else:
            try:
                with open(os.path.join(files.repo, name), "rb") as file:
                    data = file.read(LARGEST_READ)
                files.look.files += 1
                tally.lines = 0 if _binary(data) else data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
            except OSError:
                files.look.unreadable += 1
        found.total.add(tally)
        found.folders.setdefault(_folder(name), Tally()).add(tally)
        found.kinds.setdefault(_kind(name), Tally()).add(tally)
    found.largest = sorted(sizes, reverse=True)[:LARGEST]
    return found


def secrets(files: Slice) -> Secrets:
    """Places that look like secrets; what they say is not repeated."""
    found = Secrets(look=files.look)
    for name, data in files.contents():
        for kind, pattern in SECRETS.items():
            for match in pattern.finditer(data):
                found.count += 1
                if len(found.found) < MOST_LISTED:
                    found.found.append(Secret(shown(name), data.count(b"\n", 0, match.start()) + 1, kind))
    return found


def notes(files: Slice) -> Notes:
    """Lines of text files with a TODO or FIXME that begins a comment, or has a colon or a parenthesis behind it."""
    found = Notes(look=files.look)
    for name, data in files.contents():
        if _binary(data) or NOTE.search(data) is None:
            continue
        for number, text in enumerate(data.split(b"\n"), 1):
            match = NOTE.search(text)
            if match is None:
                continue
            found.count += 1
            if len(found.found) < MOST_LISTED:
                word = "comment" if match["comment"] else "marked"
                rest = line(text[match.start(word) :])
                found.found.append(Note(name, shown(name), number, match[word].decode(), rest))
    return found


def python(files: Slice) -> Python:
    """Python files that this Python cannot compile. They are compiled, never run."""
    found = Python(look=files.look, version=platform.python_version())
    warnings.simplefilter("ignore")
    for name, data in files.contents(b".py"):
        try:
            compile(data, "file", "exec", dont_inherit=True)
        except SyntaxError as error:
            problem, at = error.msg or "it is no Python", error.lineno or 0
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            problem, at = str(error) or type(error).__name__, 0
        else:
            continue
        found.count += 1
        if len(found.found) < MOST_LISTED:
            found.found.append(Broken(shown(name), at, line(problem.encode())))
    return found


def until(at: datetime, now: Callable[[], datetime]) -> Callable[[], bool]:
    """Whether there is still time before `at`."""
    return lambda: now() < at


def _binary(data: bytes) -> bool:
    return b"\0" in data[:8192]


def _folder(name: bytes) -> str:
    """The first two folders a file is in."""
    parts = name.split(b"/")[:-1][:2]
    return shown(b"/".join(parts)) if parts else "."


def _kind(name: bytes) -> str:
    return PurePosixPath(shown(name).rstrip('"')).suffix.lower() or "no suffix"
