"""The feed's verbs: page it, follow it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from retinue.bus.bus import Bus
from retinue.clock import Clock
from retinue.errors import Unavailable
from retinue.events import store
from retinue.events.model import Event, wanted
from retinue.storage.group import GroupCommit

PAGE = 200
SWEEP = 2.0  # seconds after which a follower looks though no hint came


class EventService:
    """Reads a team's feed. A position is only ever passed when everything up to it was handed out."""

    def __init__(self, database: GroupCommit, bus: Bus, clock: Clock) -> None:
        self._database = database
        self._bus = bus
        self._clock = clock

    async def page(
        self, team: str, *, after: int = 0, types: Sequence[str] = (), limit: int = 50
    ) -> tuple[list[Event], int]:
        """The next events behind `after`, oldest first, and the position to go on from.

        Raises:
            CursorExpired: some of them are pruned.
        """
        found: list[Event] = []
        while len(found) < limit:
            events = await self._next(team, after)
            if not events:
                break
            for event in events:
                after = event.position
                if wanted(event.type, types):
                    found.append(event)
                    if len(found) == limit:
                        break
        return found, after

    async def _next(self, team: str, after: int) -> list[Event]:
        return await self._database.read(lambda connection: store.page(connection, team, after, PAGE))

    async def last(self, team: str) -> int:
        """The position of the newest event."""
        return await self._database.read(lambda c: store.last(c, team))

    async def follow(self, team: str, *, after: int, types: Sequence[str] = ()) -> AsyncIterator[Event]:
        """Every event behind `after`, each once and in order, for ever; while the store is away it waits.

        Raises:
            CursorExpired: some of them are pruned.
        """
        wake = asyncio.Event()
        # Subscribed before the first look: what commits in between is seen by the next one.
        unsubscribe = self._bus.subscribe(f"events.{team}", lambda topic, payload: wake.set())
        try:
            while True:
                wake.clear()
                try:
                    events, after = await self.page(team, after=after, types=types, limit=PAGE)
                except Unavailable:
                    events = []
                for event in events:
                    yield event
                if not events:
                    try:
                        async with self._clock.timeout(SWEEP):
                            await wake.wait()
                    except TimeoutError:
                        pass  # a lost hint: look again
        finally:
            unsubscribe()
