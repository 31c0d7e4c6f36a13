"""A loop: one chore, again and again, that survives a failed turn and says what it is doing."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from retinue.clock import Clock
from retinue.errors import Unavailable

log = logging.getLogger(__name__)


class Loop:
    """Calls `turn` every `every` seconds, or at once when woken; it may answer in how many seconds it is due again."""

    def __init__(self, name: str, clock: Clock, every: float, turn: Callable[[], Awaitable[float | None]]) -> None:
        self.name = name
        self.status = "starting"
        self._clock = clock
        self._every = every
        self._turn = turn
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Take a turn now."""
        self._wake.set()

    async def run(self) -> None:
        """Loop for ever. A turn that fails is logged once; the next one comes as if it had not been."""
        failing = False
        while True:
            pause = self._every
            try:
                wanted = await self._turn()
                pause = self._every if wanted is None else max(0.0, min(wanted, self._every))
                self.status, failing = "ok", False
            except Unavailable as error:
                self.status = f"waiting for the store: {error.code}"
            except Exception:
                if not failing:
                    log.exception("loop %s failed", self.name)
                self.status, failing = "failing", True
            try:
                async with self._clock.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
