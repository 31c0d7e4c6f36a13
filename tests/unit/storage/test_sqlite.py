"""The SQLite engine's own matters: its lease clock, its file, what its errors mean."""

import sqlite3
from pathlib import Path

import pytest

from retinue.clock import SystemClock, micros
from retinue.errors import ConfigInvalid, OutcomeUnknown, StoreBroken, StoreFull, Unavailable
from retinue.storage.database import Transaction
from retinue.storage.sql import Statement
from retinue.storage.sqlite import InlineSqlite, LeaseClock, ReadOnlySqlite, Sqlite, _translated
from retinue.testing.clock import START, ManualClock

NOW = Statement("SELECT retinue_now()")
CREATE = Statement("CREATE TABLE t (id bigint PRIMARY KEY)")


def now(transaction: Transaction) -> int:
    return int(transaction.rows(NOW)[0][0])


async def test_a_stepped_wall_clock_moves_no_lease() -> None:
    clock = ManualClock()
    store = InlineSqlite(clock)
    before = await store.write(now)

    clock.step_wall(86_400)
    ahead = await store.write(now)
    clock.step_wall(-10 * 86_400)
    clock.advance(2)
    back = await store.write(now)
    await store.close()

    assert (ahead - before, back - before) == (0, 2_000_000)


async def test_a_restart_under_an_earlier_wall_clock_does_not_turn_the_lease_clock_back(tmp_path: Path) -> None:
    clock = ManualClock()
    first = Sqlite(tmp_path / "t.db", clock)
    clock.advance(5)
    before = await first.write(now)
    await first.close()

    clock.step_wall(-3600)
    second = Sqlite(tmp_path / "t.db", clock)
    after = await second.write(now)
    await second.close()

    assert before == micros(START) + 5_000_000
    assert after >= before


def test_the_lease_clock_starts_at_the_later_of_wall_and_high_water() -> None:
    assert LeaseClock(100, lambda: 7.0, high_water=200)() == 200
    assert LeaseClock(300, lambda: 7.0, high_water=200)() == 300


async def test_a_mark_that_was_rolled_back_is_written_again(tmp_path: Path) -> None:
    clock = ManualClock()
    store = Sqlite(tmp_path / "t.db", clock)
    clock.advance(5)

    def refused(transaction: Transaction) -> None:
        transaction.run(Statement("CREATE TABLE once (a bigint)"))
        raise LookupError

    with pytest.raises(LookupError):
        await store.write(refused)
    await store.write(now)
    mark = await store.read(lambda connection: connection.rows(Statement("SELECT value FROM meta WHERE key = 'clock'")))
    await store.close()

    assert mark == [(str(micros(START) + 5_000_000),)]


@pytest.mark.parametrize(
    ("name", "committing", "meaning"),
    [
        ("SQLITE_FULL", False, StoreFull),
        ("SQLITE_FULL", True, StoreFull),
        ("SQLITE_BUSY", False, Unavailable),
        ("SQLITE_IOERR_WRITE", False, Unavailable),
        ("SQLITE_IOERR_WRITE", True, OutcomeUnknown),
        ("SQLITE_IOERR_FSYNC", True, StoreBroken),
        ("SQLITE_CORRUPT_INDEX", False, StoreBroken),
        ("SQLITE_INTERRUPT", False, Unavailable),
    ],
)
def test_an_error_says_what_it_means(name: str, committing: bool, meaning: type[Exception]) -> None:
    error = sqlite3.OperationalError("as the test wants it")
    error.sqlite_errorname = name

    assert type(_translated(error, committing=committing)) is meaning


def test_a_mistake_of_ours_stays_what_it_is() -> None:
    mistake = sqlite3.IntegrityError("UNIQUE")

    assert _translated(mistake) is mistake


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes(b"not a database at all, but long enough to look at" * 30)

    with pytest.raises(ConfigInvalid, match="not a database"):
        Sqlite(tmp_path / "t.db", SystemClock())


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be written: No such file"):
        Sqlite(tmp_path / "nowhere" / "t.db", SystemClock())


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = Sqlite(tmp_path / "t.db", SystemClock())
    await store.write(lambda transaction: transaction.run(CREATE))
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("t.db", "t.db-wal", "t.db-shm")]
    await store.close()

    assert modes == [0o600] * 3


async def test_a_look_into_a_held_file_reads_and_does_not_write(tmp_path: Path) -> None:
    store = Sqlite(tmp_path / "t.db", SystemClock())
    await store.write(lambda transaction: transaction.run(CREATE))
    look = ReadOnlySqlite(tmp_path / "t.db", SystemClock())

    seen = await look.read(lambda connection: connection.rows(Statement("SELECT COUNT(*) FROM t")))
    with pytest.raises(Unavailable):
        await look.write(now)
    await look.close()
    await store.close()

    assert seen == [(0,)]
