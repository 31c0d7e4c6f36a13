"""PostgreSQL: a few writer connections and a few that only read; a durable primary, proved at each connect.

Several coordinators may share the database: nothing here assumes that it is alone.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from retinue.clock import Clock
from retinue.errors import ConfigInvalid, OutcomeUnknown, StoreFull, StoreNotDurable, Unavailable
from retinue.storage import schema
from retinue.storage.database import StoreConflict, T, Transaction
from retinue.storage.sql import Insert, Row, Statement

try:
    import psycopg
    from psycopg import conninfo, errors
    from psycopg.adapt import Loader
    from psycopg.types.numeric import Int8Dumper
except ImportError as error:
    raise ConfigInvalid("PostgreSQL needs a driver that is not installed: pip install 'retinue[pg]'.") from error

OLDEST_SERVER: Final = 150000
MIGRATION_LOCK: Final = 0x7265_7469_6E75_65  # "retinue": one program at a time looks at the schema's version

BEGIN_WRITE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

# A half-open connection is noticed after 10 s; a server that is not there, after 3 s at the latest.
CONNECT: Final = {
    "connect_timeout": "3",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "fallback_application_name": "retinue",
}
# A coordinator paused inside a transaction holds locks: the others wait 5 s at a time, the server ends it after 10 s.
# Every statement of ours looks a few rows up by an index: no plan is left to statistics that are not there yet.
BY_INDEX: Final = (
    "SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off;"
    " SET enable_hashjoin = off; SET enable_mergejoin = off"
)
ANYONE: Final = f"SET idle_in_transaction_session_timeout = '10s'; {BY_INDEX}"
WRITER: Final = f"{ANYONE}; SET lock_timeout = '5s'; SET statement_timeout = '30s'"
READER: Final = f"{ANYONE}; SET statement_timeout = '1s'"

FIRST_WAIT: Final = 0.05  # seconds without another try after a refused connection; doubles up to
LONGEST_WAIT: Final = 1.0

AGAIN: Final = (errors.SerializationFailure, errors.DeadlockDetected, errors.LockNotAvailable)
PASSING: Final = ("53", "57014")  # SQLSTATE: out of some resource, a statement that took too long
PROOF: Final = ("fsync", "full_page_writes", "synchronous_commit")


class PostgresConnection:
    """One psycopg connection behind the `Connection` contract; transactions are opened and closed by its session."""

    lateral = True

    def __init__(self, raw: "psycopg.Connection[Row]") -> None:
        self.raw = raw
        self.epoch = 0
        self._cursor = raw.cursor()

    def rows(self, statement: Statement, *arguments: Any) -> list[Row]:
        self._cursor.execute(statement.postgres, statement.postgres_arguments(arguments))
        return self._cursor.fetchall() if self._cursor.description else []

    def run(self, statement: Statement, *arguments: Any) -> int:
        return self._cursor.execute(statement.postgres, statement.postgres_arguments(arguments)).rowcount

    def insert(self, insert: Insert, rows: Sequence[Row]) -> None:
        if rows:
            self._cursor.execute(insert.postgres, [list(column) for column in zip(*rows, strict=True)])

    def script(self, text: str) -> None:
        """Several statements of a migration, one by one, inside the open transaction."""
        for statement in schema.split(text):
            self.command(statement)

    def command(self, text: str) -> str | None:
        """A statement without arguments, never prepared; the server's word for what it did."""
        return self._cursor.execute(text, prepare=False).statusmessage


class _Number(Loader):
    """`numeric`, which sums of bigint are, as the int or float it is on SQLite too."""

    def load(self, data: bytes | bytearray | memoryview) -> int | float:
        text = bytes(data)
        return int(text) if text.lstrip(b"-").isdigit() else float(text)


