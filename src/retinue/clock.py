"""Time as a port: what the clock says, how long to wait, when to give up. Only this module reads the real clock."""

import asyncio
import time  # noqa: TID251 - this is the port
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Clock(Protocol):
    """Time for one process. Core code never reads time in another way, so it runs under virtual time too."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC. It may jump: for people and records, never for leases."""

    def monotonic(self) -> float:
        """Seconds that only grow and go on counting while the machine sleeps."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this clock."""

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """A block that raises `TimeoutError` after `seconds` of this clock; None never does."""


class SystemClock:
    """The machine's clock."""

    # CLOCK_BOOTTIME counts suspended time; macOS counts it in its own monotonic clock.
    _source = getattr(time, "CLOCK_BOOTTIME", None)

    def now(self) -> datetime:
        return datetime.now(UTC)  # noqa: TID251 - this is the port

    def monotonic(self) -> float:
        return time.monotonic() if self._source is None else time.clock_gettime(self._source)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # noqa: TID251 - this is the port

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)  # noqa: TID251 - this is the port


def micros(moment: datetime) -> int:
    """Microseconds since 1970: how the store keeps a time."""
    return (moment - EPOCH) // MICROSECOND


def moment(microseconds: int) -> datetime:
    """The aware UTC time that `micros` made this number of."""
    return EPOCH + timedelta(microseconds=microseconds)


def rfc3339(at: datetime) -> str:
    """A time as it stands in documents: UTC, microseconds, ending in Z."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
