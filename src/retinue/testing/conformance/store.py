"""What every engine promises (`retinue.storage.database.Engine`), as tests."""
# ruff: noqa: S101 - asserts are what a suite is made of

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from retinue.clock import SystemClock, micros
from retinue.errors import Unavailable
from retinue.storage.database import Chore, Connection, Engine, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.storage.sqlite import InlineSqlite

CREATE: Final = Statement("CREATE TABLE things (id text PRIMARY KEY, n bigint CHECK (n <> -1), note text)")
CREATE_BLOBS: Final = Statement("CREATE TABLE blobs (id text PRIMARY KEY, data {sqlite:blob}{postgres:bytea})")
ADD: Final = Insert("things", "id text, n bigint, note text")
ADD_BLOBS: Final = Insert("blobs", "id text, data bytea")
ADD_SOME: Final = Statement(
    "INSERT INTO things (id, n, note) SELECT id, n, note FROM {rows t(id text, n bigint, note text)} WHERE true"
    " ON CONFLICT (id) DO NOTHING RETURNING id"
)
ALL: Final = Statement("SELECT id, n, note FROM things ORDER BY id")
BLOBS: Final = Statement("SELECT id, data FROM blobs")
ONE: Final = Statement("SELECT n FROM things WHERE id = ?")
SUM: Final = Statement("SELECT SUM(n), COUNT(*) FROM things")
PICK: Final = Statement("SELECT things.id FROM things JOIN {rows w(id text)} ON w.id = things.id ORDER BY things.id")
RAISE: Final = Statement("UPDATE things SET n = n + ? WHERE id LIKE 'a%' RETURNING id, n")
NOW: Final = Statement("SELECT retinue_now()")
ENDLESS: Final = Statement(
    "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 1000000000)"
    " SELECT MAX(i) FROM numbers"
)
STRANGE: Final[list[Row]] = [
    ("", 0, ""),
    ("NULLs", None, None),
    ("big", 2**63 - 1, "x" * 1_000_000),
    ("quotes", -(2**63), """'"\\{}%s,?:$1\t\n"""),
    ("ünïcødé 🦆", 2**53 + 1, "\u202e\u05d0\u200b\U0001d54f"),
]


def put(*rows: Row) -> Callable[[Transaction], None]:
    """A write of these rows."""
    return lambda transaction: transaction.insert(ADD, rows)


def ids(connection: Connection) -> list[str]:
    """What a read finds."""
    return [row[0] for row in connection.rows(ALL)]


