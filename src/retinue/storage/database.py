"""The database contract: what a store function sees (`Transaction`), a group of writes, and what an engine must do."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from retinue.errors import RetinueError
from retinue.storage.sql import Insert, Row, Statement

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
T = TypeVar("T")


class Connection(Protocol):
    """One connection inside a transaction, synchronous. `retinue_now()` in SQL is the lease clock, microseconds."""

    epoch: int
    lateral: bool  # whether one statement can take the top rows of each of several queues

    def rows(self, statement: Statement, *arguments: Any) -> list[Row]:
        """Every row of a query or of a RETURNING."""

    def run(self, statement: Statement, *arguments: Any) -> int:
        """Run it; how many rows it touched."""

    def insert(self, insert: Insert, rows: Sequence[Row]) -> None:
        """Insert all rows in one go; nothing when there are none."""


@dataclass(frozen=True, slots=True)
class Chore(Generic[ItemT]):
    """What a transaction does once at its end for all that was noted during it; the lowest order first."""

    order: int
    apply: "Callable[[Transaction, Sequence[ItemT]], None]"


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[ItemT, ResultT]):
    """A kind of write, applied to all its members of a group at once.

    `apply` answers with one outcome a member, in order: a value, or the error of a member that is refused.
    It raises only when the whole transaction has to be given up. Kinds with a lower `order` go first.
    """

    name: str
    order: int
    apply: "Callable[[Transaction, Sequence[ItemT]], Sequence[ResultT | RetinueError]]"


class Transaction:
    """One group's transaction: statements now; events, counts and hints once, when the members are done."""

    __slots__ = ("_chores", "connection", "epoch", "hints", "insert", "rows", "run")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.rows = connection.rows
        self.run = connection.run
        self.insert = connection.insert
        self.epoch = connection.epoch
        self._chores: dict[Chore[Any], list[Any]] = {}
        self.hints: dict[str, None] = {}

    def row(self, statement: Statement, *arguments: Any) -> Row | None:
        """The first row, or None."""
        found = self.rows(statement, *arguments)
        return found[0] if found else None

    def later(self, chore: Chore[ItemT], items: Iterable[ItemT]) -> None:
        """Note items for a chore of the end of this transaction."""
        self._chores.setdefault(chore, []).extend(items)

    def hint(self, topic: str) -> None:
        """Say after the commit that there is something to look at; a hint may be lost."""
        self.hints[topic] = None

    def finish(self) -> None:
        """Do the chores; a chore may note items for a later one."""
        while self._chores:
            chore = min(self._chores, key=lambda chore: chore.order)
            chore.apply(self, self._chores.pop(chore))


class StoreConflict(Exception):
    """The engine asks for the transaction to be run again: a deadlock or a serialization failure."""


class Engine(Protocol):
    """A database. Every implementation passes `retinue.testing.conformance.StoreSuite`."""

    name: str

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` and the transaction's chores, commit, answer with its result.

        Raises:
            StoreConflict: rolled back, run it again.
            Unavailable: nothing happened. `OutcomeUnknown`: the commit's answer was lost.
            StoreFull: nothing happened, the disk is full.
            StoreBroken: a commit may have been lost by the disk; the process has to stop.
        """

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on committed data, without seeing or hindering a write; at most a second."""

    async def close(self) -> None:
        """Give everything back. A write that runs is finished first."""
