"""The schema: migrated once, the same on both engines, refused when it is newer than the program."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from retinue.clock import SystemClock
from retinue.errors import StoreNewer
from retinue.storage import schema
from retinue.storage.database import Engine, Transaction
from retinue.storage.postgres import Postgres
from retinue.storage.sql import Statement
from retinue.storage.sqlite import InlineSqlite, Sqlite

Opener = Callable[[], Engine]
Columns = dict[str, set[tuple[str, bool]]]  # per table: name and whether it may be NULL


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def opens(request: pytest.FixtureRequest, sqlite_path: Path) -> Opener:
    """Open the same store, again and again."""
    if request.param == "sqlite":
        return lambda: Sqlite(sqlite_path, SystemClock())
    url = request.getfixturevalue("postgres_url")
    return lambda: Postgres(url, SystemClock())


def claim(version: int) -> Callable[[Transaction], None]:
    """Pretend that a program of this version was here."""

    def work(transaction: Transaction) -> None:
        transaction.run(schema.WRITE_META, "version", str(version))
        transaction.run(schema.WRITE_META, "min_compatible", str(version))

    return work


async def test_a_new_store_has_this_programs_version(engine: Engine) -> None:
    found = await engine.read(lambda connection: schema.read_int(connection, "version"))

    assert found == schema.VERSION


async def test_a_store_is_migrated_once(opens: Opener) -> None:
    first = opens()
    await first.write(lambda transaction: transaction.run(schema.WRITE_META, "epoch", "3"))
    await first.close()

    again = opens()
    epoch = await again.read(schema.epoch)
    held = await again.write(lambda transaction: transaction.epoch)
    await again.close()

    assert (epoch, held) == (3, 3)


async def test_a_store_that_asks_for_a_newer_program_is_refused_and_left_alone(opens: Opener) -> None:
    first = opens()
    await first.write(claim(schema.VERSION + 1))
    await first.close()

    with pytest.raises(StoreNewer) as refused:
        opens()

    assert refused.value.details == {"schema": schema.VERSION + 1, "known": schema.VERSION}


def test_statements_end_at_the_end_of_a_line() -> None:
    text = "-- a comment; with one\nCREATE TABLE a (x text);\nCREATE FUNCTION f() AS 'SELECT 1; SELECT 2';\n"

    assert schema.split(text) == ["CREATE TABLE a (x text)", "CREATE FUNCTION f() AS 'SELECT 1; SELECT 2'"]


@pytest.mark.postgres
async def test_both_engines_have_the_same_tables_columns_and_indexes(postgres_url: str) -> None:
    await Postgres(postgres_url, SystemClock()).close()
    store = InlineSqlite(SystemClock())

    ours, theirs = sqlite_columns(store), postgres_columns(postgres_url)
    await store.close()

    assert ours == theirs


def sqlite_columns(store: InlineSqlite) -> Columns:
    listed = store.raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables: Columns = {}
    for (table,) in listed:
        found = store.raw.execute('SELECT name, "notnull", pk FROM pragma_table_info(?)', (table,)).fetchall()
        tables[table] = {(name, not (required or key)) for name, required, key in found}
    indexes = store.raw.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    tables["indexes"] = {(name, False) for (name,) in indexes}
    return tables


def postgres_columns(url: str) -> Columns:
    tables: Columns = {}
    with psycopg.connect(url) as connection:
        found = connection.execute(
            "SELECT table_name, column_name, is_nullable = 'YES' FROM information_schema.columns"
            " WHERE table_schema = 'public'"
        )
        for table, column, optional in found:
            tables.setdefault(table, set()).add((column, optional))
        indexes = connection.execute(
            "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname NOT LIKE '%_key'"
            " AND indexname NOT LIKE '%_pkey'"
        )
        tables["indexes"] = {(name, False) for (name,) in indexes}
    return tables


async def test_the_lease_clock_is_part_of_every_store(engine: Engine) -> None:
    found = await engine.read(lambda connection: connection.rows(Statement("SELECT retinue_now()")))

    assert found[0][0] > 1_700_000_000_000_000
