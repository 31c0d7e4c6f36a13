"""The system's processes: start a program in a session of its own, stream its output, leave nothing of it behind."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess  # noqa: TID251 - this is the port
from pathlib import Path
from typing import Final

from retinue.node import guardian
from retinue.node.processes import Launch, Running
from retinue.node.runners.children import CHILDREN
from retinue.node.runners.guard import Guard
from retinue.node.runners.program import Program, refused

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0


class SystemProcesses:
    """`Processes` of this machine.

    Every program gets `RETINUE_BOOT` with this node's boot id into its environment, besides what `Launch.env` holds,
    so that the guardian recognizes it; `Launch.env["RETINUE_ATTEMPT"]`, where present, is how `kill` recognizes what
    belongs to the program, so no two programs may share one at a time.
    """

    def __init__(self, boot_id: str) -> None:
        self._boot = boot_id
        self._running: set[Program] = set()
        self._guardian: Guard | None = None
        self._look: asyncio.TimerHandle | None = None

    def guard(self) -> Guard:
        """Start the guardian, once, and take in orphans from now on; `start` does. For a node that starts other things
        marked with its boot id first."""
        if self._guardian is None:
            CHILDREN.adopt()
            self._guardian = Guard(self._boot)
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_after)
        return self._guardian

    async def start(self, launch: Launch) -> Running:
        loop = asyncio.get_running_loop()
        guard = self.guard()
        try:
            launch.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise refused(launch, error) from error
        attempt = launch.env.get("RETINUE_ATTEMPT")
        program = Program(loop, launch, {**launch.env, guardian.BOOT: self._boot}, attempt, self._ended)
        self._running.add(program)
        guard.started(program.pid, attempt or "-")
        return program

    async def discard(self, folder: Path) -> None:
        try:
            os.rmdir(folder)  # most commands leave it empty, which needs no thread
        except FileNotFoundError:
            pass
        except OSError:
            await asyncio.get_running_loop().run_in_executor(None, _remove, folder)

    async def close(self) -> None:
        for program in list(self._running):
            await program.kill()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._guardian is not None:
            CHILDREN.orphans()
            guard, self._guardian = self._guardian, None
            await asyncio.get_running_loop().run_in_executor(None, guard.close)
            CHILDREN.release()

    def _ended(self, program: Program) -> None:
        self._running.discard(program)
        if self._guardian is not None:
            self._guardian.ended(program.pid)

    def _look_after(self) -> None:
        """Reap orphans of programs and hosts that have ended, and end those whose program or host is gone."""
        orphans = CHILDREN.orphans()
        for pid, mark in orphans.items():
            if mark not in CHILDREN.marks:
                try:
                    os.kill(pid, signal.SIGKILL)  # a child not waited for: its number cannot be another's
                except PermissionError:
                    continue
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_after)


def _remove(folder: Path) -> None:
    """Remove a tree, whatever a command made of it; links are removed, not followed."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder)
    except (OSError, RecursionError):
        # Folders without write permission (Go's module cache), or deeper than Python can go.
        if not folder.is_symlink():
            for argv in (["chmod", "-R", "u+rwx", "--", str(folder)], ["rm", "-rf", "--", str(folder)]):
                subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
                )
        if folder.exists():
            log.warning("the work folder %s could not be removed; remove it by hand", folder)
