"""SQLite: one writer connection in a thread of its own, short-lived read-only readers, WAL with `synchronous=FULL`.

Exactly one writer, and readers that never checkpoint: SQLite before 3.51.3 can corrupt a database otherwise.
"""

import asyncio
import sqlite3
import time  # noqa: TID251 - the lease clock stands on the monotonic clock of the machine
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

from retinue.clock import Clock, micros
from retinue.errors import ConfigInvalid, OutcomeUnknown, StoreBroken, StoreFull, StoreNotDurable, Unavailable
from retinue.storage import schema
from retinue.storage.database import T, Transaction
from retinue.storage.sql import Insert, Row, Statement

HIGH_WATER: Final = Statement("SELECT value FROM meta WHERE key = 'clock'")
SAVE_HIGH_WATER: Final = Statement("INSERT OR REPLACE INTO meta (key, value) VALUES ('clock', ?)")
SAVE_EVERY: Final = 1_000_000  # microseconds of lease time between two marks
LONGEST_READ: Final = 1.0  # seconds
PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=5000",
    "PRAGMA wal_autocheckpoint=1000",
    "PRAGMA cache_size=-65536",
    "PRAGMA temp_store=MEMORY",
)


class LeaseClock:
    """max(persisted high-water, wall at start) + monotonic since: a stepped wall clock moves no lease."""

    def __init__(self, wall: int, monotonic: Callable[[], float], high_water: int = 0) -> None:
        self._start = max(wall, high_water)
        self._monotonic = monotonic
        self._zero = monotonic()
        self.saved = high_water

    def __call__(self) -> int:
        return self._start + int((self._monotonic() - self._zero) * 1_000_000)


class SqliteConnection:
    """One stdlib connection behind the `Connection` contract; transactions are opened and closed by its engine."""

    lateral = False

    def __init__(self, raw: sqlite3.Connection, epoch: int = 0) -> None:
        self.raw = raw
        self.epoch = epoch

    def rows(self, statement: Statement, *arguments: Any) -> list[Row]:
        return self.raw.execute(statement.sqlite, statement.sqlite_arguments(arguments)).fetchall()

    def run(self, statement: Statement, *arguments: Any) -> int:
        return self.raw.execute(statement.sqlite, statement.sqlite_arguments(arguments)).rowcount

    def insert(self, insert: Insert, rows: Sequence[Row]) -> None:
        if rows:
            self.raw.executemany(insert.sqlite, rows)

    def script(self, text: str) -> None:
        """Several statements of a migration, one by one, inside the open transaction."""
        for statement in schema.split(text):
            self.raw.execute(statement)


def open_writer(database: str, clock: Clock) -> tuple[SqliteConnection, LeaseClock]:
    """The one writer connection, durable, migrated, with the lease clock in it."""
    raw = _connect(database)
    try:
        for pragma in PRAGMAS:
            raw.execute(pragma).fetchall()
        _prove_durable(raw)
        connection = SqliteConnection(raw)
        raw.execute("BEGIN IMMEDIATE")
        schema.migrate(connection, "sqlite")
        mark = connection.rows(HIGH_WATER)
        raw.execute("COMMIT")
        now = LeaseClock(micros(clock.now()), clock.monotonic, int(mark[0][0]) if mark else 0)
        raw.create_function("retinue_now", 0, now)
        connection.epoch = schema.epoch(connection)
    except BaseException as error:  # noqa: BLE001 - raised again, as what it means
        raw.close()
        _raise(error)
    return connection, now


def _connect(database: str, *, uri: bool = False) -> sqlite3.Connection:
    try:
        return sqlite3.connect(database, uri=uri, isolation_level=None, check_same_thread=False, cached_statements=512)
    except sqlite3.Error as error:
        _raise(error)


def write(connection: SqliteConnection, now: LeaseClock, work: Callable[[Transaction], T]) -> T:
    """One transaction on the writer connection, committed before it returns."""
    raw = connection.raw
    try:
        raw.execute("BEGIN IMMEDIATE")
        transaction = Transaction(connection)
        result = work(transaction)
        transaction.finish()
        at = now()
        if marks := at - now.saved > SAVE_EVERY:
            connection.run(SAVE_HIGH_WATER, str(at))
    except BaseException as error:  # noqa: BLE001 - raised again, as what it means
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        _raise(error)
    try:
        raw.execute("COMMIT")
    except sqlite3.Error as error:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        _raise(error, committing=True)
    if marks:
        now.saved = at
    return result


def _raise(error: BaseException, *, committing: bool = False) -> NoReturn:
    meaning = _translated(error, committing=committing)
    if meaning is error:
        raise error
    raise meaning from error


def _translated(error: BaseException, *, committing: bool = False) -> BaseException:
    """What the engine's trouble means to the callers of a group; anything else is returned as it is."""
    if not isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError) or isinstance(
        error, sqlite3.IntegrityError | sqlite3.ProgrammingError
    ):
        return error
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return StoreFull()
    if name.startswith(("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_CORRUPT")):
        return StoreBroken(reason=name)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return Unavailable(f"The database file cannot be written just now ({name}); try again in a moment.")
    if name.startswith("SQLITE_IOERR"):
        return OutcomeUnknown() if committing else Unavailable(f"The disk does not work just now ({name}).")
    if name == "SQLITE_INTERRUPT":
        return Unavailable("Looking this up took too long; ask for less.")
    if name == "SQLITE_NOTADB":
        return ConfigInvalid("This file is not a database of Retinue; choose another data directory.")
    return error


