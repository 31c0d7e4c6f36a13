"""What one task of the demonstration runs: `python -m retinue.demo VERB REPO FOLDER …`. It prints one line."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from retinue.clock import SystemClock
from retinue.demo import files, findings
from retinue.demo.findings import Ages, Count, Found, History, Notes, Python, Secrets
from retinue.demo.folder import Folder
from retinue.demo.git import GitFailed
from retinue.demo.history import ages, history
from retinue.errors import RetinueError

LOOKS: Final[dict[str, Callable[[files.Slice], Any]]] = {
    "count": files.count,
    "secrets": files.secrets,
    "notes": files.notes,
    "python": files.python,
}
MERGES: Final[dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "count": (Count, findings.add_counts),
    "secrets": (Secrets, findings.add_secrets),
    "notes": (Notes, findings.add_notes),
    "python": (Python, findings.add_python),
    "history": (History, findings.add_histories),
    "ages": (Ages, findings.add_ages),
}
MOST_AGED: Final = 40  # notes whose age is looked up, over all shares


def main() -> None:
    """Do one task's work."""
    parser = argparse.ArgumentParser(prog="python -m retinue.demo", description=__doc__)
    parser.add_argument("verb", choices=[*LOOKS, "history", "ages", "merge", "report"])
    parser.add_argument("repo", type=os.fsencode)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--of", choices=MERGES, help="what to merge")
    parser.add_argument("--slice", type=int, default=1, help="which slice, from 1 on")
    parser.add_argument("--slices", type=int, default=1, help="of how many")
    parser.add_argument("--until", type=datetime.fromisoformat, default=datetime.max.replace(tzinfo=UTC))
    parser.add_argument("--head", default="", help="the commit that history ends with")
    parser.add_argument("--skip", type=int, default=0, help="commits after it that are left out")
    parser.add_argument("--most", type=int, default=0, help="commits that are looked at")
    parser.add_argument("--shallow", action="store_true", help="history is cut off")
    try:
        print(_do(parser.parse_args()))  # noqa: T201 - a task's output is what it prints
    except (GitFailed, RetinueError) as error:
        sys.exit(str(error))


def _do(given: argparse.Namespace) -> str:
    folder = Folder(given.folder)
    name = f"{given.verb}-{given.slice}"
    in_time = files.until(given.until, SystemClock().now)
    if given.verb in LOOKS:
        part = LOOKS[given.verb](files.Slice(given.repo, folder.files(given.slice, given.slices), in_time))
        folder.write(name, part)
        found = part.total.lines if isinstance(part, Count) else part.count
        return f"{given.verb}: {found:,} in {part.look.files:,} files"
    if given.verb == "history":
        seconds = max(0.1, (given.until - SystemClock().now()).total_seconds())
        told = history(
            given.repo, given.head, skip=given.skip, most=given.most, shallow=given.shallow, seconds=min(seconds, 600.0)
        )
        folder.write(name, told)
        return f"history: {told.commits:,} commits by {len(told.authors):,} people"
    if given.verb == "ages":
        notes = folder.read("notes", Notes) or Notes()
        chosen = notes.found[:: -(-len(notes.found) // MOST_AGED) or 1][given.slice - 1 :: given.slices]
        aged = ages(given.repo, chosen, in_time, committed=bool(given.head))
        folder.write(name, aged)
        return f"ages: {len(aged.found):,} lines"
    if given.verb == "merge":
        return _merge(folder, given.of, given.slices)
    return _report(folder)


def _merge(folder: Folder, what: str, slices: int) -> str:
    """Add up what the slices found, whichever of them did."""
    kind, add = MERGES[what]
    parts = [folder.read(f"{what}-{number}", kind) for number in range(1, slices + 1)]
    there = [part for part in parts if part is not None]
    if there:
        folder.write(what, add(there))
    return f"merge: {len(there)} of {slices} parts of {what}"


def _report(folder: Folder) -> str:
    """Everything together, as one JSON document."""
    read = folder.read
    found = Found(
        read("count", Count), read("history", History), read("notes", Notes), read("ages", Ages),
        read("secrets", Secrets), read("python", Python),
    )  # fmt: skip
    if found.history is not None:  # of the files only those that people will see
        often = sorted(found.history.files.items(), key=lambda item: (-item[1], item[0]))[: findings.LARGEST]
        found.history.files = dict(often)
    return msgspec.json.encode(found).decode()


main()
