"""A foreground client's session: the tasks tied to it are cancelled when the client is gone."""

import asyncio

import msgspec

from retinue.client.transport import Transport
from retinue.clock import Clock, SystemClock
from retinue.errors import NotFound, RetinueError

LEASE = 15.0  # seconds


class _Opened(msgspec.Struct):
    id: str


class Session:
    """Renewed in the background from `open` to `close`."""

    def __init__(self, transport: Transport, clock: Clock | None = None) -> None:
        self._transport = transport
        self._clock = clock or SystemClock()
        self._renewing: asyncio.Task[None] | None = None
        self.id = ""

    async def open(self) -> None:
        """Begin it."""
        opened = await self._transport.call("POST", "/sessions", _Opened, body={"lease_seconds": LEASE})
        self.id = opened.id
        self._renewing = asyncio.get_running_loop().create_task(self._renew(), name="session")

    async def close(self) -> None:
        """End it: what is still open of its tasks is cancelled."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
            try:
                await self._transport.call("DELETE", f"/sessions/{self.id}", dict)
            except RetinueError:
                pass  # it ends by its lease

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(LEASE / 3)
            try:
                body = {"lease_seconds": LEASE}
                await self._transport.call("POST", f"/sessions/{self.id}/keep", dict, body=body)
            except NotFound:
                return
            except RetinueError:
                pass  # the next renewal may be in time