class Sqlite:
    """The file engine: a writer thread that commits, reader threads that look."""

    name = "sqlite"

    def __init__(self, path: Path, clock: Clock, *, readers: int = 2) -> None:
        """Open, migrate and prove durability. Blocks; called once, while Retinue starts.

        Raises:
            StoreNewer: written by a newer program. StoreNotDurable: the file system refuses WAL or FULL.
            ConfigInvalid: the file is something else. Unavailable: it cannot be written; the message says why.
        """
        self._path = path
        try:  # before SQLite does: its other files take their mode from this one
            path.touch(mode=0o600)
            path.chmod(0o600)
        except OSError as error:
            raise Unavailable(f"The database file {path} cannot be written: {error.strerror}.") from error
        self._connection, self._now = open_writer(str(path), clock)
        self._writer = ThreadPoolExecutor(1, "retinue-writer")
        self._readers = ThreadPoolExecutor(readers, "retinue-reader")
        self._idle: list[_Reader] = []  # kept open: opening one costs more than most looks

    async def write(self, work: Callable[[Transaction], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, write, self._connection, self._now, work)

    async def read(self, work: Callable[[SqliteConnection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[SqliteConnection], T]) -> T:
        try:
            reader = self._idle.pop() if self._idle else _Reader(self._path, self._now)
        except sqlite3.Error as error:
            _raise(error)
        try:
            found = reader.look(work)
        except BaseException as error:
            reader.close()
            if isinstance(error, sqlite3.Error):
                _raise(error)
            raise
        self._idle.append(reader)
        return found

    async def close(self) -> None:
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        for reader in self._idle:
            reader.close()
        self._connection.raw.close()


class _Reader:
    """A read-only connection. Each look is one snapshot, given up at once so that checkpoints go on."""

    def __init__(self, path: Path, now: Callable[[], int], *, immutable: bool = False) -> None:
        self._raw = _connect(f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}", uri=True)
        self._raw.create_function("retinue_now", 0, now)
        self._until = 0.0
        self._raw.set_progress_handler(lambda: time.monotonic() > self._until, 100_000)
        self._connection = SqliteConnection(self._raw)

    def look(self, work: Callable[[SqliteConnection], T]) -> T:
        """Run `work` on what is committed now, for at most a second."""
        self._until = time.monotonic() + LONGEST_READ
        self._raw.execute("BEGIN")
        try:
            self._connection.epoch = schema.epoch(self._connection)
            return work(self._connection)
        finally:
            self._raw.execute("ROLLBACK")

    def close(self) -> None:
        """Give it back."""
        self._raw.close()


def _prove_durable(raw: sqlite3.Connection) -> None:
    """Refuse a file that may lose an acknowledged commit (INVARIANTS D9); a store in memory promises nothing."""
    journal = raw.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = raw.execute("PRAGMA synchronous").fetchone()[0]
    if (journal, synchronous) not in (("wal", 2), ("memory", 2)):
        raise StoreNotDurable(journal_mode=journal, synchronous=synchronous)


class ReadOnlySqlite:
    """A look into a data directory that another process holds: reads only, `mode=ro`, no lock, no migration."""

    name = "sqlite, read-only"

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._now = LeaseClock(micros(clock.now()), clock.monotonic)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        raise Unavailable("Another process holds this data directory, so it can only be looked at.")

    async def read(self, work: Callable[[SqliteConnection], T]) -> T:
        try:
            return self._look(work)
        except sqlite3.OperationalError as error:
            # A disk that is full or read-only has no room for the shared memory of a look. Where nobody has written
            # since the last checkpoint, none is needed.
            wal = self._path.with_name(f"{self._path.name}-wal")
            if wal.exists() and wal.stat().st_size:
                _raise(error)
        except sqlite3.Error as error:
            _raise(error)
        try:
            return self._look(work, immutable=True)
        except sqlite3.Error as error:
            _raise(error)

    def _look(self, work: Callable[[SqliteConnection], T], *, immutable: bool = False) -> T:
        reader = _Reader(self._path, self._now, immutable=immutable)
        try:
            return reader.look(work)
        finally:
            reader.close()

    async def close(self) -> None:
        """Nothing is held."""


class InlineSqlite:
    """SQLite in memory, run in the caller's thread: for service tests and the simulator. The only fake store."""

    name = "sqlite, in memory"

    def __init__(self, clock: Clock, template: "InlineSqlite | None" = None) -> None:
        """With a template the content of that store, at a fraction of the price of migrating."""
        if template is None:
            self._connection, self._now = open_writer(":memory:", clock)
            self.raw = self._connection.raw
        else:
            self.raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=512)
            template.raw.backup(self.raw)
            self._connection = SqliteConnection(self.raw)
            self.reopen(clock)
        # Registered once: a function that is registered again has every statement prepared anew.
        self.raw.create_function("retinue_now", 0, self.now)

    def now(self) -> int:
        """The lease clock, microseconds."""
        return self._now()

    def reopen(self, clock: Clock) -> None:
        """Go on as the next process on this store does: what was committed, under its own lease clock."""
        mark = self._connection.rows(HIGH_WATER)
        self._now = LeaseClock(micros(clock.now()), clock.monotonic, int(mark[0][0]) if mark else 0)
        self._connection.epoch = schema.epoch(self._connection)

    async def write(self, work: Callable[[Transaction], T]) -> T:
        return write(self._connection, self._now, work)

    async def read(self, work: Callable[[SqliteConnection], T]) -> T:
        before = self.raw.total_changes
        self.raw.execute("BEGIN")
        try:
            return work(self._connection)
        finally:
            self.raw.execute("ROLLBACK")
            if self.raw.total_changes != before:
                raise RuntimeError("a read wrote")

    async def close(self) -> None:
        self.raw.close()
