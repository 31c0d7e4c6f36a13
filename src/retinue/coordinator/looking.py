"""The reading half of a coordinator, on a data directory that another process may hold. It starts nothing."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random  # noqa: TID251 - the type of the port

from retinue.bus.memory import MemoryBus
from retinue.clock import Clock
from retinue.coordinator.app import Coordinator, Ports, Settings
from retinue.coordinator.datadir import DataDir, holder
from retinue.coordinator.opening import abandon_nodes, open_coordinator, open_engine, store_file
from retinue.errors import DataDirHeld, NotFound, StoreNewer, Unavailable
from retinue.nodes.model import NodeStatus, Offer
from retinue.nodes.store import nodes
from retinue.storage import schema
from retinue.storage.blobs import Blobs, DirectoryBlobs
from retinue.storage.database import Connection, Engine
from retinue.storage.sqlite import InlineSqlite, ReadOnlySqlite
from retinue.tasks import read
from retinue.teams import store as teams


class Looking(Coordinator):
    """Answers what can be answered by reading; the connected nodes are those that the store calls online."""

    _online: Sequence[Offer] = ()

    async def start(self) -> None:
        """Learn which team's records these are, and which nodes are there."""

        def first(connection: Connection) -> tuple[str, list[Offer]]:
            team = teams.by_name(connection, self.settings.team) or ""
            online = [node for node in nodes(connection, team) if node.status != NodeStatus.OFFLINE]
            return team, [
                Offer(n.id, n.name, team, n.boot, n.workers, n.labels, frozenset(n.capabilities), n.resources)
                for n in online
            ]

        self.team, self._online = await self.ports.engine.read(first)

    async def stop(self) -> None:
        await self.ports.engine.close()

    def offers(self) -> Sequence[Offer]:
        return self._online


class NoBlobs:
    """Beside a store that is not there."""

    async def put(self, data: bytes) -> str:
        raise NotFound

    async def get(self, digest: str) -> bytes:
        raise NotFound

    async def drop(self, digests: Iterable[str]) -> None:
        """There is nothing to forget."""


async def open_looking(path: Path, store_url: str | None, clock: Clock, random: Random) -> tuple[Looking, str | None]:
    """A started `Looking`, and a sentence about what it looks at, if there is something to say.

    What a dead process left is settled first, when nobody holds the directory: it would read as still running.

    Raises:
        StoreNewer: a newer program wrote the store. ConfigInvalid, Unavailable: it cannot be read.
    """
    file = store_file(path, store_url)
    engine: Engine
    blobs: Blobs
    note: str | None = None
    if file is None:  # a server: several may use it, and none of them is in the way
        engine, blobs = open_engine(DataDir(path), store_url, clock)[0], DirectoryBlobs(path / "blobs")
    elif not _is_there(file):
        engine, blobs = InlineSqlite(clock), NoBlobs()
        note = f"There is nothing in {path} yet; `retinue run -- CMD` begins it."
    else:
        held = holder(path)
        engine, blobs = ReadOnlySqlite(file, clock), DirectoryBlobs(path / "blobs")
        if held is not None:
            note = f"Only looking: process {held['pid']} ({held.get('command', 'unknown')}) works in {path}."
        elif await engine.read(_unsettled):
            await _settle(path, store_url, clock, random)
    settings = Settings(key=b"")
    looking = Looking(Ports(clock, random, engine, MemoryBus(), blobs), settings)
    await looking.start()
    return looking, note


def _is_there(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Unavailable(f"{file} cannot be read: {os.strerror(error.errno or 0)}.") from error


def _unsettled(connection: Connection) -> bool:
    """Whether a process that is gone left something behind that only an owner of the directory can settle."""
    version, needed = schema.read_int(connection, "version"), schema.read_int(connection, "min_compatible")
    if needed > schema.VERSION:
        raise StoreNewer(
            f"The store was written by a newer Retinue (schema {version}, this program knows {schema.VERSION}); "
            "update this program, or use another data directory."
        )
    online = any(n.status != NodeStatus.OFFLINE for team in teams.names(connection) for n in nodes(connection, team))
    return version < schema.VERSION or online or bool(read.busy(connection))


async def _settle(path: Path, store_url: str | None, clock: Clock, random: Random) -> None:
    """Be the owner for a moment. Where that is impossible, what is there is shown as it is."""
    data_dir = DataDir(path)
    try:
        data_dir.hold(brief=True)
    except DataDirHeld:
        return
    try:
        coordinator = open_coordinator(data_dir, store_url, clock, random)
        try:
            await coordinator.start()
            await abandon_nodes(coordinator)
        finally:
            await coordinator.stop()
    except Unavailable:
        pass  # such as a full disk
    finally:
        data_dir.release()