class StoreSuite:
    """Give it a fixture `engine`: new, migrated, closed by you."""

    @pytest.fixture(autouse=True)
    async def things(self, engine: Engine) -> None:
        """The tables that the tests write to."""
        await engine.write(lambda transaction: (transaction.run(CREATE), transaction.run(CREATE_BLOBS)))

    async def test_a_write_is_visible_once_it_has_returned(self, engine: Engine) -> None:
        await engine.write(put(("a", 1, "x")))

        seen = await engine.read(lambda connection: connection.rows(ALL))

        assert seen == [("a", 1, "x")]

    async def test_a_write_answers_with_what_its_work_answers(self, engine: Engine) -> None:
        answer = await engine.write(lambda transaction: transaction.rows(Statement("SELECT 1 + ?"), 2))

        assert answer == [(3,)]

    async def test_a_raise_leaves_nothing_behind(self, engine: Engine) -> None:
        def work(transaction: Transaction) -> None:
            transaction.insert(ADD, [("a", 1, None)])
            raise LookupError("changed my mind")

        with pytest.raises(LookupError, match="changed my mind"):
            await engine.write(work)

        assert await engine.read(ids) == []

    async def test_a_refused_statement_leaves_nothing_behind_and_the_next_write_works(self, engine: Engine) -> None:
        await engine.write(put(("a", 1, None)))

        with pytest.raises(Exception, match=r"(?i)unique"):
            await engine.write(put(("b", 1, None), ("a", 2, None)))
        await engine.write(put(("c", 1, None)))

        assert await engine.read(ids) == ["a", "c"]

    async def test_a_read_sees_only_what_is_committed(self, engine: Engine) -> None:
        loop = beside(engine)

        def work(transaction: Transaction) -> list[str]:
            transaction.insert(ADD, [("a", 1, None)])
            return asyncio.run_coroutine_threadsafe(engine.read(ids), loop).result(5)

        seen = await engine.write(work)

        assert seen == []

    async def test_a_read_keeps_the_picture_it_began_with(self, engine: Engine) -> None:
        loop = beside(engine)

        def work(connection: Connection) -> tuple[list[str], list[str]]:
            before = ids(connection)
            asyncio.run_coroutine_threadsafe(engine.write(put(("a", 1, None))), loop).result(5)
            return before, ids(connection)

        seen = await engine.read(work)

        assert seen == ([], [])

    async def test_a_read_cannot_write(self, engine: Engine) -> None:
        with pytest.raises(Exception, match=r"(?i)read|written"):
            await engine.read(lambda connection: connection.insert(ADD, [("a", 1, None)]))

        assert await engine.read(ids) == []

    @pytest.mark.slow
    async def test_a_read_is_ended_after_a_second_and_the_next_one_works(self, engine: Engine) -> None:
        beside(engine)

        with pytest.raises(Unavailable):
            await engine.read(lambda connection: connection.rows(ENDLESS))

        assert await engine.read(ids) == []

    async def test_values_come_back_as_they_went_in(self, engine: Engine) -> None:
        await engine.write(lambda transaction: transaction.insert(ADD, STRANGE))

        seen = await engine.read(lambda connection: connection.rows(ALL))

        assert sorted(seen) == sorted(STRANGE)

    async def test_values_come_back_as_they_went_in_as_rows_of_a_statement(self, engine: Engine) -> None:
        await engine.write(lambda transaction: transaction.rows(ADD_SOME, STRANGE))

        seen = await engine.read(lambda connection: connection.rows(ALL))

        assert sorted(seen) == sorted(STRANGE)

    async def test_bytes_come_back_as_they_went_in(self, engine: Engine) -> None:
        await engine.write(lambda transaction: transaction.insert(ADD_BLOBS, [("a", bytes(range(256)))]))

        seen = await engine.read(lambda connection: connection.rows(BLOBS))

        assert seen == [("a", bytes(range(256)))]

    async def test_sums_and_counts_are_whole_numbers(self, engine: Engine) -> None:
        await engine.write(put(("a", 2**62, None), ("b", 1, None)))

        seen = await engine.read(lambda connection: connection.rows(SUM))

        assert seen == [(2**62 + 1, 2)]
        assert [type(value) for value in seen[0]] == [int, int]

    async def test_no_rows_are_no_work(self, engine: Engine) -> None:
        def work(transaction: Transaction) -> tuple[list[Row], list[Row], int]:
            transaction.insert(ADD, [])
            return transaction.rows(PICK, []), transaction.rows(ADD_SOME, []), transaction.run(RAISE, 1)

        found = await engine.write(work)

        assert found[:2] == ([], [])
        assert await engine.read(ids) == []

    async def test_ten_thousand_rows_go_in_and_come_out_at_once(self, engine: Engine) -> None:
        rows: list[Row] = [(f"{n:05}", n, None if n % 3 else "third") for n in range(10_000)]

        await engine.write(lambda transaction: transaction.insert(ADD, rows))
        picked = await engine.read(lambda connection: connection.rows(PICK, [(row[0],) for row in rows]))

        assert await engine.read(lambda connection: connection.rows(ALL)) == rows
        assert picked == [(row[0],) for row in rows]

    async def test_returning_tells_what_was_changed_and_a_percent_sign_is_one(self, engine: Engine) -> None:
        await engine.write(put(("a1", 1, None), ("a2", 2, None), ("b", 3, None)))

        changed = await engine.write(lambda transaction: transaction.rows(RAISE, 10))

        assert sorted(changed) == [("a1", 11), ("a2", 12)]

    async def test_a_conflict_is_told_by_what_returning_leaves_out(self, engine: Engine) -> None:
        await engine.write(put(("a", 1, None)))

        added = await engine.write(lambda transaction: transaction.rows(ADD_SOME, [("a", 9, None), ("b", 2, None)]))

        assert added == [("b",)]

    async def test_run_tells_how_many_rows_it_touched(self, engine: Engine) -> None:
        await engine.write(put(("a1", 1, None), ("a2", 2, None)))

        touched = await engine.write(
            lambda transaction: transaction.run(Statement("UPDATE things SET n = ? WHERE n < ?"), 0, 2)
        )

        assert touched == 1

    async def test_chores_run_once_at_the_end_lowest_order_first(self, engine: Engine) -> None:
        done: list[tuple[str, list[int], list[str]]] = []

        def chore(name: str) -> Callable[[Transaction, Sequence[int]], None]:
            return lambda transaction, items: done.append((name, list(items), ids(transaction.connection)))

        late, early = Chore(90, chore("late")), Chore(10, chore("early"))

        def work(transaction: Transaction) -> None:
            transaction.later(late, [1])
            transaction.later(early, [2])
            transaction.later(late, [3])
            transaction.insert(ADD, [("a", 1, None)])

        await engine.write(work)

        assert done == [("early", [2], ["a"]), ("late", [1, 3], ["a"])]

    async def test_a_chore_may_write_and_leave_work_to_a_later_one(self, engine: Engine) -> None:
        last: Chore[Row] = Chore(90, lambda transaction, rows: transaction.insert(ADD, rows))
        first: Chore[str] = Chore(10, lambda transaction, names: transaction.later(last, [(n, 1, None) for n in names]))

        await engine.write(lambda transaction: transaction.later(first, ["a", "b"]))

        assert await engine.read(ids) == ["a", "b"]

    async def test_chores_of_a_transaction_that_failed_are_gone(self, engine: Engine) -> None:
        chore: Chore[Row] = Chore(1, lambda transaction, rows: transaction.insert(ADD, rows))

        def work(transaction: Transaction) -> None:
            transaction.later(chore, [("a", 1, None)])
            raise LookupError

        with pytest.raises(LookupError):
            await engine.write(work)
        await engine.write(put(("b", 1, None)))

        assert await engine.read(ids) == ["b"]

    async def test_a_chore_that_fails_takes_the_transaction_with_it(self, engine: Engine) -> None:
        chore: Chore[Row] = Chore(1, lambda transaction, rows: transaction.insert(ADD, rows))

        def work(transaction: Transaction) -> None:
            transaction.insert(ADD, [("a", 1, None)])
            transaction.later(chore, [("b", -1, None)])

        with pytest.raises(Exception, match=r"(?i)check"):
            await engine.write(work)

        assert await engine.read(ids) == []

    async def test_the_lease_clock_moves_between_the_statements_of_a_transaction(self, engine: Engine) -> None:
        def work(transaction: Transaction) -> list[int]:
            seen = [int(transaction.rows(NOW)[0][0])]
            while len(seen) < 100_000 and seen[-1] == seen[0]:
                seen.append(int(transaction.rows(NOW)[0][0]))
            return seen

        seen = await engine.write(work)

        assert seen[-1] > seen[0]
        assert abs(seen[0] - micros(SystemClock().now())) < 60_000_000

    async def test_the_lease_clock_never_goes_back(self, engine: Engine) -> None:
        seen: list[int] = []
        for _ in range(50):
            seen.append(await engine.write(lambda transaction: int(transaction.rows(NOW)[0][0])))
            seen.append(await engine.read(lambda connection: int(connection.rows(NOW)[0][0])))

        assert seen == sorted(seen)

    async def test_closing_waits_for_the_write_that_runs(self, engine: Engine) -> None:
        def work(transaction: Transaction) -> int:
            return sum(transaction.run(Statement("UPDATE things SET n = n")) for _ in range(200))

        await engine.write(put(("a", 1, None)))
        writing = asyncio.create_task(engine.write(work))
        await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, so that the write is under way
        await engine.close()

        assert await writing == 200


def beside(engine: Engine) -> asyncio.AbstractEventLoop:
    """The loop, to run something beside a transaction; not where transactions run in the caller's own thread."""
    if isinstance(engine, InlineSqlite):
        pytest.skip("runs in the caller's thread: nothing can run beside a transaction, and nothing ends it")
    return asyncio.get_running_loop()
