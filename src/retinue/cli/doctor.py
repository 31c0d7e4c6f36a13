"""`retinue doctor`: checks this machine and says what is weak."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import typer

from retinue.cli.front import Front

if TYPE_CHECKING:
    from retinue.client.client import Fleet

OLDEST: Final = (3, 11)
LITTLE: Final = 1 << 30  # bytes of free disk that call for attention
NEEDED: Final = 64 << 20


class Finding(NamedTuple):
    """One thing that was looked at: ok, weak (works, but), or broken."""

    what: str
    state: str
    says: str


def command(context: typer.Context) -> None:
    """Check this machine: Python, git, the configuration, the data directory, the store, the disk.

    Exit code 1 when something is broken; what is only weak is said.

    Examples:

        retinue doctor
    """
    front: Front = context.obj
    found = list(_findings(front))
    if front.json:
        front.document({"findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            print(f"{finding.state:<6}  {finding.what:<14}  {finding.says}")
    raise typer.Exit(1 if any(finding.state == "broken" for finding in found) else 0)


def _findings(front: Front) -> Iterator[Finding]:
    from retinue.errors import ConfigInvalid

    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("python", "ok" if sys.version_info >= OLDEST else "broken", f"{version} at {sys.executable}")
    git = shutil.which("git")
    yield Finding("git", "ok" if git else "weak", git or "not found: tasks with a repository will not run here")
    yield Finding("system", *_system())
    try:
        loaded = front.loaded
    except ConfigInvalid as error:
        yield Finding("configuration", "broken", error.message)
        return
    files = ", ".join(str(path) for path in loaded.files) or "no file, only defaults"
    unused = f"; not used yet: {', '.join(loaded.unused)}" if loaded.unused else ""
    yield Finding("configuration", "ok", files + unused)
    yield from _data(front)


def _system() -> tuple[str, str]:
    if sys.platform == "linux":
        return "ok", f"Linux {os.uname().release}"
    if sys.platform == "darwin":
        return "weak", "macOS: a program that hides from its group is only ended with its node's guardian"
    return "weak", f"{sys.platform} is not tested"


def _data(front: Front) -> Iterator[Finding]:
    from retinue.coordinator.datadir import holder

    folder = front.data_dir
    try:
        mode = folder.stat().st_mode & 0o777
    except FileNotFoundError:
        yield Finding("data", "ok", f"{folder} is not there yet; the first run makes it")
    except OSError as error:
        yield Finding("data", "broken", f"{folder} cannot be used: {error.strerror}")
        return
    else:
        usable = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
        state = "broken" if not usable else "ok" if mode == 0o700 else "weak"
        trouble = "" if usable else ", and you may not use it"
        yield Finding("data", state, f"{folder}, mode {mode:04o}{trouble}{'' if mode == 0o700 else ' (0700 is right)'}")
        held = holder(folder)
        if held is not None:
            yield Finding("in use", "ok", f"by process {held['pid']} ({held.get('command', 'unknown')})")
        yield _store(front, held=held is not None)
    yield _disk(folder)


def _store(front: Front, *, held: bool) -> Finding:
    """Whether it can be used, and makes commits durable: proved by opening it, where nobody else has it open."""
    from retinue.errors import RetinueError

    async def reading(fleet: "Fleet") -> str:
        status = await fleet.status()
        return f"{status['store']}: {sum(status['tasks'].values())} tasks"

    try:
        if held or not (front.data_dir / "retinue.db").exists():
            return Finding("store", "ok", front.look(reading))
        return Finding("store", "ok", f"{front.steer(reading)}; every commit is synced to the disk")
    except RetinueError as error:
        return Finding("store", "broken", error.message)


def _disk(folder: Path) -> Finding:
    there = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(there).free
    state = "broken" if free < NEEDED else "weak" if free < LITTLE else "ok"
    return Finding("disk", state, f"{free / (1 << 30):.1f} GiB free at {there}")
