"""What only PostgreSQL can do to us: races, lost connections, settings, several coordinators on one database."""

import asyncio
import importlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random

import psycopg
import pytest

import services
from retinue.clock import SystemClock
from retinue.errors import ConfigInvalid, OutcomeUnknown, RetinueError, StoreFull, StoreNotDurable, Unavailable
from retinue.storage.database import Connection, Kind, StoreConflict, Transaction
from retinue.storage.group import GroupCommit
from retinue.storage.postgres import Postgres
from retinue.storage.sql import Insert, Row, Statement

pytestmark = pytest.mark.postgres

CREATE = Statement("CREATE TABLE hot (id bigint PRIMARY KEY, n bigint NOT NULL)")
CREATE_DONE = Statement("CREATE TABLE done (id text PRIMARY KEY)")
FILL = Insert("hot", "id bigint, n bigint")
MARK = Statement("INSERT INTO done SELECT id FROM {rows d(id text)} ON CONFLICT (id) DO NOTHING RETURNING id")
RAISE = Statement("UPDATE hot SET n = n + 1 WHERE id = ?")
ALL = Statement("SELECT id, n FROM hot ORDER BY id")
TOTAL = Statement("SELECT (SELECT SUM(n) FROM hot), (SELECT COUNT(*) FROM done)")
NOW = Statement("SELECT retinue_now()")

Step = tuple[str, int]  # a name of its own, and the hot row it adds one to


def _step(transaction: Transaction, items: Sequence[Step]) -> list[bool]:
    """Add one to each step's row, once for ever; rows are taken as they come, so that transactions deadlock."""
    new = {row[0] for row in transaction.rows(MARK, [(name,) for name, _ in items])}
    for name, row in items:
        if name in new:
            transaction.run(RAISE, row)
    return [True] * len(items)


STEP: Kind[Step, bool] = Kind("step", 1, _step)


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Postgres]:
    """An engine on a database with ten hot rows."""
    engine = Postgres(postgres_url, SystemClock())
    await engine.write(lambda transaction: (transaction.run(CREATE), transaction.run(CREATE_DONE)))
    await engine.write(lambda transaction: transaction.insert(FILL, [(row, 0) for row in range(10)]))
    yield engine
    await engine.close()


@pytest.fixture
async def second(postgres: Postgres, postgres_url: str) -> AsyncIterator[Postgres]:
    """Another coordinator's engine on the same database."""
    engine = Postgres(postgres_url, SystemClock())
    yield engine
    await engine.close()


