"""The children of this process: programs it started, marked, and the orphans of those, which the kernel hands to it."""

import ctypes
import os
import subprocess  # noqa: TID251 - this is the port
import threading  # noqa: TID251 - this is the port
from collections.abc import Callable
from typing import Final

from retinue.node import guardian

# prctl(2)
_SET_TIMERSLACK: Final = 29
_SET_CHILD_SUBREAPER: Final = 36
_GET_CHILD_SUBREAPER: Final = 37


class Children:
    """The children of this process: programs it started, and orphans of those, which the kernel hands to it on Linux.

    Being the child subreaper, this process becomes the parent of whatever a program left behind, daemons with sessions
    of their own included, so one short file (`children`) tells whether anything was left, where a look through all of
    /proc would cost milliseconds per program. To know whose orphan it is, each program is started with a timer slack
    of its own (50 µs, the default, and a few ns): it is inherited across fork and exec, whatever becomes of session
    and environment, and can still be read of a zombie. Children without such a mark belong to other code of this
    process and are never touched, let alone waited for: their exit codes are not ours to take.
    """

    _SLACK: Final = 50_000
    _MARKS: Final = 9_999

    def __init__(self) -> None:
        self.own: set[int] = set()  # started by us and not waited for yet
        self.marks: set[int] = set()  # in use
        self.lock = threading.Lock()  # a program may end before `Popen` has returned in another loop's thread
        self._users = 0
        self._was_subreaper = ctypes.c_int()
        self._last = 0
        self._prctl: Callable[..., int] | None = ctypes.CDLL(None).prctl if guardian.LINUX else None
        self.adopts = False

    def adopt(self) -> None:
        """Begin to take orphans in; counted, so that each `release` takes one back."""
        self._users += 1
        if self._users == 1 and self._prctl is not None:
            self._prctl(_GET_CHILD_SUBREAPER, ctypes.byref(self._was_subreaper), 0, 0, 0)
            listed = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
            self.adopts = self._prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0 and listed

    def release(self) -> None:
        """After the last one orphans go where they went before."""
        self._users -= 1
        if self._users == 0 and self._prctl is not None and not self._was_subreaper.value:
            self._prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def mark(self) -> int:
        """A mark for a program about to be started, free again after `marks.discard`."""
        for _ in range(self._MARKS):
            self._last = self._last % self._MARKS + 1
            if self._last not in self.marks:
                self.marks.add(self._last)
                break
        return self._last

    def popen(self, mark: int, argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a child that carries a mark (0: none)."""
        with self.lock:
            try:
                if mark and self._prctl is not None:
                    self._prctl(_SET_TIMERSLACK, self._SLACK + mark, 0, 0, 0)
                child: subprocess.Popen[bytes] = subprocess.Popen(argv, start_new_session=True, **options)  # type: ignore[call-overload]
            finally:
                if mark and self._prctl is not None:
                    self._prctl(_SET_TIMERSLACK, 0, 0, 0, 0)  # 0 = what this thread began with
            self.own.add(child.pid)
            return child

    def mark_of(self, pid: int) -> int | None:
        """The mark a process inherited; None when it has none of ours, or may not be asked."""
        try:
            mark = int(guardian.read(f"/proc/{pid}/timerslack_ns")) - self._SLACK
        except (OSError, ValueError):
            return None
        return mark if 0 < mark <= self._MARKS else None

    def orphans(self) -> dict[int, int]:
        """Living orphans of our programs and their marks; those that have ended are reaped on the way."""
        alive: dict[int, int] = {}
        if not self.adopts:
            return alive
        me = os.getpid()
        with self.lock:
            try:
                pids = {int(pid) for pid in guardian.read(f"/proc/self/task/{me}/children").split()} - self.own
            except OSError:
                return alive
            for pid in pids:
                mark = self.mark_of(pid)
                if mark is not None and not self.reap(pid):
                    alive[pid] = mark
        return alive

    def reap(self, pid: int) -> bool:
        """Wait for one child that has ended; False when it has not, or is nobody's or another's."""
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return False


CHILDREN: Final = Children()  # one, as the kernel keeps one list of children for the whole process
