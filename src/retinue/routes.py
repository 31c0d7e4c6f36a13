"""Routes as values: method, path, handler. Doors carry them over HTTP, or call them inside the process; no I/O here."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

import msgspec

from retinue.errors import Invalid

ServiceT = TypeVar("ServiceT")
DocumentT = TypeVar("DocumentT")

LARGEST_PAGE: Final = 500


class Caller(msgspec.Struct, frozen=True):
    """Who asks: a principal of a team."""

    team: str
    principal: str


class Request(msgspec.Struct, frozen=True):
    """What is asked, as it came: path fields, query, the decoded JSON body, the idempotency key."""

    caller: Caller
    path: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    body: Any = None
    key: str | None = None

    def read(self, kind: type[DocumentT]) -> DocumentT:
        """The body as a document of this kind.

        Raises:
            Invalid: it is none; path and problem are in the details.
        """
        try:
            return msgspec.convert(self.body, kind)
        except msgspec.ValidationError as error:
            problem, _, path = str(error).partition(" - at `")
            raise Invalid.field(path.rstrip("`").removeprefix("$").lstrip(".") or "body", problem) from None

    def number(self, name: str, default: int, *, most: int | None = None) -> int:
        """A number of the query.

        Raises:
            Invalid: it is none, or negative; one above `most` is lowered to it.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise Invalid.field(name, "a number from 0 on")
        return int(text) if most is None else min(int(text), most)

    def limit(self) -> int:
        """How many things a page has: `?limit=`, 50 unless told, at most 500."""
        return max(1, self.number("limit", 50, most=LARGEST_PAGE))

    def listed(self, name: str) -> list[str]:
        """A comma-separated list of the query."""
        return [part for part in self.query.get(name, "").split(",") if part]


class Answer(msgspec.Struct, frozen=True):
    """A plain document; a command's goes out as `{"success": true, "data": …}`."""

    document: Any
    status: int = 200


Handler = Callable[[ServiceT, Request], Awaitable[Answer]]
Streamer = Callable[[ServiceT, Request], AsyncIterator[Any]]


class Route(Generic[ServiceT]):
    """One operation: what it is called by, and who does it. A streaming one yields documents."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler[ServiceT] | None = None,
        *,
        stream: Streamer[ServiceT] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.handler = handler
        self.stream = stream
        self._pattern = re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path) + "$")

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The path's fields, when this route is meant."""
        found = self._pattern.match(path) if method == self.method else None
        return None if found is None else found.groupdict()
