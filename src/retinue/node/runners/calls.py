"""One call in a host process, as its node sees it: its output on the way out, and what it came to."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from retinue.node.runners import wire
from retinue.node.runners.process import HeadAndTail
from retinue.node.runners.runner import AttemptIO


@dataclass(frozen=True, slots=True)
class Lost:
    """A call's end with its host's."""

    error: str


Outcome = wire.Returned | wire.Raised | Lost


class HostCall:
    """One call under way."""

    def __init__(self, number: int, io: AttemptIO, limit: int, taken: "Callable[[HostCall, int], None]") -> None:
        self.number = number
        self.io = io
        self.waiting = 0  # bytes
        self.ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._taken = taken
        self._output: deque[tuple[str, bytes]] = deque()
        self._window = HeadAndTail(limit)
        self._pump: asyncio.Task[None] | None = None

    def wrote(self, stream: str, data: bytes) -> None:
        """It wrote; hand that on, in order."""
        self._output.append((stream, data))
        self.waiting += len(data)
        if self._pump is None:
            self._pump = asyncio.create_task(self._hand_on())

    async def handed_on(self) -> None:
        """It has ended: return when all output within its limit is handed on."""
        while self._pump is not None:
            await self._pump
        for stream, data in self._window.rest():
            await self.io.output(stream, data)

    def drop(self) -> None:
        """Hand on no more."""
        self._output.clear()
        if self._pump is not None:
            self._pump.cancel()

    def end(self, outcome: Outcome) -> None:
        """It came to this."""
        if not self.ended.done():
            self.ended.set_result(outcome)

    async def _hand_on(self) -> None:
        try:
            while self._output:
                stream, data = self._output.popleft()
                if passing := self._window.take(stream, data):
                    await self.io.output(stream, passing)
                self.waiting -= len(data)
                self._taken(self, len(data))
        except Exception as problem:  # noqa: BLE001 - whatever the link raises ends the call, which raises it
            if not self.ended.done():
                self.ended.set_exception(problem)
        finally:
            self._pump = None
