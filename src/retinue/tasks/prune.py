"""Everything has an end: what is older than its retention is deleted in small bites, before what it hangs on."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from retinue.errors import RetinueError
from retinue.events import store as events
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Statement
from retinue.tasks.rows import COUNT
from retinue.teams import store as teams

BITE: Final = 1000


class Retention(msgspec.Struct, frozen=True):
    """How long each kind of record is kept, in seconds."""

    events: float = 30 * 86400
    tasks: float = 90 * 86400
    logs: float = 30 * 86400
    keys: float = 86400


class Pruned(msgspec.Struct, frozen=True):
    """How many records went, and the digests of blobs that nothing names any more."""

    events: int = 0
    tasks: int = 0
    logs: int = 0
    keys: int = 0
    blobs: tuple[str, ...] = ()


NOW: Final = Statement("SELECT retinue_now()")
OLD_KEYS: Final = Statement(
    "DELETE FROM idempotency WHERE (team, principal, route, key) IN"
    " (SELECT team, principal, route, key FROM idempotency WHERE at < ? ORDER BY at LIMIT ?)"
)
OLD_LOGS: Final = Statement(
    "DELETE FROM logs WHERE (attempt, stream, start) IN"
    " (SELECT attempt, stream, start FROM logs WHERE at < ? ORDER BY at LIMIT ?) RETURNING digest"
)
# A finished task stays while an unfinished one waits for it, and while there is one below it: a cancel has to find its
# way down to what is unfinished there. So those below go first.
_AFTER: Final = (
    "EXISTS (SELECT 1 FROM edges JOIN tasks c ON c.id = edges.child"
    " WHERE edges.parent = tasks.id AND c.finished_at IS NULL)"
)
_BELOW: Final = "EXISTS (SELECT 1 FROM tasks c WHERE c.parent = tasks.id)"
OLD_TASKS: Final = Statement(
    f"SELECT id, team, status FROM tasks WHERE finished_at < ? AND NOT {_AFTER} AND NOT {_BELOW}"  # noqa: S608
    " ORDER BY finished_at LIMIT ?{postgres: FOR UPDATE SKIP LOCKED}"
)
# Looked at again under the lock: a child may have been committed between the look and the lock.
NAMED_NOW: Final = Statement(
    f"SELECT id FROM tasks WHERE id IN (SELECT id FROM {{rows m(id text)}}) AND ({_AFTER} OR {_BELOW})"  # noqa: S608
)
OLD_DENIALS: Final = Statement(
    "DELETE FROM denials WHERE (team, who, what, minute) IN"
    " (SELECT team, who, what, minute FROM denials WHERE minute < ? ORDER BY minute LIMIT ?)"
)
LOGS_OF: Final = Statement(
    "DELETE FROM logs WHERE attempt IN (SELECT attempts.id FROM attempts"
    " WHERE attempts.task IN (SELECT id FROM {rows m(id text)})) RETURNING digest"
)
DROPS: Final = tuple(
    Statement(f"DELETE FROM {table} WHERE {column} IN (SELECT id FROM {{rows m(id text)}})")  # noqa: S608 - as above
    for table, column in (
        ("attempts", "task"),
        ("edges", "child"),
        ("edges", "parent"),
        ("progress", "task"),
        ("tasks", "id"),
    )
)
STILL_NAMED: Final = Statement("SELECT DISTINCT digest FROM logs WHERE digest IN (SELECT id FROM {rows m(id text)})")


def _prune(transaction: Transaction, items: Sequence[Retention]) -> list[Pruned | RetinueError]:
    return [_bite(transaction, item) for item in items]


def _bite(transaction: Transaction, keep: Retention) -> Pruned:
    now = int(transaction.rows(NOW)[0][0])

    def before(seconds: float) -> int:
        return now - int(seconds * 1_000_000)

    gone_events = sum(
        events.prune(transaction, team, before(keep.events), BITE) for team in teams.names(transaction.connection)
    )
    gone_keys = transaction.run(OLD_KEYS, before(keep.keys), BITE)
    transaction.run(OLD_DENIALS, before(keep.events) // 60_000_000, BITE)
    logs = transaction.rows(OLD_LOGS, before(keep.logs), BITE)
    gone_logs = len(logs)
    digests = {row[0] for row in logs}
    finished = transaction.rows(OLD_TASKS, before(keep.tasks), BITE)
    if finished:
        named = {row[0] for row in transaction.rows(NAMED_NOW, [(row[0],) for row in finished])}
        finished = [row for row in finished if row[0] not in named]
    old = [(row[0],) for row in finished]
    if old:
        transaction.later(COUNT, [(team, status, -1) for _, team, status in finished])
        digests |= {row[0] for row in transaction.rows(LOGS_OF, old)}
        for drop in DROPS:
            transaction.run(drop, old)
    return Pruned(gone_events, len(old), gone_logs, gone_keys, _unnamed(transaction, digests))


def _unnamed(transaction: Transaction, digests: Iterable[str | None]) -> tuple[str, ...]:
    known = sorted(digest for digest in digests if digest is not None)
    if not known:
        return ()
    named = {row[0] for row in transaction.rows(STILL_NAMED, [(digest,) for digest in known])}
    return tuple(digest for digest in known if digest not in named)


PRUNE: Final[Kind[Retention, Pruned]] = Kind("prune", 70, _prune)
