"""Fixtures that several folders of tests share: services, and one engine after the other."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import services
from retinue.clock import SystemClock
from retinue.storage.database import Engine
from retinue.storage.sqlite import InlineSqlite, Sqlite

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

ENGINES = ["sqlite", "sqlite-inline", pytest.param("postgres", marks=pytest.mark.postgres)]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        services.begin_session()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        services.end_session()


def pytest_terminal_summary(terminalreporter: "TerminalReporter") -> None:
    """Name what was not tested because something is not installed here."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if services.MISSING in reason:
            name = reason.partition(services.MISSING)[2]
            reasons[name] = reasons.get(name, 0) + 1
    for name, tests in reasons.items():
        terminalreporter.write_line(f"NOT TESTED, {services.MISSING}{name}: {tests} tests skipped", yellow=True)


@pytest.fixture(scope="session")
def postgres_server() -> services.PostgresServer:
    return services.shared_postgres()


@pytest.fixture
def postgres_url(postgres_server: services.PostgresServer) -> Iterator[str]:
    """The address of a database of the test's own."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "retinue.db"


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, sqlite_path: Path) -> AsyncIterator[Engine]:
    """Every engine in turn, new and migrated."""
    opened: Engine
    if request.param == "postgres":
        from retinue.storage.postgres import Postgres

        opened = Postgres(request.getfixturevalue("postgres_url"), SystemClock())
    elif request.param == "sqlite":
        opened = Sqlite(sqlite_path, SystemClock())
    else:
        opened = InlineSqlite(SystemClock())
    yield opened
    await opened.close()
