"""A program of this machine, from its start until nothing of it is left: its end, its output, its input."""

import asyncio
import errno
import fcntl
import logging
import os
import select
import signal
import struct
import subprocess  # noqa: TID251 - this is the port
import termios
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from retinue.errors import CommandNotFound
from retinue.node import guardian
from retinue.node.processes import Launch
from retinue.node.runners.child import Child
from retinue.node.runners.children import CHILDREN

log = logging.getLogger(__name__)

CHUNK: Final = 64 * 1024
_IN_A_ROW: Final = 4  # chunks read of a flooding program before everybody else gets a turn

# The node, not the command, lacks something: worth another try, here later or elsewhere now.
_EXHAUSTED: Final = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO}
)


class Program:
    """A started program (`Running`). `kill` has to be called in every case: it frees what the program took here.

    Its pipes are read without asyncio's streams, which read ahead of their consumer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launch: Launch,
        env: dict[str, str],
        attempt: str | None,
        ended: "Callable[[Program], None]",
    ) -> None:
        self._loop = loop
        self._marker = f"RETINUE_ATTEMPT={attempt}" if attempt else None
        self._ended = ended
        self._end: asyncio.Task[None] | None = None
        self._outputs: dict[int, str] = {}
        self._rest: deque[tuple[str, bytes]] = deque()  # what stood in the pipes when everything was over
        self._in_a_row = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._stdin: int | None = None
        theirs: list[int] = []
        try:
            for stream in ("stdout", "stderr"):
                mine, their = os.pipe()
                os.set_blocking(mine, False)
                self._outputs[mine] = stream
                theirs.append(their)
            if launch.stdin:
                their, self._stdin = os.pipe()
                os.set_blocking(self._stdin, False)
                theirs.append(their)
            self._child = Child(
                loop,
                launch.argv,
                stdin=theirs[2] if launch.stdin else subprocess.DEVNULL,
                stdout=theirs[0],
                stderr=theirs[1],
                cwd=launch.folder,
                env=env,
            )
        except BaseException as error:
            self._free()
            if isinstance(error, OSError | ValueError):
                raise refused(launch, error) from error
            raise
        finally:
            for file in theirs:
                os.close(file)
        self.pid = self._child.pid
        self._group: int | None = self.pid

    # ------------------------------------------------------------------ its end

    async def wait(self) -> int:
        return await asyncio.shield(self._child.exit)

    def terminate(self) -> None:
        if self._group is not None and not self._child.reaped:
            try:
                os.killpg(self._group, signal.SIGTERM)
            except (ProcessLookupError, PermissionError):
                pass

    async def kill(self) -> None:
        # A task of its own: whoever calls may be cancelled, and the work is still done, once.
        if self._end is None:
            self._end = self._loop.create_task(self._leave_nothing())
        await asyncio.shield(self._end)

    async def _leave_nothing(self) -> None:
        left: set[int] = set()
        try:
            stopped = not self._child.exit.done()
            if stopped:
                left = await self._end_family()
            if self.pid not in left:
                await self._child.exit
                self._child.reap()
            if not stopped and self._left_something():
                left = await self._end_family()
        finally:
            if left:
                log.error("processes %s do not end though they were killed", sorted(left), extra={"pids": sorted(left)})
            self._keep_rest()
            self._free()
            self._child.forget()
            self._ended(self)

    def _left_something(self) -> bool:
        """Whether there is any sign of processes left by a program that ended by itself; costs microseconds.

        Looking through all processes takes milliseconds, which hundreds of short commands a second cannot pay, so
        that is done for a reason only. Where orphans are not handed to us (not Linux), there is no way to know.
        """
        if not CHILDREN.adopts or self._child.mark in CHILDREN.orphans().values():
            return True
        poll = select.poll()
        for file in self._outputs:
            poll.register(file, 0)
        if sum(1 for _, events in poll.poll(0) if events & select.POLLHUP) < len(self._outputs):
            return True  # somebody holds the other end of its output
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            self._group = None
            return False
        except PermissionError:
            pass
        return True

    async def _end_family(self) -> set[int]:
        """Kill all that grew out of it, in a thread; returns those that could not be ended."""
        killed, left = await self._loop.run_in_executor(None, guardian.end, self._family)
        for pid in killed - CHILDREN.own:
            CHILDREN.reap(pid)
        return left

    def _family(self) -> set[int]:
        table = guardian.processes()
        table.pop(os.getpid(), None)
        in_group = {pid for pid, (_, group, session) in table.items() if self._group in (group, session)}
        if not in_group and self._child.reaped:
            self._group = None  # the number is free for others now
        by_name = guardian.marked(self._marker, table) if self._marker else set()
        return guardian.grown(table, in_group | self._child.orphans(table) | by_name)

    # ------------------------------------------------------------------ its output

    async def read(self) -> tuple[str, bytes] | None:
        while True:
            for file, stream in list(self._outputs.items()):
                data = self._take(file, CHUNK)
                if data:
                    # The other stream is first next time, and the rest of the node has its turn between.
                    if file in self._outputs:
                        self._outputs[file] = self._outputs.pop(file)
                    self._in_a_row += 1
                    if self._in_a_row >= _IN_A_ROW:
                        self._in_a_row = 0
                        await asyncio.sleep(0)  # noqa: TID251 - yields, does not wait
                    return stream, data
            if self._rest:
                return self._rest.popleft()
            if not self._outputs:
                return None
            self._in_a_row = 0
            await self._readable()

    def _take(self, file: int, most: int) -> bytes | None:
        """What stands in a pipe; None when nothing does, or when it has ended and was closed."""
        try:
            data = os.read(file, most)
        except BlockingIOError:
            return None
        if not data:
            self._close_output(file)
        return data or None

    def _close_output(self, file: int) -> None:
        del self._outputs[file]
        self._loop.remove_reader(file)
        os.close(file)

    async def _readable(self) -> None:
        self._reader = self._loop.create_future()
        files = list(self._outputs)
        for file in files:
            self._loop.add_reader(file, _wake, self._reader)
        try:
            await self._reader
        finally:
            self._reader = None
            for file in files:
                if file in self._outputs:
                    self._loop.remove_reader(file)

    def _keep_rest(self) -> None:
        """Take what is still in the pipes, and no more: whoever could not be killed does not keep the attempt open."""
        for file, stream in list(self._outputs.items()):
            waiting: int = struct.unpack("i", fcntl.ioctl(file, termios.FIONREAD, b"\0" * 4))[0]
            while waiting > 0 and (data := self._take(file, min(waiting, CHUNK))):
                self._rest.append((stream, data))
                waiting -= len(data)

    def _free(self) -> None:
        for file in list(self._outputs):
            self._close_output(file)
        if self._reader is not None:
            _wake(self._reader)
        self._close_stdin()

    # ------------------------------------------------------------------ its input

    async def write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view and (file := self._stdin) is not None:
            try:
                view = view[os.write(file, view[:CHUNK]) :]
            except BlockingIOError:
                await self._writable(file)
            except OSError:
                self._close_stdin()
        return self._stdin is not None

    async def end_input(self) -> None:
        self._close_stdin()

    async def _writable(self, file: int) -> None:
        self._writer = self._loop.create_future()
        self._loop.add_writer(file, _wake, self._writer)
        try:
            await self._writer
        finally:
            self._writer = None
            if self._stdin == file:
                self._loop.remove_writer(file)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            if self._writer is not None:
                self._loop.remove_writer(self._stdin)
                _wake(self._writer)
            os.close(self._stdin)
            self._stdin = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def refused(launch: Launch, error: OSError | ValueError) -> Exception:
    """Why a program cannot be started, as a sentence that says what to do."""
    name = launch.argv[0]
    if isinstance(error, ValueError):
        return CommandNotFound(
            f"{name}: an argument or variable holds a character that no program can be given; leave it out."
        )
    number = error.errno
    if number in _EXHAUSTED:
        return error
    if error.filename is not None and Path(os.fsdecode(error.filename)) != Path(name):
        what = f"The work folder cannot be used ({error.strerror}: {error.filename}); check the node's data directory."
    elif number == errno.ENOENT and "/" in name:
        what = f"{name}: there is no such program on this node; check the path, or the interpreter in its first line."
    elif number == errno.ENOENT:
        what = f"{name}: no such program on this node's PATH; install it there, or give its full path."
    elif number in (errno.EACCES, errno.EPERM) and Path(launch.folder, name).is_dir():
        what = f"{name} is a folder; name a program in it."
    elif number in (errno.EACCES, errno.EPERM):
        what = f"{name} may not be executed on this node; make it executable (chmod +x)."
    elif number == errno.ENOEXEC:
        what = (
            f"{name} is no program this node can run; give it a first line such as #!/bin/sh, or name its interpreter."
        )
    elif number == errno.E2BIG:
        what = (
            f"{name}: its arguments and environment are too long for this system; hand them over in a file or on stdin."
        )
    else:
        what = f"{name} could not be started: {error.strerror}."
    return CommandNotFound(what)
