"""A clock that stands still until a test moves it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Final

START: Final = datetime(2026, 1, 1, tzinfo=UTC)


class ManualClock:
    """Time for tests: `advance` moves it and wakes who waited, in the order of their moments; nothing else does."""

    def __init__(self, start: datetime = START) -> None:
        self._wall = start
        self._monotonic = 0.0
        self._order = count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        if seconds <= 0:
            loop.call_soon(_wake, woken)
        with self._alarm(seconds, lambda: _wake(woken)):
            await woken

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        return self._timeout(seconds)

    @asynccontextmanager
    async def _timeout(self, seconds: float | None) -> AsyncIterator[object]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:  # noqa: TID251 - this is a clock; the deadline is its own
            if seconds is None:
                yield limit
                return
            with self._alarm(seconds, lambda: limit.reschedule(loop.time())):
                yield limit

    def advance(self, seconds: float) -> None:
        """Let time pass. Who wakes runs at the loop's next turn, and finds all of `seconds` gone."""
        self._monotonic += seconds
        self._wall += timedelta(seconds=seconds)
        due = sorted(alarm for alarm in self._waiting if alarm[0] <= self._monotonic)
        for alarm in due:
            self._waiting.remove(alarm)
            alarm[2]()

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator or NTP does; monotonic time goes on as before."""
        self._wall += timedelta(seconds=seconds)

    @property
    def sleepers(self) -> int:
        """How many wait for a moment that has not come."""
        return len(self._waiting)

    @contextmanager
    def _alarm(self, seconds: float, ring: Callable[[], None]) -> Iterator[None]:
        alarm = (self._monotonic + seconds, next(self._order), ring)
        self._waiting.append(alarm)
        try:
            yield
        finally:
            if alarm in self._waiting:
                self._waiting.remove(alarm)


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
