"""The link: one connection from a node to a coordinator, frames both ways, in order or not at all."""

import asyncio
from collections import deque
from typing import Protocol

from retinue.client.frames import Frame
from retinue.errors import LinkClosed


class Link(Protocol):
    """One end of a connection. Every implementation passes `retinue.testing.conformance.LinkSuite`.

    Frames arrive in order, each once; where that cannot be kept the link closes, and the node dials a new one.
    """

    def send(self, frame: Frame) -> None:
        """Queue a frame; never waits. A closed link drops it silently: `receive` is where its end is told."""

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            LinkClosed: the connection is gone; nothing more will arrive.
        """

    def close(self) -> None:
        """End the connection for both sides; frames already queued for us may still be received."""


class _Way:
    """One direction of a pair."""

    def __init__(self) -> None:
        self.frames: deque[Frame] = deque()
        self.wake = asyncio.Event()
        self.closed = False


class QueueLink:
    """One end of a pair in the same process: frames are handed over as they are."""

    def __init__(self, incoming: _Way, outgoing: _Way) -> None:
        self._in = incoming
        self._out = outgoing

    def send(self, frame: Frame) -> None:
        if not self._out.closed:
            self._out.frames.append(frame)
            self._out.wake.set()

    async def receive(self) -> Frame:
        while not self._in.frames:
            if self._in.closed:
                raise LinkClosed
            self._in.wake.clear()
            await self._in.wake.wait()
        return self._in.frames.popleft()

    def close(self) -> None:
        for way in (self._in, self._out):
            way.closed = True
            way.wake.set()


def queue_pair() -> tuple[QueueLink, QueueLink]:
    """Two connected ends: the node's and the coordinator's."""
    up, down = _Way(), _Way()
    return QueueLink(down, up), QueueLink(up, down)
