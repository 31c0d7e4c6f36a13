"""Teams in SQL."""

from collections.abc import Sequence

from retinue.errors import RetinueError
from retinue.storage.database import Connection, Kind, Transaction
from retinue.storage.sql import Statement

CREATE = Statement(
    "INSERT INTO teams (id, name, created_at) VALUES (?, ?, retinue_now()) ON CONFLICT (name) DO NOTHING"
)
BY_NAME = Statement("SELECT id FROM teams WHERE name = ?")
ALL = Statement("SELECT id, name FROM teams ORDER BY id")


def ensure(transaction: Transaction, name: str, new_id: str) -> str:
    """The id of the team with this name, made with `new_id` if there was none."""
    transaction.run(CREATE, new_id, name)
    return str(transaction.rows(BY_NAME, name)[0][0])


def _ensure(transaction: Transaction, items: Sequence[tuple[str, str]]) -> list[str | RetinueError]:
    """Each item is (name, new id)."""
    return [ensure(transaction, name, new_id) for name, new_id in items]


ENSURE: Kind[tuple[str, str], str] = Kind("team.ensure", 1, _ensure)


def by_name(connection: Connection, name: str) -> str | None:
    """The id of the team with this name."""
    rows = connection.rows(BY_NAME, name)
    return str(rows[0][0]) if rows else None


def names(connection: Connection) -> dict[str, str]:
    """Every team's name by its id."""
    return {str(team): str(name) for team, name in connection.rows(ALL)}