@pytest.fixture
def beside(postgres: Postgres, postgres_url: str) -> Iterator["psycopg.Connection[Row]"]:
    """A connection of somebody else, each statement a transaction."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def rows(connection: Connection) -> list[Row]:
    return connection.rows(ALL)


def raising(code: str) -> Statement:
    """A statement that fails with this SQLSTATE."""
    return Statement(f"DO $$ BEGIN RAISE EXCEPTION 'as the test wants it' USING ERRCODE = '{code}'; END $$")


class Callers:
    """Callers that take steps through group commits until each is done, and note whatever else they are told."""

    def __init__(self, *engines: Postgres) -> None:
        self.told: dict[type[BaseException], int] = {}
        self._groups = [GroupCommit(engine, SystemClock(), Random(0)) for engine in engines]
        self._writers = [engine.writers for engine in engines]

    async def take(self, callers: int, steps: int) -> int:
        """How many steps were answered."""
        running = [
            asyncio.create_task(group.run())
            for group, writers in zip(self._groups, self._writers, strict=True)
            for _ in range(writers)
        ]
        done = await asyncio.gather(*(self._caller(number, steps) for number in range(callers)))
        for group in self._groups:
            group.close()
        await asyncio.gather(*running)
        return sum(done)

    async def _caller(self, number: int, steps: int) -> int:
        chance = Random(number)
        group = self._groups[number % len(self._groups)]
        for step in range(steps):
            name, row = f"{number}-{step}", chance.randrange(10)
            while True:
                try:
                    await group.submit(STEP, (name, row))
                except RetinueError as error:
                    self.told[type(error)] = self.told.get(type(error), 0) + 1
                    await asyncio.sleep(0.02)
                else:
                    break
        return steps


class TestRaces:
    @pytest.mark.slow
    async def test_64_callers_on_10_hot_rows_lose_nothing(self, postgres: Postgres, second: Postgres) -> None:
        callers = Callers(postgres, second)

        answered = await callers.take(64, 20)

        assert await postgres.read(lambda connection: connection.rows(TOTAL)) == [(answered, answered)]
        assert set(callers.told) <= {Unavailable}

    async def test_a_deadlock_between_two_coordinators_is_run_again(self, postgres: Postgres, second: Postgres) -> None:
        both_hold_one = threading.Barrier(2, timeout=5)
        tries: list[int] = []

        def crossing(first: int, then: int) -> Callable[[Transaction, Sequence[None]], list[None]]:
            def apply(transaction: Transaction, items: Sequence[None]) -> list[None]:
                tries.append(first)
                transaction.run(RAISE, first)
                if tries.count(first) == 1:
                    both_hold_one.wait()
                transaction.run(RAISE, then)
                return [None]

            return apply

        groups = [GroupCommit(engine, SystemClock(), Random(seed)) for seed, engine in enumerate((postgres, second))]
        answers = [
            groups[0].submit(Kind("1, then 2", 1, crossing(1, 2)), None),
            groups[1].submit(Kind("2, then 1", 1, crossing(2, 1)), None),
        ]
        running = [asyncio.create_task(group.run()) for group in groups]
        await asyncio.gather(*answers)
        for group in groups:
            group.close()
        await asyncio.gather(*running)

        assert len(tries) >= 3
        assert (await postgres.read(rows))[1:3] == [(1, 2), (2, 2)]

    async def test_a_serialization_failure_is_run_again(
        self, postgres: Postgres, beside: "psycopg.Connection[Row]"
    ) -> None:
        tries: list[int] = []

        def apply(transaction: Transaction, items: Sequence[None]) -> list[None]:
            transaction.run(Statement("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            rows(transaction.connection)
            if not tries:
                beside.execute("UPDATE hot SET n = 5 WHERE id = 1")
            tries.append(1)
            transaction.run(RAISE, 1)
            return [None]

        group = GroupCommit(postgres, SystemClock(), Random(0))
        answer = group.submit(Kind("repeatable", 1, apply), None)
        running = asyncio.create_task(group.run())
        await answer
        group.close()
        await running

        assert len(tries) == 2
        assert (await postgres.read(rows))[1] == (1, 6)

    async def test_a_lock_that_is_held_too_long_is_a_conflict(
        self, postgres: Postgres, beside: "psycopg.Connection[Row]"
    ) -> None:
        def work(transaction: Transaction) -> None:
            transaction.run(Statement("SET LOCAL lock_timeout = '20ms'"))
            transaction.run(RAISE, 1)

        with beside.transaction():
            beside.execute("SELECT * FROM hot WHERE id = 1 FOR UPDATE")
            with pytest.raises(StoreConflict):
                await postgres.write(work)

        assert (await postgres.read(rows))[1] == (1, 0)


class TestLostConnections:
    @pytest.mark.slow
    async def test_backends_that_are_killed_all_the_time_cost_nothing_but_another_try(
        self, postgres: Postgres, postgres_url: str
    ) -> None:
        callers = Callers(postgres)

        with killing(postgres_url, every=0.01):
            answered = await callers.take(16, 15)

        assert await eventually(postgres, TOTAL) == [(answered, answered)]
        assert set(callers.told) <= {Unavailable, OutcomeUnknown}
        assert callers.told

    async def test_a_connection_lost_while_idle_is_not_noticed_by_anyone(
        self, postgres: Postgres, postgres_url: str
    ) -> None:
        await postgres.read(rows)
        with killing(postgres_url, every=60):
            pass

        await postgres.write(lambda transaction: transaction.run(RAISE, 1))
        seen = await postgres.read(rows)

        assert seen[1] == (1, 1)

    async def test_a_connection_lost_before_the_commit_means_nothing_happened(self, postgres: Postgres) -> None:
        def work(transaction: Transaction) -> None:
            transaction.run(RAISE, 1)
            transaction.rows(Statement("SELECT pg_terminate_backend(pg_backend_pid())"))

        with pytest.raises(Unavailable) as refused:
            await postgres.write(work)

        assert type(refused.value) is Unavailable
        assert (await postgres.read(rows))[1] == (1, 0)

    async def test_a_connection_lost_in_the_commit_leaves_the_outcome_unknown(
        self, postgres: Postgres, beside: "psycopg.Connection[Row]"
    ) -> None:
        at_commit(beside, "PERFORM pg_terminate_backend(pg_backend_pid());")

        with pytest.raises(OutcomeUnknown):
            await postgres.write(lambda transaction: transaction.run(RAISE, 1))

        assert (await postgres.read(rows))[1] == (1, 0)

    async def test_a_connection_lost_while_reading_is_an_error_of_that_read_only(self, postgres: Postgres) -> None:
        with pytest.raises(Unavailable):
            await postgres.read(
                lambda connection: connection.rows(Statement("SELECT pg_terminate_backend(pg_backend_pid())"))
            )

        assert len(await postgres.read(rows)) == 10


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "meaning"),
        [
            ("40001", StoreConflict),
            ("40P01", StoreConflict),
            ("55P03", StoreConflict),
            ("53100", StoreFull),
            ("53200", Unavailable),
            ("57014", Unavailable),
            ("22012", psycopg.errors.DivisionByZero),
        ],
    )
    async def test_an_error_before_the_commit_says_what_it_means(
        self, postgres: Postgres, code: str, meaning: type[Exception]
    ) -> None:
        def work(transaction: Transaction) -> None:
            transaction.run(RAISE, 1)
            transaction.run(raising(code))

        with pytest.raises(meaning) as refused:
            await postgres.write(work)

        assert type(refused.value) is meaning
        assert (await postgres.read(rows))[1] == (1, 0)

    @pytest.mark.parametrize(("code", "meaning"), [("40001", StoreConflict), ("23514", psycopg.errors.CheckViolation)])
    async def test_a_commit_that_the_server_refuses_is_no_unknown_outcome(
        self, postgres: Postgres, beside: "psycopg.Connection[Row]", code: str, meaning: type[Exception]
    ) -> None:
        at_commit(beside, f"RAISE EXCEPTION 'no' USING ERRCODE = '{code}';")

        with pytest.raises(meaning):
            await postgres.write(lambda transaction: transaction.run(RAISE, 1))

        assert (await postgres.read(rows))[1] == (1, 0)

    async def test_an_error_that_was_swallowed_does_not_turn_into_an_answer(self, postgres: Postgres) -> None:
        def work(transaction: Transaction) -> None:
            transaction.run(RAISE, 1)
            with pytest.raises(psycopg.errors.UniqueViolation):
                transaction.insert(FILL, [(1, 0)])

        with pytest.raises(RuntimeError, match="swallowed"):
            await postgres.write(work)

        assert (await postgres.read(rows))[1] == (1, 0)


class TestTime:
    async def test_a_statement_that_waited_for_a_change_reads_the_time_after_it(
        self, postgres: Postgres, beside: "psycopg.Connection[Row]"
    ) -> None:
        held = threading.Event()

        def hold() -> int:
            with beside.transaction():
                beside.execute("UPDATE hot SET n = n WHERE id = 1")
                held.set()
                time.sleep(0.1)
                found = beside.execute("SELECT retinue_now()").fetchone()
            assert found is not None
            return int(found[0])

        holding = asyncio.get_running_loop().run_in_executor(None, hold)
        await asyncio.get_running_loop().run_in_executor(None, held.wait)
        found = await postgres.write(
            lambda transaction: transaction.rows(
                Statement("UPDATE hot SET n = retinue_now() WHERE id = 1 AND n < retinue_now() RETURNING n")
            )
        )

        released = await holding
        assert found[0][0] > released

    async def test_a_time_from_the_clock_can_be_looked_up_in_an_index(self, postgres: Postgres) -> None:
        def work(transaction: Transaction) -> str:
            transaction.run(Statement("SET LOCAL enable_seqscan = off"))
            lines = transaction.rows(
                Statement(
                    "EXPLAIN SELECT id FROM running WHERE reap_at <= (SELECT retinue_now()) ORDER BY reap_at LIMIT 5"
                )
            )
            return "\n".join(row[0] for row in lines)

        plan = await postgres.write(work)

        assert "Index Cond: (reap_at <=" in plan


class TestStart:
    def test_several_coordinators_may_start_at_once_on_an_empty_database(self, postgres_url: str) -> None:
        def start(_: int) -> int:
            async def once() -> int:
                engine = Postgres(postgres_url, SystemClock())
                now = await engine.read(lambda connection: int(connection.rows(NOW)[0][0]))
                await engine.close()
                return now

            return asyncio.run(once())

        with ThreadPoolExecutor(6) as threads:
            started = list(threads.map(start, range(6)))

        assert all(started)

    @pytest.mark.parametrize("scheme", ["postgres://", "postgresql+psycopg://"])
    async def test_other_spellings_of_the_address_are_understood(self, postgres_url: str, scheme: str) -> None:
        engine = Postgres(postgres_url.replace("postgresql://", scheme), SystemClock())

        seen = await engine.read(lambda connection: connection.rows(NOW))
        await engine.close()

        assert len(seen) == 1

    @pytest.mark.parametrize("url", ["postgresql://[", "postgresql://localhost/x?nonsense=1", "nothing like it"])
    def test_an_address_that_cannot_be_read_is_told(self, url: str) -> None:
        with pytest.raises(ConfigInvalid, match="address"):
            Postgres(url, SystemClock())

    @pytest.mark.parametrize("url", ["postgresql:///x?host=/nowhere", "postgresql://127.0.0.1:9/x"])
    def test_a_server_that_is_not_there_is_told_at_once(self, url: str) -> None:
        began = time.monotonic()

        with pytest.raises(Unavailable, match="cannot be reached"):
            Postgres(url, SystemClock())

        assert time.monotonic() - began < 3

    def test_a_database_that_does_not_exist_is_told(self, postgres_server: services.PostgresServer) -> None:
        with pytest.raises(Unavailable, match='"nowhere" does not exist'):
            Postgres(postgres_server.url("nowhere"), SystemClock())

    def test_commits_that_do_not_wait_for_the_disk_are_refused(self, postgres_url: str) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET synchronous_commit = off')

        with pytest.raises(StoreNotDurable) as refused:
            Postgres(postgres_url, SystemClock())

        assert refused.value.details["synchronous_commit"] == "off"

    async def test_a_setting_that_is_changed_later_stops_writes_and_not_reads(
        self, postgres: Postgres, postgres_url: str
    ) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET synchronous_commit = off')
        with killing(postgres_url, every=60):
            pass

        with pytest.raises(Unavailable, match="durable"):
            await postgres.write(lambda transaction: transaction.run(RAISE, 1))

        assert len(await postgres.read(rows)) == 10

    def test_a_database_in_another_encoding_is_told(self, postgres_server: services.PostgresServer) -> None:
        ascii_only = "ENCODING 'SQL_ASCII' TEMPLATE template0"

        with postgres_server.database(ascii_only) as url, pytest.raises(ConfigInvalid, match="UTF8"):
            Postgres(url, SystemClock())

    def test_a_missing_driver_is_told_with_the_way_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        monkeypatch.delitem(sys.modules, "retinue.storage.postgres")

        with pytest.raises(ConfigInvalid, match=r"pip install 'retinue\[pg\]'"):
            importlib.import_module("retinue.storage.postgres")

    def test_nobody_but_this_module_pulls_the_driver_in(self) -> None:
        program = "import sys, retinue.storage.sqlite, retinue.storage.group; sys.exit('psycopg' in sys.modules)"

        done = subprocess.run([sys.executable, "-c", program], check=False)

        assert done.returncode == 0


@contextmanager
def killing(url: str, every: float) -> Iterator[None]:
    """Kill every other connection to this database at once, and again and again while the block runs."""
    end = threading.Event()
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    with psycopg.connect(url, autocommit=True) as connection:

        def loop() -> None:
            while True:
                connection.execute(f"{kill} AND pid <> pg_backend_pid()")
                if end.wait(every):
                    return

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def at_commit(connection: "psycopg.Connection[Row]", body: str) -> None:
    """Have every commit that touched a hot row do this."""
    connection.execute(
        f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;"
        " CREATE CONSTRAINT TRIGGER meddles AFTER UPDATE ON hot DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION meddle()"
    )


async def eventually(engine: Postgres, statement: Statement) -> list[Row]:
    """The answer, once the engine has one again."""
    while True:
        try:
            return await engine.read(lambda connection: connection.rows(statement))
        except Unavailable:
            await asyncio.sleep(0.02)
