"""PostgreSQL restarted under load, in every way: what was acknowledged is there, and work resumes without a person."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

import services
from retinue.clock import SystemClock
from retinue.errors import RetinueError, StoreNotDurable, Unavailable
from retinue.storage.database import Connection, Kind, Transaction
from retinue.storage.group import GroupCommit
from retinue.storage.postgres import Postgres
from retinue.storage.sql import Statement

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.real]

CREATE = Statement("CREATE TABLE kept (id text PRIMARY KEY)")
KEEP = Statement("INSERT INTO kept SELECT id FROM {rows k(id text)} ON CONFLICT (id) DO NOTHING")
KEPT = Statement("SELECT id FROM kept ORDER BY id")
WRITERS = 8
RESUMED = 5.0  # seconds after the server is up (INVARIANTS 4)


def _keep(transaction: Transaction, names: Sequence[str]) -> list[None]:
    transaction.run(KEEP, [(name,) for name in names])
    return [None] * len(names)


KIND: Kind[str, None] = Kind("keep", 1, _keep)


@pytest.fixture
def server() -> Iterator[services.PostgresServer]:
    with services.own_postgres() as server:
        yield server


def fast(server: services.PostgresServer) -> None:
    server.stop("fast")


def immediate(server: services.PostgresServer) -> None:
    server.stop("immediate")


def kill_9(server: services.PostgresServer) -> None:
    server.kill()


class Load:
    """Callers that write without a pause, and repeat whatever was not acknowledged."""

    def __init__(self, engine: Postgres) -> None:
        self.acknowledged: list[str] = []
        self.told: set[type[RetinueError]] = set()
        self.last = 0.0
        self._moved = asyncio.Event()
        self._ends = False
        self._groups = GroupCommit(engine, SystemClock(), Random(0))
        self._tasks = [asyncio.create_task(self._groups.run()) for _ in range(engine.writers)]
        self._callers = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]

    async def _write(self, number: int) -> None:
        written = 0
        while not self._ends:
            name = f"{number}-{written}"
            try:
                await self._groups.submit(KIND, name)
            except RetinueError as error:
                self.told.add(type(error))
                await asyncio.sleep(0.01)
            else:
                self.acknowledged.append(name)
                self.last = time.monotonic()
                self._moved.set()
                written += 1

    async def until_it_moves(self) -> None:
        """Return when something more is acknowledged."""
        seen = len(self.acknowledged)
        self._moved.clear()
        while len(self.acknowledged) == seen:
            await self._moved.wait()
            self._moved.clear()

    async def end(self) -> None:
        self._ends = True
        await asyncio.gather(*self._callers)
        self._groups.close()
        await asyncio.gather(*self._tasks)


def kept(connection: Connection) -> list[str]:
    return [row[0] for row in connection.rows(KEPT)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stop", [fast, immediate, kill_9])
async def test_a_restart_under_load_loses_nothing_and_needs_nobody(
    server: services.PostgresServer, stop: Callable[[services.PostgresServer], None]
) -> None:
    engine = Postgres(server.url(), SystemClock())
    await engine.write(lambda transaction: transaction.run(CREATE))
    load = Load(engine)
    resumed: list[float] = []
    for _ in range(3):
        await load.until_it_moves()
        await asyncio.sleep(0.1)
        await in_thread(stop, server)
        await asyncio.sleep(0.3)
        await in_thread(services.PostgresServer.start, server)
        up = time.monotonic()
        await load.until_it_moves()
        resumed.append(load.last - up)
    await load.end()
    stored = await engine.read(kept)
    await engine.close()

    assert stored == sorted(load.acknowledged)
    assert all(issubclass(told, Unavailable) for told in load.told)
    assert load.told
    assert max(resumed) < RESUMED


async def test_a_dead_server_is_told_at_once_and_every_time(server: services.PostgresServer) -> None:
    engine = Postgres(server.url(), SystemClock())
    await engine.read(kept_nothing)
    server.kill()
    began = time.monotonic()

    for _ in range(50):
        with pytest.raises(Unavailable):
            await engine.read(kept_nothing)
    took = time.monotonic() - began
    await engine.close()

    assert took < 1


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_may_lose_commits_is_refused(server: services.PostgresServer, setting: str) -> None:
    server.stop("fast")
    with (server.directory / "data" / "postgresql.conf").open("a") as settings:
        settings.write(f"{setting} = off\n")
    server.start()

    with pytest.raises(StoreNotDurable) as refused:
        Postgres(server.url(), SystemClock())

    assert refused.value.details[setting] == "off"


def test_a_standby_is_refused(server: services.PostgresServer) -> None:
    server.stop("fast")
    (server.directory / "data" / "standby.signal").touch(mode=0o644)
    server.start()

    with pytest.raises(StoreNotDurable) as refused:
        Postgres(server.url(), SystemClock())

    assert refused.value.details["in_recovery"] is True


def kept_nothing(connection: Connection) -> int:
    return len(connection.rows(Statement("SELECT 1")))


async def in_thread(work: Callable[[services.PostgresServer], None], server: services.PostgresServer) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work, server)
