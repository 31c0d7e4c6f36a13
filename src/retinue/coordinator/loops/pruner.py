"""The pruner: everything that grows has an end."""

from retinue.storage.blobs import Blobs
from retinue.storage.group import GroupCommit
from retinue.tasks.prune import BITE, PRUNE, Pruned, Retention

BETWEEN = 60.0  # seconds between two looks when there was little to do


class Pruner:
    """Deletes in bites, so that no write waits long behind it."""

    def __init__(self, database: GroupCommit, blobs: Blobs, retention: Retention) -> None:
        self._database = database
        self._blobs = blobs
        self.retention = retention

    async def turn(self) -> float | None:
        """One bite; due again at once while bites are full."""
        gone = await self.bite()
        return 0.0 if max(gone.events, gone.tasks, gone.logs, gone.keys) >= BITE else None

    async def bite(self) -> Pruned:
        """Delete some of what is past its retention, and say how much it was."""
        gone = await self._database.submit(PRUNE, self.retention)
        await self._blobs.drop(gone.blobs)
        return gone
