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


class QueueLink:
    """One end of a pair in the same process: frames are handed over as they are."""

    def __init__(self) -> None:
        self._arrived: deque[Frame] = deque()
        self._wake = asyncio.Event()
        self._other: QueueLink | None = None
        self._closed = False

    def send(self, frame: Frame) -> None:
        if self._other is not None and not self._closed:
            self._other._arrived.append(frame)
            self._other._wake.set()

    async def receive(self) -> Frame:
        while not self._arrived:
            if self._closed:
                raise LinkClosed
            self._wake.clear()
            await self._wake.wait()
        return self._arrived.popleft()

    def close(self) -> None:
        for end in (self, self._other):
            if end is not None:
                end._closed = True
                end._wake.set()


def queue_pair() -> tuple[QueueLink, QueueLink]:
    """Two connected ends: the node's and the coordinator's."""
    node, coordinator = QueueLink(), QueueLink()
    node._other, coordinator._other = coordinator, node
    return node, coordinator
