"""A child of this process, from its start until it was waited for: its mark, its exit code, and the orphans it leaves.

Not asyncio's own subprocesses: those start a thread for each one before Python 3.12, report the end only once the
pipes have ended too (a daemon may hold them open for ever), and wait for the child at once, so that its number may
already be another's while we look for what it left.
"""

import asyncio
import logging
import os
import subprocess  # noqa: TID251 - this is the port
import threading  # noqa: TID251 - this is the port
from collections.abc import Sequence

from retinue.node import guardian
from retinue.node.runners.children import CHILDREN

log = logging.getLogger(__name__)


class Child:
    """A child in a session of its own. When it has ended it stays a zombie until `reap`, and its mark is taken until
    `forget`: both have to be called."""

    def __init__(self, loop: asyncio.AbstractEventLoop, argv: Sequence[str], **options: object) -> None:
        """Start it; `options` are `Popen`'s.

        Raises:
            OSError, ValueError: it cannot be started.
        """
        self._loop = loop
        self.mark = CHILDREN.mark()
        try:
            self._popen: subprocess.Popen[bytes] = CHILDREN.popen(self.mark, list(argv), **options)
        except BaseException:
            self.forget()
            raise
        self.pid = self._popen.pid
        self.reaped = False
        self.exit: asyncio.Future[int] = loop.create_future()  # its exit code, -N when signal N ended it
        self._watch()

    def reap(self) -> None:
        """Wait for it, as it has ended: from now on its number may be another's."""
        with CHILDREN.lock:
            CHILDREN.reap(self.pid)
            CHILDREN.own.discard(self.pid)
        self.reaped = True
        self._popen.returncode = self.exit.result()  # `Popen` would warn of a child nobody waited for

    def forget(self) -> None:
        """Nothing of it is left, so its mark may be given to another."""
        CHILDREN.marks.discard(self.mark)

    def orphans(self, table: dict[int, guardian.Kin]) -> set[int]:
        """Those in this table that were handed to us and carry its mark, itself included while it lives."""
        me = os.getpid()
        return {pid for pid, (parent, _, _) in table.items() if parent == me and CHILDREN.mark_of(pid) == self.mark}

    def _watch(self) -> None:
        """Have `exit` set when it ends, by the kernel's own word where that can be had, else by a thread."""
        try:
            exit_file = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._await_exit, daemon=True).start()
        else:
            self._loop.add_reader(exit_file, self._on_exit, exit_file)

    def _on_exit(self, exit_file: int) -> None:
        self._loop.remove_reader(exit_file)
        os.close(exit_file)
        self._set_exit(self._exit_code())

    def _await_exit(self) -> None:
        code = self._exit_code()
        try:
            self._loop.call_soon_threadsafe(self._set_exit, code)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _exit_code(self) -> int:
        try:
            if hasattr(os, "waitid"):
                # Not waited for yet: as long as it is a zombie, neither its number nor its group's can be another's.
                if (how := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)) is not None:
                    return how.si_status if how.si_code == os.CLD_EXITED else -how.si_status
            else:
                _, status = os.waitpid(self.pid, 0)
                self.reaped = True
                return os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            log.exception("another part of this process took the exit code of process %s", self.pid)
        return 255

    def _set_exit(self, code: int) -> None:
        if not self.exit.done():
            self.exit.set_result(code)
