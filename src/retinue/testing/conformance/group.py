"""What group commit promises on an engine (INVARIANTS I-42), as tests."""
# ruff: noqa: S101 - asserts are what a suite is made of

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random  # noqa: TID251 - seeded
from typing import Any, Final

import pytest

from retinue.clock import SystemClock
from retinue.errors import IdempotencyConflict, OutcomeUnknown, RetinueError, StoreBroken, StoreFull, Unavailable
from retinue.storage.database import Chore, Connection, Engine, Kind, StoreConflict, T, Transaction
from retinue.storage.group import GroupCommit
from retinue.storage.sql import Insert, Row, Statement
from retinue.storage.sqlite import InlineSqlite
from retinue.testing.conformance.store import beside

Item = tuple[str, int]  # a number below 0 is refused by the database itself

CREATE: Final = Statement("CREATE TABLE ledger (id text PRIMARY KEY, n bigint CHECK (n >= 0))")
CREATE_LOG: Final = Statement("CREATE TABLE ledger_log (id text PRIMARY KEY)")
ADD: Final = Statement(
    "INSERT INTO ledger (id, n) SELECT id, n FROM {rows l(id text, n bigint)} WHERE true ON CONFLICT (id) DO NOTHING"
    " RETURNING id"
)
LOG: Final = Insert("ledger_log", "id text")
FIND: Final = Statement("SELECT ledger.id, ledger.n FROM ledger JOIN {rows w(id text)} ON w.id = ledger.id")
ALL: Final = Statement("SELECT id, n FROM ledger ORDER BY id")
LOGGED: Final = Statement("SELECT id FROM ledger_log ORDER BY id")
SIZES: Final = (1, 2, 3, 7, 64)


def _log(transaction: Transaction, ids: Sequence[str]) -> None:
    transaction.insert(LOG, [(each,) for each in ids])


WRITTEN: Final[Chore[str]] = Chore(90, _log)


def _put(transaction: Transaction, items: Sequence[Item]) -> list[int | RetinueError]:
    """Write each id once; the same item again is answered as the first time, another number for it is refused."""
    first: dict[str, int] = {}
    for name, n in items:
        first.setdefault(name, n)
    added = [row[0] for row in transaction.rows(ADD, sorted(first.items()))]
    stored: dict[str, int] = dict(transaction.rows(FIND, [(name,) for name in first]))
    transaction.later(WRITTEN, added)
    for name in added:
        transaction.hint(name)
    return [n if stored[name] == n else IdempotencyConflict() for name, n in items]


PUT: Final[Kind[Item, int]] = Kind("put", 10, _put)
LATER: Final[Kind[Item, int]] = Kind("put, later", 20, _put)


class Faulty:
    """An engine that does to its writes what a test says: at a statement, before the commit, or after it."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.statements = 0
        self.at_statement: Callable[[int], None] = lambda number: None
        self.before_commit: Callable[[], None] = lambda: None
        self.after_commit: Callable[[], None] = lambda: None
        self.engine = engine

    async def write(self, work: Callable[[Transaction], T]) -> T:
        def watched(transaction: Transaction) -> T:
            inner = Transaction(_Counted(transaction.connection, self))
            result = work(inner)
            inner.finish()
            self.before_commit()
            return result

        self.statements = 0
        result = await self.engine.write(watched)
        self.after_commit()
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self.engine.read(work)

    async def close(self) -> None:
        """Whoever made the engine closes it."""


class _Counted:
    def __init__(self, connection: Connection, owner: Faulty) -> None:
        self.epoch = connection.epoch
        self.lateral = connection.lateral
        self._connection = connection
        self._owner = owner

    def rows(self, statement: Statement, *arguments: Any) -> list[Row]:
        self._count()
        return self._connection.rows(statement, *arguments)

    def run(self, statement: Statement, *arguments: Any) -> int:
        self._count()
        return self._connection.run(statement, *arguments)

    def insert(self, insert: Insert, rows: Sequence[Row]) -> None:
        self._count()
        self._connection.insert(insert, rows)

    def _count(self) -> None:
        self._owner.statements += 1
        self._owner.at_statement(self._owner.statements)


class Rig:
    """A group commit on a faulty engine, and everything that callers were told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = Faulty(engine)
        self.hints: list[str] = []
        self.broken: list[StoreBroken] = []
        self.groups = GroupCommit(
            self.engine,
            SystemClock(),
            Random(0),  # noqa: S311 - jitter
            publish=self.hints.extend,
            on_broken=self.broken.append,
        )

    @asynccontextmanager
    async def running(self, runs: int = 1) -> AsyncIterator[None]:
        """Commit while the block runs; what was submitted before forms one group."""
        running = [asyncio.create_task(self.groups.run()) for _ in range(runs)]
        try:
            yield
        finally:
            self.groups.close()
            await asyncio.gather(*running)

    async def one_group(self, items: Iterable[Item]) -> Sequence[Any]:
        """The answers to these items, submitted as one group; an error stands for itself."""
        answers = [self.groups.submit(LATER if n % 2 else PUT, (name, n)) for name, n in items]
        return await asyncio.gather(*answers, return_exceptions=True)

    async def stored(self) -> list[Item]:
        """What is in the database; chores and members must agree about it."""
        ledger, log = await self.engine.read(lambda connection: (connection.rows(ALL), connection.rows(LOGGED)))
        assert [row[0] for row in ledger] == [row[0] for row in log]
        return [(str(name), int(n)) for name, n in ledger]


