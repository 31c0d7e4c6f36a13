"""A coordinator on the real thing: a data directory, a database, the machine's clock and chance."""

from pathlib import Path
from random import Random  # noqa: TID251 - the type of the port
from typing import Final

import msgspec

from retinue.bus.memory import MemoryBus
from retinue.clock import Clock
from retinue.coordinator.app import Coordinator, Ports, Settings, Timing
from retinue.coordinator.datadir import DataDir
from retinue.errors import ConfigInvalid
from retinue.events.store import highest
from retinue.nodes.model import NodeStatus
from retinue.nodes.store import LEAVES, nodes
from retinue.storage import schema
from retinue.storage.blobs import DirectoryBlobs
from retinue.storage.database import Engine, Transaction
from retinue.storage.sqlite import Sqlite
from retinue.tasks.losses import HELLO, Presence
from retinue.tasks.prune import Retention
from retinue.teams import store as teams

# A boot that no process has: what a dead one claimed may have begun without our knowing, so it counts as lost with its
# node and is not handed back as if nothing had happened. What may never be started twice depends on that.
NOBODY: Final = ""


def open_coordinator(
    data_dir: DataDir,
    store_url: str | None,
    clock: Clock,
    random: Random,
    *,
    timing: Timing | None = None,
    retention: Retention | None = None,
) -> Coordinator:
    """A coordinator that is not started yet. Blocks while the store is opened and migrated.

    Raises:
        ConfigInvalid: the store's URL is none. StoreNewer, StoreNotDurable, Unavailable: it cannot be used.
    """
    engine, writers = open_engine(data_dir, store_url, clock)
    settings = Settings(
        key=data_dir.key(random),
        writers=writers,
        alone=writers == 1,
        timing=timing or Timing(),
        retention=retention or Retention(),
        remembered=data_dir.remembered(),
        remember=data_dir.remember,
    )
    return Coordinator(Ports(clock, random, engine, MemoryBus(), DirectoryBlobs(data_dir.blobs)), settings)


def open_engine(data_dir: DataDir, store_url: str | None, clock: Clock) -> tuple[Engine, int]:
    """The database behind a URL, and how many connections may write to it.

    Raises:
        ConfigInvalid: the URL is none. StoreNewer, StoreNotDurable, Unavailable: it cannot be used.
    """
    file = store_file(data_dir.path, store_url)
    if file is not None:
        return Sqlite(file, clock), 1
    from retinue.storage.postgres import Postgres

    return Postgres(str(store_url), clock), 2


def store_file(data_dir: Path, store_url: str | None) -> Path | None:
    """The SQLite file that is meant; None when it is a PostgreSQL server.

    Raises:
        ConfigInvalid: the URL is neither.
    """
    if store_url is None:
        return data_dir / "retinue.db"
    scheme, _, rest = store_url.partition("://")
    if scheme == "sqlite" and rest.strip("/"):
        return Path(rest.removeprefix("/") if rest.startswith("/./") else rest)
    if scheme in ("postgresql", "postgres"):
        return None
    raise ConfigInvalid(f"store.url: {store_url} is not known; use sqlite:///PATH or postgresql://USER@HOST/NAME.")


async def abandon_nodes(coordinator: Coordinator) -> None:
    """Give back what the nodes of dead processes hold and call them offline. Only for who holds the data directory:
    then every node that was inside another process is gone."""
    known = await coordinator.database.read(lambda connection: nodes(connection, coordinator.team))
    for node in known:
        if node.status != NodeStatus.OFFLINE:
            await coordinator.database.submit(HELLO, Presence(node.id, NOBODY, ()))
            await coordinator.database.submit(LEAVES, (node.id, node.boot))


async def abandon_boot(coordinator: Coordinator, name: str, boot: str) -> None:
    """Give back what this process of a node held, as it is known to be dead; nothing when another came after it."""
    for node in await coordinator.database.read(lambda connection: nodes(connection, coordinator.team)):
        if (node.name, node.boot) == (name, boot) and node.status != NodeStatus.OFFLINE:
            await coordinator.database.submit(HELLO, Presence(node.id, NOBODY, ()))
            await coordinator.database.submit(LEAVES, (node.id, boot))


class Accepted(msgspec.Struct, frozen=True):
    """What became of a store that was behind: what this machine remembered, what was found, the epoch it has now."""

    remembered: tuple[int, int]
    found: tuple[int, int]
    epoch: int


async def accept_restore(data_dir: DataDir, store_url: str | None, clock: Clock) -> Accepted | None:
    """Take a restored store as it is: a new epoch voids every claim of before. None when it was not behind.

    Raises:
        StoreNewer, StoreNotDurable, Unavailable: it cannot be used.
    """
    engine, _ = open_engine(data_dir, store_url, clock)
    try:
        found = await engine.read(lambda connection: (connection.epoch, highest(connection)))
        remembered = data_dir.remembered()
        if found >= remembered:
            return None
        epoch = max(found[0], remembered[0]) + 1

        def accept(transaction: Transaction) -> int:
            transaction.run(schema.WRITE_META, "epoch", str(epoch))
            every = [
                node for team in teams.names(transaction.connection) for node in nodes(transaction.connection, team)
            ]
            HELLO.apply(transaction, [Presence(node.id, NOBODY, ()) for node in every])
            return epoch

        await engine.write(accept)
        position = await engine.read(highest)
        data_dir.remember(epoch, position)
    finally:
        await engine.close()
    return Accepted(remembered, found, epoch)
