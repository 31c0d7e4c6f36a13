"""The reaper: gives back what lost nodes held. It reads only the task's own lease, and its write repeats the guard."""

import asyncio
from collections.abc import Callable, Sequence
from math import inf

from retinue.clock import Clock
from retinue.nodes.model import OFFLINE_AFTER
from retinue.nodes.store import SILENCE
from retinue.storage.group import GroupCommit
from retinue.tasks.losses import REAP_KIND
from retinue.tasks.steer import LAPSE_SESSIONS, Stopped

MOST = 500  # tasks a turn
GAP = 2.0  # a tick that comes this many times too late means that we were asleep


class Reaper:
    """Reaps only after it has itself been awake, with the store up, for one full lease: a closed lid, or a database
    that was away, orphans nobody whose node comes back (INVARIANTS D5)."""

    def __init__(
        self,
        database: GroupCommit,
        clock: Clock,
        *,
        lease: float,
        sweep: float,
        stopped: Callable[[Sequence[Stopped]], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._lease = lease
        self._sweep = sweep
        self._stopped = stopped
        self._awake_since = clock.monotonic()
        self._last = clock.monotonic()

    async def turn(self) -> float | None:
        """One sweep: overdue claims, lapsed sessions, silent nodes."""
        now = self._clock.monotonic()
        if now - self._last > self._sweep * (1 + GAP):
            self._awake_since = max(self._awake_since, now)
        self._last = now
        try:
            if now - self._awake_since < self._lease:
                await self._database.read(lambda connection: connection.epoch)  # notice a store that is away
                self._awake_since = min(self._awake_since, now)
                return None
            silence = int(OFFLINE_AFTER.total_seconds() * 1_000_000)
            lapsing = self._database.submit(LAPSE_SESSIONS, None)  # these ride in the commit of the first bite
            others = asyncio.gather(lapsing, self._database.submit(SILENCE, silence), return_exceptions=True)
            while await self._database.submit(REAP_KIND, MOST) == MOST:
                pass
            await others
            self._stopped(lapsing.result())
        except Exception:
            self._awake_since = inf  # until a turn succeeds
            raise
        if self._clock.monotonic() - now > self._sweep * (1 + GAP):
            self._awake_since = self._clock.monotonic()  # we were stopped in the middle of the turn
        self._last = self._clock.monotonic()
        return None