class _Server:
    """Where connections come from. After a refusal it is left alone for a moment: nobody hangs on a dead one."""

    def __init__(self, url: str, clock: Clock) -> None:
        try:
            given = conninfo.conninfo_to_dict(url.replace("postgresql+psycopg://", "postgresql://", 1))
        except psycopg.ProgrammingError as error:
            raise ConfigInvalid("The database address is wrong; write postgresql://user@host/database.") from error
        self._address = conninfo.make_conninfo("", **{**CONNECT, **given})
        self._clock = clock
        self._refused = Unavailable()
        self._until = 0.0
        self._wait = FIRST_WAIT

    def connect(self, settings: str, *checks: Callable[[PostgresConnection], None]) -> PostgresConnection:
        """A new connection that passed the checks, or `Unavailable` at once while the last refusal is fresh."""
        if self._clock.monotonic() < self._until:
            raise Unavailable(self._refused.message)
        try:
            raw = psycopg.connect(self._address, autocommit=True, client_encoding="UTF8")
        except psycopg.OperationalError as error:
            self._until = self._clock.monotonic() + self._wait
            self._wait = min(self._wait * 2, LONGEST_WAIT)
            self._refused = Unavailable(f"PostgreSQL cannot be reached: {' '.join(str(error).split())}")
            raise self._refused from error
        self._wait = FIRST_WAIT
        try:
            connection = _prepared(raw, settings)
            for check in checks:
                check(connection)
        except psycopg.Error as error:
            raw.close()
            raise Unavailable from error
        except BaseException:
            raw.close()
            raise
        return connection


def _prepared(raw: "psycopg.Connection[Row]", settings: str) -> PostgresConnection:
    version = raw.info.server_version
    if version < OLDEST_SERVER:
        raise ConfigInvalid(f"PostgreSQL {version // 10000} is too old; {OLDEST_SERVER // 10000} or newer is needed.")
    if raw.info.parameter_status("server_encoding") != "UTF8":
        raise ConfigInvalid("The database's encoding is not UTF8; create it with ENCODING 'UTF8'.")
    # One integer type whatever the value: a statement keeps one prepared form, and an array one type.
    raw.adapters.register_dumper(int, Int8Dumper)
    raw.adapters.register_loader("numeric", _Number)
    raw.prepared_max = 512
    connection = PostgresConnection(raw)
    connection.command(settings)
    return connection


def _prove_durable(connection: PostgresConnection) -> None:
    """Refuse a server on which an acknowledged commit could be lost (INVARIANTS D9)."""
    found: dict[str, Any] = {name: str(connection.raw.execute(f"SHOW {name}").fetchall()[0][0]) for name in PROOF}
    found["in_recovery"] = connection.raw.execute("SELECT pg_is_in_recovery()").fetchall()[0][0]
    waits = found["synchronous_commit"] in ("on", "remote_apply")
    if found["in_recovery"] or not (waits and found["fsync"] == found["full_page_writes"] == "on"):
        raise StoreNotDurable(**found)


def _read_epoch(connection: PostgresConnection) -> None:
    connection.epoch = schema.epoch(connection)


class _Session:
    """One connection and its transactions; opened when first needed, and again after it was lost."""

    def __init__(self, opened: Callable[[], PostgresConnection], begin: str) -> None:
        self._open = opened
        self._begin = begin
        self._connection: PostgresConnection | None = None

    def begin(self) -> PostgresConnection:
        """A connection inside a new transaction.

        Raises:
            Unavailable: there is none to be had just now; nothing happened.
        """
        if self._connection is not None:
            try:
                self._connection.command(self._begin)
            except psycopg.Error:
                self.drop()  # it went away while nobody used it; nothing was asked of it yet, so a new one will do
            else:
                return self._connection
        self._connection = self._open()
        try:
            self._connection.command(self._begin)
        except psycopg.Error as error:
            self.drop()
            raise Unavailable from error
        return self._connection

    def commit(self) -> None:
        """Make it durable.

        Raises:
            OutcomeUnknown: the connection was lost before the answer.
            StoreConflict: the server refused and rolled back.
        """
        connection = self._connection
        assert connection is not None, "commit without begin"  # noqa: S101 - a claim about this file
        try:
            said = connection.command("COMMIT")
        except psycopg.Error as error:
            if _lost(error, connection):
                self.drop()
                raise OutcomeUnknown from error
            self.rollback()
            raise _meaning(error) from error
        if said != "COMMIT":  # a statement failed and `work` went on: the server turned the commit into a rollback
            raise RuntimeError(
                "a statement failed inside the transaction and its error was swallowed; nothing was written"
            )

    def rollback(self) -> None:
        """Give the transaction up; a connection that cannot even do that is dropped."""
        if self._connection is None:
            return
        try:
            self._connection.command("ROLLBACK")
        except psycopg.Error:
            self.drop()

    def drop(self) -> None:
        """Close the connection; the next `begin` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.raw.close()


def _lost(error: psycopg.Error, connection: PostgresConnection) -> bool:
    """Whether the connection went with this error, so that nobody will ever hear how its transaction ended."""
    if connection.raw.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC"):
        return True
    return error.sqlstate is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def _meaning(error: BaseException) -> BaseException:
    """What the server's trouble before a commit means to the callers of a group; anything else is returned as it is."""
    if isinstance(error, AGAIN):
        return StoreConflict(str(error))
    if isinstance(error, errors.DiskFull):
        return StoreFull()
    if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(PASSING):
        return Unavailable(f"PostgreSQL gave a statement up ({error.sqlstate}); try again in a moment.")
    return error


