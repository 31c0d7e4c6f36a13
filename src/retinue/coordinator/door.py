"""The door inside the process: a client's transport that calls the coordinator's interface directly."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import msgspec

from retinue.coordinator.interface import Interface
from retinue.routes import Caller

T = TypeVar("T")


class LocalTransport:
    """`Transport` without a wire: the same routes, the same checks of what is posted, the same errors."""

    def __init__(self, interface: Interface, caller: Caller) -> None:
        self._interface = interface
        self._caller = caller

    async def open(self) -> None:
        """The coordinator is here already."""

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
        posted = msgspec.to_builtins(body, builtin_types=(bytes,))
        answer = await self._interface.call(self._caller, method, path, query or {}, posted, key)
        return _as(answer.document, kind)

    async def stream(self, path: str, kind: type[T], *, query: Mapping[str, str] | None = None) -> AsyncIterator[T]:
        async for document in self._interface.stream(self._caller, path, query or {}):
            yield _as(document, kind)

    async def close(self) -> None:
        """The coordinator goes on."""


def _as(document: Any, kind: type[T]) -> T:
    if isinstance(document, kind):
        return document
    return msgspec.convert(msgspec.to_builtins(document, builtin_types=(bytes,)), kind)
