"""The timers: scheduled tasks become ready, backoffs end, deadlines pass."""

from collections.abc import Callable, Sequence

from retinue.storage.group import GroupCommit
from retinue.tasks.steer import DUE_KIND, Stopped

MOST = 500  # timers a turn


class Timers:
    """Does what is due and says when the next timer is."""

    def __init__(self, database: GroupCommit, stopped: Callable[[Sequence[Stopped]], None]) -> None:
        self._database = database
        self._stopped = stopped

    async def turn(self) -> float | None:
        """One look at what is due; how many seconds until the next is."""
        due = await self._database.submit(DUE_KIND, MOST)
        self._stopped(due.stopped)
        return None if due.next_in is None else due.next_in / 1_000_000
