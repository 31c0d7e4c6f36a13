"""The schema and its versions. A migration expands in one release; what it replaces goes in the next.

The store says (version, min_compatible): a program older than `min_compatible` refuses to open it.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Protocol

from retinue.errors import StoreNewer
from retinue.storage.database import Connection
from retinue.storage.sql import Statement, only


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: the version it leads to and the oldest program version that may still use the result."""

    version: int
    min_compatible: int
    file: str


MIGRATIONS: Final = (Migration(1, 1, "0001_tasks.sql"),)
VERSION: Final = MIGRATIONS[-1].version

READ_META: Final = Statement("SELECT value FROM meta WHERE key = ?")
WRITE_META: Final = Statement(
    "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
)
CREATE_META: Final = "CREATE TABLE IF NOT EXISTS meta (key text PRIMARY KEY, value text NOT NULL)"


class Migrating(Connection, Protocol):
    """A connection that also runs the several statements of a migration."""

    def script(self, text: str) -> None:
        """Run them all inside the open transaction."""


def migrate(connection: Migrating, dialect: str, upto: int = VERSION) -> None:
    """Bring the store to this program's version, inside the caller's transaction.

    Raises:
        StoreNewer: the store asks for a newer program.
    """
    connection.script(CREATE_META)
    version, min_compatible = read_int(connection, "version"), read_int(connection, "min_compatible")
    if min_compatible > VERSION:
        raise StoreNewer(
            f"The store was written by a newer Retinue (schema {version}, this program knows {VERSION}); "
            "update this program, or use another data directory.",
            schema=version,
            known=VERSION,
        )
    for step in MIGRATIONS:
        if version < step.version <= upto:
            text = files("retinue.storage.migrations").joinpath(step.file).read_text()
            connection.script(only(text, dialect))
            connection.run(WRITE_META, "version", str(step.version))
            connection.run(WRITE_META, "min_compatible", str(step.min_compatible))


def read_int(connection: Connection, key: str) -> int:
    """A number of the store's own bookkeeping; 0 when it was never written."""
    found = connection.rows(READ_META, key)
    return int(found[0][0]) if found else 0


def epoch(connection: Connection) -> int:
    """The restore epoch: the high bits of every fence, raised by `restore --accept`."""
    return read_int(connection, "epoch")


def split(text: str) -> list[str]:
    """The statements of a migration. Function bodies are written on one line, so a `;` at a line's end ends one."""
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in f"{bare}\n".split(";\n") if statement.strip()]
