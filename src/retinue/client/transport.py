"""The transport contract: how a client's requests reach a coordinator, over HTTP or inside the process."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Transport(Protocol):
    """Carries requests shaped as in API.md; every error of the coordinator is raised as its class."""

    async def open(self) -> None:
        """Connect; called once, before anything else.

        Raises:
            Unavailable, DataDirHeld and others: nothing could be reached or started; the sentence says what to do.
        """

    async def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        key: str | None = None,
    ) -> T:
        """The answer's document as a `kind`; `key` makes the request safe to repeat."""

    def stream(self, path: str, kind: type[T], *, query: Mapping[str, str] | None = None) -> AsyncIterator[T]:
        """The documents of a stream, as they come."""

    async def close(self) -> None:
        """Give the connection back."""
