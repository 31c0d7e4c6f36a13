"""The repository that is looked at: where it is, what there is of it, and how much of that is looked at."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from retinue.demo.git import GitFailed, git
from retinue.errors import Invalid

MOST_FILES: Final = 4000
MOST_COMMITS: Final = 2000
PATIENCE: Final = 15.0  # seconds that git may take to say what there is


@dataclass(frozen=True, slots=True)
class Repository:
    """What the plan is made of; nothing in it is read yet."""

    path: bytes
    head: str = ""  # the commit at the end of its history; empty: there is none yet
    branch: str = ""
    bare: bool = False
    shallow: bool = False
    changed: int = 0  # files with uncommitted work
    files: int = 0
    chosen: tuple[bytes, ...] = ()  # the files that are looked at
    commits: int = 0  # that are looked at
    more_commits: bool = False

    @property
    def sampled(self) -> bool:
        """Whether some files are left out as there are so many."""
        return len(self.chosen) < self.files


def find(path: Path) -> Repository:
    """The repository around a folder.

    Raises:
        Invalid: there is none, or git cannot or may not read it; the sentence says what to do.
    """
    where = os.fsencode(path)
    if not path.is_dir():
        raise Invalid(f"{path} is no folder; name a git repository: retinue demo PATH")
    root, bare = _root(where, path)
    head = _said(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    listed = [] if bare else _files(root)
    commits = _count(root, head) if head else 0
    return Repository(
        path=root,
        head=head,
        branch=_said(root, "symbolic-ref", "--short", "--quiet", "HEAD"),
        bare=bare,
        shallow=_said(root, "rev-parse", "--is-shallow-repository") == "true",
        changed=0 if bare else _changed(root),
        files=len(listed),
        chosen=tuple(spread(listed, MOST_FILES)),
        commits=min(commits, MOST_COMMITS),
        more_commits=commits > MOST_COMMITS,
    )


def spread(names: list[bytes], most: int) -> list[bytes]:
    """At most this many of them, evenly spread."""
    if len(names) <= most:
        return names
    return [names[place * len(names) // most] for place in range(most)]


def _root(where: bytes, path: Path) -> tuple[bytes, bool]:
    """The folder git works in, and whether it has no work tree."""
    try:
        return git(where, "rev-parse", "--show-toplevel", timeout=PATIENCE).removesuffix(b"\n"), False
    except GitFailed as error:
        if "dubious ownership" in str(error):
            raise Invalid(
                f"{path.resolve()} belongs to another user and git does not read it;"
                f" if you trust it: git config --global --add safe.directory {path.resolve()}"
            ) from None
        try:
            return git(where, "rev-parse", "--absolute-git-dir", timeout=PATIENCE).removesuffix(b"\n"), True
        except GitFailed:
            raise Invalid(f"{path.resolve()} is in no git repository; name one: retinue demo PATH") from None


def _said(root: bytes, *arguments: str) -> str:
    """What git says, in one line; nothing when it fails."""
    try:
        return git(root, *arguments, timeout=PATIENCE).decode(errors="replace").strip()
    except GitFailed:
        return ""


def _files(root: bytes) -> list[bytes]:
    """Tracked files and new ones that are not ignored; tracked ones alone where looking takes too long."""
    listed = ["ls-files", "-z", "--cached"]
    try:
        output = git(root, *listed, "--others", "--exclude-standard", timeout=PATIENCE)
    except GitFailed:
        try:
            output = git(root, *listed, timeout=PATIENCE)
        except GitFailed as error:
            raise Invalid(f"git cannot list the files of this repository: {error}") from None
    return sorted({name for name in output.split(b"\0") if name})


def _changed(root: bytes) -> int:
    try:
        output = git(root, "status", "--porcelain=v1", "-z", "--no-renames", timeout=PATIENCE)
    except GitFailed:
        return 0
    return output.count(b"\0")


def _count(root: bytes, head: str) -> int:
    """How many commits there are, merges left out; more than `MOST_COMMITS` are not counted."""
    text = _said(root, "rev-list", "--count", "--no-merges", f"--max-count={MOST_COMMITS + 1}", head, "--")
    return int(text) if text.isdigit() else 0
