"""What the SQL of all moves shares: counts, events of moves, records of attempts, refusals of stale claims."""

from collections.abc import Sequence
from typing import Any, Final

from retinue.errors import StaleClaim
from retinue.events.model import NewEvent
from retinue.events.store import DENIED
from retinue.storage.database import Chore, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.model import AttemptStatus, FailureCode

SECOND: Final = 1_000_000
ADD_COUNTS = Statement(
    "INSERT INTO counts (team, status, tasks) SELECT team, status, tasks"
    " FROM {rows c(team text, status text, tasks bigint)} WHERE true"
    " ON CONFLICT (team, status) DO UPDATE SET tasks = counts.tasks + excluded.tasks"
)


def _add_counts(transaction: Transaction, changes: Sequence[tuple[str, str, int]]) -> None:
    sums: dict[tuple[str, str], int] = {}
    for team, status, change in changes:
        sums[team, status] = sums.get((team, status), 0) + change
    rows = [(team, status, change) for (team, status), change in sorted(sums.items()) if change]
    if rows:
        transaction.run(ADD_COUNTS, rows)


COUNT: Chore[tuple[str, str, int]] = Chore(60, _add_counts)


def moved(transaction: Transaction, team: str, source: str | None, target: str) -> None:
    """Count a task as `target` instead of `source`."""
    transaction.later(COUNT, [(team, target, 1)] if source is None else [(team, source, -1), (team, target, 1)])


NOW = Statement("SELECT retinue_now()")
ADD_READY = Insert("ready", "queue text, rank bigint, id text, fence bigint")
ADD_TIMERS = Insert("timers", "due_at bigint, task text, kind text", "ON CONFLICT (due_at, task, kind) DO NOTHING")
DROP_RUNNING = Statement(
    "DELETE FROM running WHERE (id, fence) IN (SELECT id, fence FROM {rows m(id text, fence bigint)})"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
ADD_ATTEMPTS = Insert(
    "attempts",
    "task text, fence bigint, id text, node text, status text, digest text, claimed_at bigint, started_at bigint,"
    " ended_at bigint, exit_code bigint, code text, error text",
)


def attempt_row(
    row: Row, status: AttemptStatus, digest: str | None, exit_code: int | None, code: str | None, error: str | None
) -> Row:
    """The record of a held task's attempt, from its deleted `running` row."""
    task, fence, _, node, _, attempt, _, claimed_at, started_at, now = row
    return (task, fence, attempt, node, status, digest, claimed_at, started_at, now, exit_code, code, error)


def task_event(kind: str, team: str, task: str, node: str, fence: int, attempt: str, **data: Any) -> NewEvent:
    """The event of a move that a claim is part of; what of `data` is None is left out."""
    said = {name: value for name, value in data.items() if value is not None}
    # The audit says who did it: what was taken from a node was not its doing.
    taken = kind == "task.orphaned" or data.get("code") in (FailureCode.NODE_LOST, FailureCode.DEADLINE)
    actor = "system" if taken else node
    return NewEvent(team, kind, task, {"task_id": task, "attempt": attempt, "fence": fence, **said}, node, actor)


TEAM_OF = Statement("SELECT team FROM tasks WHERE id = ?")


def stale(transaction: Transaction, task: str, fence: int) -> StaleClaim:
    """The refusal of a stale claim, counted as a denial."""
    team = transaction.row(TEAM_OF, task)
    if team is not None:
        transaction.later(DENIED, [(str(team[0]), task, "STALE_CLAIM")])
    return StaleClaim(task=task, fence=fence)
