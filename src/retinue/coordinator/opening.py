"""A coordinator on the real thing: a data directory, a database, the machine's clock and chance."""

from pathlib import Path
from random import Random  # noqa: TID251 - the type of the port

from retinue.bus.memory import MemoryBus
from retinue.clock import Clock
from retinue.coordinator.app import Coordinator, Ports, Settings, Timing
from retinue.coordinator.datadir import DataDir
from retinue.errors import ConfigInvalid
from retinue.storage.blobs import DirectoryBlobs
from retinue.storage.database import Engine
from retinue.storage.sqlite import Sqlite
from retinue.tasks.prune import Retention


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
    if store_url is None:
        return Sqlite(data_dir.database, clock), 1
    scheme, _, rest = store_url.partition("://")
    if scheme == "sqlite":
        return Sqlite(Path(rest.removeprefix("/") if rest.startswith("/./") else rest), clock), 1
    if scheme in ("postgresql", "postgres"):
        from retinue.storage.postgres import Postgres

        return Postgres(store_url, clock), 2
    raise ConfigInvalid(f"store.url: {scheme}:// is not known; use sqlite:///PATH or postgresql://USER@HOST/NAME.")