def _once(number: int, error: Exception) -> Callable[[int], None]:
    """Raise at the statement of this number, one time."""
    left = [error]

    def fault(at: int) -> None:
        if at == number and left:
            raise left.pop()

    return fault


def _times(count: int, error: Exception) -> Callable[[], None]:
    """Raise that many times."""
    left = [error] * count

    def fault() -> None:
        if left:
            raise left.pop()

    return fault


def _items(count: int, prefix: str = "") -> list[Item]:
    return [(f"{prefix}{n:03}", n) for n in range(count)]


def _kinds(answers: Iterable[Any]) -> set[type]:
    return {type(answer) for answer in answers}


class GroupCommitSuite:
    """Give it a fixture `engine`: new, migrated, closed by you."""

    @pytest.fixture
    async def rig(self, engine: Engine) -> Rig:
        """A ledger, and the group commit that writes to it."""
        await engine.write(lambda transaction: (transaction.run(CREATE), transaction.run(CREATE_LOG)))
        return Rig(engine)

    async def test_what_waits_is_committed_together(self, rig: Rig) -> None:
        answers = [rig.groups.submit(PUT, item) for item in _items(64)]

        async with rig.running():
            got = await asyncio.gather(*answers)

        assert got == list(range(64))
        assert (rig.groups.commits, rig.groups.members) == (1, 64)
        assert await rig.stored() == _items(64)

    @pytest.mark.parametrize("seed", range(12))
    async def test_one_members_failure_is_its_own(self, rig: Rig, seed: int) -> None:
        chance = Random(seed)  # noqa: S311
        items = _items(chance.choice(SIZES) + chance.randrange(8))
        bad = set(chance.sample(items, 1 + len(items) // 8))

        async with rig.running():
            answers = await rig.one_group((name, -1) if (name, n) in bad else (name, n) for name, n in items)

        good = [item for item in items if item not in bad]
        assert [answer for answer in answers if isinstance(answer, int)] == [n for _, n in good]
        assert [type(answer) for answer in answers if not isinstance(answer, int)] == [RetinueError] * len(bad)
        assert await rig.stored() == good

    async def test_a_refused_member_is_refused_alone_in_the_same_commit(self, rig: Rig) -> None:
        items = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("a", 1)]
        answers = [rig.groups.submit(PUT, item) for item in items]

        async with rig.running():
            got = await asyncio.gather(*answers, return_exceptions=True)

        assert [each if isinstance(each, int) else type(each) for each in got] == [1, 2, IdempotencyConflict, 4, 1]
        assert rig.groups.commits == 1
        assert await rig.stored() == [("a", 1), ("b", 2), ("c", 4)]

    @pytest.mark.slow
    @pytest.mark.parametrize("size", SIZES)
    async def test_an_error_at_any_statement_loses_nothing_and_doubles_nothing(self, rig: Rig, size: int) -> None:
        expected: list[Item] = []
        async with rig.running():
            await rig.one_group(_items(size, "whole"))
            expected += _items(size, "whole")
            statements = rig.engine.statements
            for number in range(1, statements + 1):
                for error in (RuntimeError("a bug"), StoreConflict(), Unavailable(), StoreFull(), OutcomeUnknown()):
                    items = _items(size, f"{number}{type(error).__name__}")
                    rig.engine.at_statement = _once(number, error)
                    answers = await rig.one_group(items)

                    if isinstance(error, RuntimeError) and size == 1:
                        assert _kinds(answers) == {RetinueError}
                    elif isinstance(error, RetinueError):
                        assert _kinds(answers) == {type(error)}
                    if isinstance(error, RetinueError) or size == 1:
                        assert await rig.stored() == sorted(expected + (items if _kinds(answers) == {int} else []))
                        answers = await rig.one_group(items)
                    assert answers == [n for _, n in items]
                    expected += items
                    assert await rig.stored() == sorted(expected)

    async def test_nobody_is_answered_before_the_commit(self, rig: Rig) -> None:
        answers: list[asyncio.Future[int]] = []
        early: list[bool] = []
        loop = asyncio.get_running_loop()

        async def look() -> None:
            for _ in range(5):
                await asyncio.sleep(0)  # noqa: TID251 - whatever is ready may run
            early.extend(answer.done() for answer in answers)

        def before_commit() -> None:
            if isinstance(rig.engine.engine, InlineSqlite):
                early.extend(answer.done() for answer in answers)
            else:
                asyncio.run_coroutine_threadsafe(look(), loop).result(5)

        rig.engine.before_commit = before_commit
        async with rig.running():
            for size in SIZES:
                answers[:] = [rig.groups.submit(PUT, item) for item in _items(size, f"{size}-")]
                await asyncio.gather(*answers)

        assert early == [False] * sum(SIZES)

    async def test_a_lost_commit_is_unknown_to_all_and_each_can_ask_again(self, rig: Rig) -> None:
        rig.engine.before_commit = _times(1, OutcomeUnknown())
        async with rig.running():
            never_came = await rig.one_group(_items(7, "before"))
            rig.engine.after_commit = _times(1, OutcomeUnknown())
            came = await rig.one_group(_items(7, "after"))
            again = await rig.one_group(_items(7, "before") + _items(7, "after"))

        assert _kinds(never_came) == _kinds(came) == {OutcomeUnknown}
        assert again == [*range(7), *range(7)]
        assert await rig.stored() == sorted(_items(7, "before") + _items(7, "after"))

    @pytest.mark.parametrize("error", [Unavailable(), StoreFull()], ids=["unavailable", "full"])
    async def test_the_engines_trouble_refuses_all_and_nothing_happened(self, rig: Rig, error: RetinueError) -> None:
        rig.engine.before_commit = _times(1, error)

        async with rig.running():
            refused = await rig.one_group(_items(7))
            left = await rig.stored()
            again = await rig.one_group(_items(7))

        assert refused == [error] * 7
        assert (left, again) == ([], list(range(7)))

    @pytest.mark.parametrize(("conflicts", "told"), [(4, {int}), (5, {Unavailable})])
    async def test_a_conflict_is_tried_five_times(self, rig: Rig, conflicts: int, told: set[type]) -> None:
        rig.engine.before_commit = _times(conflicts, StoreConflict())

        async with rig.running():
            answers = await rig.one_group(_items(7))

        assert _kinds(answers) == told
        assert await rig.stored() == (_items(7) if told == {int} else [])

    async def test_hints_leave_after_their_commit_and_never_without_one(self, rig: Rig) -> None:
        before: list[list[str]] = []
        faults = _times(1, Unavailable())

        def before_commit() -> None:
            before.append(list(rig.hints))
            faults()

        rig.engine.before_commit = before_commit
        async with rig.running():
            await rig.one_group(_items(2, "lost"))
            await rig.one_group(_items(2, "a"))
            await rig.one_group(_items(2, "b"))

        assert before == [[], [], ["a000", "a001"]]
        assert rig.hints == ["a000", "a001", "b000", "b001"]

    async def test_a_broken_store_is_told_to_everyone_and_takes_nothing_more(self, rig: Rig) -> None:
        error = StoreBroken(reason="fsync")

        def before_commit() -> None:
            raise error

        rig.engine.before_commit = before_commit
        async with rig.running():
            first = await rig.one_group(_items(3))
            later = await rig.one_group(_items(3, "later"))

        assert first == later == [error] * 3
        assert rig.broken == [error]
        assert await rig.stored() == []

    async def test_a_run_that_is_cut_off_leaves_its_members_with_an_unknown_outcome(self, rig: Rig) -> None:
        loop = beside(rig.engine.engine)
        answers = [rig.groups.submit(PUT, item) for item in _items(3)]
        running = asyncio.create_task(rig.groups.run())

        async def cut() -> None:
            running.cancel()

        rig.engine.before_commit = lambda: asyncio.run_coroutine_threadsafe(cut(), loop).result(5)
        got = await asyncio.gather(*answers, return_exceptions=True)
        after = Rig(rig.engine.engine)
        async with after.running():
            again = await after.one_group(_items(3))

        assert running.cancelled()
        assert _kinds(got) == {OutcomeUnknown}
        assert again == [0, 1, 2]
        assert await after.stored() == _items(3)

    async def test_a_caller_that_stops_waiting_disturbs_nobody_and_undoes_nothing(self, rig: Rig) -> None:
        answers = [rig.groups.submit(PUT, item) for item in _items(3)]
        answers[1].cancel()

        async with rig.running():
            got = [await answers[0], await answers[2]]

        assert got == [0, 2]
        assert await rig.stored() == _items(3)

    async def test_a_closed_group_commit_finishes_what_waits_and_refuses_the_rest(self, rig: Rig) -> None:
        waiting = [rig.groups.submit(PUT, item) for item in _items(3)]
        async with rig.running():
            rig.groups.close()
            late = rig.groups.submit(PUT, ("late", 1))

        assert await asyncio.gather(*waiting) == [0, 1, 2]
        assert isinstance(late.exception(), Unavailable)

    async def test_several_runs_beside_each_other_write_everything_once(self, rig: Rig) -> None:
        async def caller(number: int) -> list[int]:
            return [await rig.groups.submit(PUT, item) for item in _items(10, f"{number:02}-")]

        async with rig.running(2):
            got = await asyncio.gather(*(caller(number) for number in range(32)))

        assert got == [list(range(10))] * 32
        assert await rig.stored() == [item for number in range(32) for item in _items(10, f"{number:02}-")]
