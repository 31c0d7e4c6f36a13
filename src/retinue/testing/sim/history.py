"""What clients asked and were told, and what really ran: the only witness the checkers believe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line: when, what kind (`invoke ok fail unknown program …`), who, which process or operation, what."""

    at: float
    kind: str
    who: str
    number: int
    what: dict[str, Any]


@dataclass(slots=True)
class Operation:
    """A client's question on its way: ends as ok, fail (surely not done) or unknown (nobody knows)."""

    number: int
    who: str
    verb: str
    value: Any = None
    outcome: str = "unknown"
    what: dict[str, Any] = field(default_factory=dict)

    def ok(self, value: Any = None, **what: Any) -> None:
        """The answer came."""
        self.outcome, self.value = "ok", value
        self.what.update(what)

    def fail(self, code: str) -> None:
        """It was refused, so surely nothing happened."""
        self.outcome = "fail"
        self.what["code"] = code


class History:
    """The lines of one run, in order."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.entries: list[Entry] = []
        self._now = now
        self._operations = 0

    def note(self, kind: str, who: str, number: int = 0, **what: Any) -> None:
        """Add a line."""
        self.entries.append(Entry(round(self._now(), 6), kind, who, number, what))

    @contextmanager
    def operation(self, who: str, verb: str, **what: Any) -> Iterator[Operation]:
        """One question of a client. Left without a word it is `unknown`, as a timeout is."""
        self._operations += 1
        operation = Operation(self._operations, who, verb)
        self.note("invoke", who, operation.number, verb=verb, **what)
        try:
            yield operation
        finally:
            said = {} if operation.value is None else {"value": operation.value}
            self.note(operation.outcome, who, operation.number, verb=verb, **what, **said, **operation.what)

    def of(self, *kinds: str) -> list[Entry]:
        """The lines of these kinds."""
        return [entry for entry in self.entries if entry.kind in kinds]

    def digest(self) -> str:
        """The same for the same run, in every process."""
        return blake2b(msgspec.json.encode(self.entries, order="sorted"), digest_size=16).hexdigest()
