"""The store of a simulated fleet: the real SQL in memory, behind an engine that is slow, refuses, forgets, crashes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from retinue.clock import SystemClock
from retinue.errors import OutcomeUnknown, StoreFull, Unavailable
from retinue.storage.database import Connection, StoreConflict, Transaction
from retinue.storage.sqlite import InlineSqlite
from retinue.testing.sim.chance import Chance
from retinue.testing.sim.host import Incarnation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DiskTrouble:
    """How often what goes wrong, per write."""

    slow: float = 0.0
    unavailable: float = 0.0
    conflict: float = 0.0
    full: float = 0.0
    unknown_before: float = 0.0
    unknown_after: float = 0.0
    crash_before: float = 0.0
    crash_after: float = 0.0


BAD_DISK = DiskTrouble(0.004, 0.004, 0.01, 0.002, 0.003, 0.005, 0.001, 0.002)


@cache
def template() -> InlineSqlite:
    """A migrated, empty store; made once a process and copied for each seed."""
    return InlineSqlite(SystemClock())


class _PowerCut(Exception):
    """The machine dies between the work and its commit."""


class Database:
    """One store that outlives its coordinators' crashes. `crash` is what ends a coordinator at a crash point."""

    def __init__(self, chance: Chance, trouble: DiskTrouble, crash: Callable[[Incarnation], None]) -> None:
        self.store: InlineSqlite | None = None
        self.crash = crash
        self.outages = 0  # how many faults keep it unreachable now
        self.slowness = 1.0
        self.commits = 0
        self.reads = 0
        self.slow = chance.dice("slow-write", trouble.slow)
        self.unavailable = chance.dice("store-unavailable", trouble.unavailable)
        self.conflict = chance.dice("store-conflict", trouble.conflict)
        self.full = chance.dice("store-full", trouble.full)
        self.unknown_before = chance.dice("commit-lost", trouble.unknown_before)
        self.unknown_after = chance.dice("answer-lost", trouble.unknown_after)
        self.crash_before = chance.dice("crash-before-commit", trouble.crash_before)
        self.crash_after = chance.dice("crash-after-commit", trouble.crash_after)
        self.after = chance.fork("after-commit").random
        self.watchers: list[Callable[[InlineSqlite], None]] = []  # look at the store after each commit

    def open(self, incarnation: Incarnation) -> "SimEngine":
        """The engine of a process that starts on this store."""
        if self.store is None:
            self.store = InlineSqlite(incarnation.clock, template())
        else:
            self.store.reopen(incarnation.clock)
        return SimEngine(self, self.store, incarnation)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """What stands in the store at the end, for checkers."""
        if self.store is None:
            return []
        cursor = self.store.raw.execute(sql)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def close(self) -> None:
        """Give the memory back."""
        if self.store is not None:
            self.store.raw.close()


class SimEngine:
    """The `Engine` port of one process: inline SQL after a seeded delay, with the faults that real disks have."""

    name = "sqlite, simulated"

    def __init__(self, database: Database, store: InlineSqlite, own: Incarnation) -> None:
        self._database = database
        self._store = store
        self._own = own

    async def _reach(self) -> None:
        database, own = self._database, self._own
        await own.call(database.slowness)
        if database.slow():
            await own.clock.sleep(0.2 + 3.0 * database.after())
        if not own.alive:
            await own.never()
        if database.outages or database.unavailable():
            raise Unavailable

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """Run and commit it, or fail in one of the ways the contract names."""
        database, own = self._database, self._own
        await self._reach()
        if database.conflict():
            raise StoreConflict
        if database.full():
            raise StoreFull
        if database.unknown_before():
            raise OutcomeUnknown
        if database.crash_before():
            await self._cut(work)
        result = await self._store.write(work)
        database.commits += 1
        for watch in database.watchers:
            watch(self._store)
        if database.crash_after():
            database.crash(own)
        elif database.after() < 0.2:
            await own.call()  # the answer is under way while others go on
        if not own.alive:
            await own.never()
        if database.unknown_after():
            raise OutcomeUnknown
        return result

    async def _cut(self, work: Callable[[Transaction], T]) -> None:
        """Do all of it but the commit, then die."""

        def all_but_the_commit(transaction: Transaction) -> None:
            work(transaction)
            transaction.finish()
            raise _PowerCut

        try:
            await self._store.write(all_but_the_commit)
        except _PowerCut:
            pass
        self._database.crash(self._own)
        await self._own.never()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run it on what is committed."""
        await self._reach()
        self._database.reads += 1
        return await self._store.read(work)

    async def close(self) -> None:
        """The store stays: it is the disk."""
