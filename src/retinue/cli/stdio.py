"""The standard streams as bytes: read and written without decoding, without waiting in the event loop's way."""

import asyncio
import errno
import os
import select
import sys
from collections.abc import AsyncIterator

from retinue.cli.text import Stripper

PIECE = 64 * 1024
SAFE = select.PIPE_BUF  # a writable pipe takes this much at once


class Out:
    """Standard output and standard error. Writing waits for the reader, and everything else goes on meanwhile."""

    FILES = {"stdout": 1, "stderr": 2}  # noqa: RUF012 - never changed

    async def write(self, stream: str, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: the reader wants no more.
        """
        file = self.FILES.get(stream, 2)
        view = memoryview(data)
        while view:
            await _writable(file)
            try:
                written = os.write(file, view[:SAFE])
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno == errno.EBADF:  # closed by who started us: nobody reads
                    return
                raise
            view = view[written:]


class Shown(Out):
    """The same for output of others that was kept: what goes to a terminal is made harmless to it."""

    def __init__(self) -> None:
        self._strippers = {stream: Stripper() for stream, file in self.FILES.items() if _is_terminal(file)}

    async def write(self, stream: str, data: bytes) -> None:
        stripper = self._strippers.get(stream)
        await super().write(stream, data if stripper is None else stripper.feed(data))

    async def end(self) -> None:
        """Write what was held back."""
        for stream, stripper in self._strippers.items():
            await super().write(stream, stripper.feed(b"", last=True))


def _is_terminal(file: int) -> bool:
    try:
        return os.isatty(file)
    except OSError:
        return False


async def _writable(file: int) -> None:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    if poll.poll(0):
        return
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_writer(file, ready.set)
    except OSError:
        return  # a regular file is always writable
    try:
        await ready.wait()
    finally:
        loop.remove_writer(file)


def piped() -> bool:
    """Whether standard input is a pipe or a file, whose content is meant for the command."""
    try:
        return not os.isatty(0) and os.fstat(0) is not None
    except OSError:
        return False


async def incoming() -> AsyncIterator[bytes]:
    """Standard input until its end, as it comes."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(0, ready.set)
        polled = True
    except OSError:
        polled = False  # a regular file is always readable
    try:
        while True:
            if polled:
                await ready.wait()
                ready.clear()
                loop.remove_reader(0)
            try:
                data = os.read(0, PIECE)
            except BlockingIOError:
                data = None
            except OSError:
                return
            if data == b"":
                return
            if data:
                yield data
            if polled:
                loop.add_reader(0, ready.set)
    finally:
        if polled:
            loop.remove_reader(0)


class Progress:
    """One line at the bottom of a terminal that says how far it is; gone while anything else is written."""

    def __init__(self, *, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty()
        self._line = ""
        self._clean = True  # the cursor stands at the beginning of a line

    def show(self, line: str) -> None:
        """Say this from now on."""
        if self._on and line != self._line:
            self.hide()
            self._line = line
            self.back()

    def hide(self) -> None:
        """Make room for output."""
        if self._on and self._line and self._clean:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def back(self, written: bytes = b"\n") -> None:
        """Say it again below what was written."""
        if self._on:
            self._clean = written.endswith(b"\n")
            if self._line and self._clean:
                sys.stderr.write(self._line)
                sys.stderr.flush()

    def end(self) -> None:
        """Say nothing more."""
        self.hide()
        self._line = ""