class _Pool:
    """A fixed number of sessions, and as many threads to use them in."""

    def __init__(self, size: int, name: str, session: Callable[[], _Session]) -> None:
        self._threads = ThreadPoolExecutor(size, name)
        self._sessions = deque(session() for _ in range(size))
        self._idle = deque(self._sessions)

    async def run(self, work: Callable[[_Session], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def _run(self, work: Callable[[_Session], T]) -> T:
        session = self._idle.pop()  # as many sessions as threads: there is always one
        try:
            return work(session)
        finally:
            self._idle.append(session)

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        for session in self._sessions:
            session.drop()


class Postgres:
    """The server engine. A lost connection is opened again by the next use; no person is needed.

    `writers` groups may commit beside each other: start that many `GroupCommit.run`.
    """

    name = "postgres"

    def __init__(self, url: str, clock: Clock, *, writers: int = 2, readers: int = 2) -> None:
        """Connect, prove durability and migrate. Blocks; called once, while Retinue starts.

        Raises:
            ConfigInvalid: the address cannot be read, or the server is too old.
            Unavailable: the server cannot be reached or refuses us; the message has its words.
            StoreNotDurable: it may lose commits, or is a standby. StoreNewer: written by a newer program.
        """
        self.writers = writers
        self._server = _Server(url, clock)
        self._migrate()
        self._writing = _Pool(writers, "retinue-writer", lambda: _Session(self._open_writer, BEGIN_WRITE))
        self._reading = _Pool(readers, "retinue-reader", lambda: _Session(self._open_reader, BEGIN_READ))

    async def write(self, work: Callable[[Transaction], T]) -> T:
        return await self._writing.run(lambda session: _write(session, work))

    async def read(self, work: Callable[[PostgresConnection], T]) -> T:
        return await self._reading.run(lambda session: _read(session, work))

    async def close(self) -> None:
        def close() -> None:
            self._writing.close()
            self._reading.close()

        await asyncio.get_running_loop().run_in_executor(None, close)

    def _migrate(self) -> None:
        def migrate(connection: PostgresConnection) -> None:
            connection.raw.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
            schema.migrate(connection, "postgres")

        session = _Session(self._open_first, BEGIN_WRITE)
        try:
            _inside(session, migrate)
            session.commit()
        finally:
            session.drop()

    def _open_first(self) -> PostgresConnection:
        return self._server.connect(ANYONE, _prove_durable)

    def _open_writer(self) -> PostgresConnection:
        try:
            return self._server.connect(WRITER, _prove_durable, _read_epoch)
        except StoreNotDurable as error:  # it was at the start: a failover is under way, or a setting was changed
            raise Unavailable(error.message, **error.details) from error

    def _open_reader(self) -> PostgresConnection:
        return self._server.connect(READER, _read_epoch)


def _inside(session: _Session, work: Callable[[PostgresConnection], T]) -> T:
    """What `work` answers in a new transaction, which is left open; rolled back when it raises."""
    connection = session.begin()
    try:
        return work(connection)
    except BaseException as error:
        if isinstance(error, psycopg.Error) and _lost(error, connection):
            session.drop()
            raise Unavailable from error
        session.rollback()
        meaning = _meaning(error)
        if meaning is error:
            raise
        raise meaning from error


def _write(session: _Session, work: Callable[[Transaction], T]) -> T:
    """One transaction on a writer connection, committed before it returns."""

    def with_chores(connection: PostgresConnection) -> T:
        transaction = Transaction(connection)
        result = work(transaction)
        transaction.finish()
        return result

    result = _inside(session, with_chores)
    session.commit()
    return result


def _read(session: _Session, work: Callable[[PostgresConnection], T]) -> T:
    result = _inside(session, work)
    session.rollback()
    return result
