"""Tasks in SQL, looking only: the document of a task, lists of them, what waits and why, the output that is kept."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from retinue.clock import moment
from retinue.nodes.resources import Resources
from retinue.storage.database import Connection
from retinue.storage.sql import Row, Statement
from retinue.tasks.model import HELD, Attempt, AttemptStatus, Progress, Queue, Task, TaskSpec, TaskStatus

_spec = msgspec.json.Decoder(TaskSpec).decode

_TASK: Final = (
    "tasks.id, tasks.status, tasks.spec, tasks.created_at, tasks.ready_at, tasks.finished_at, tasks.exit_code,"
    " tasks.code, tasks.error, tasks.result, tasks.failures, tasks.queue, running.status, running.fence, running.node,"
    " running.attempt, running.claimed_at, running.started_at, nodes.name, progress.data, tasks.attempt,"
    " tasks.waiting_on"
)
COLD: Final = tuple(status.value for status in TaskStatus if status not in HELD and status != "input-required")
_NAMED: Final = (
    "LEFT JOIN nodes ON nodes.id = running.node"
    " LEFT JOIN progress ON progress.task = tasks.id AND progress.fence = COALESCE(running.fence, tasks.fence)"
)
_DOCUMENT: Final = f"SELECT {_TASK} FROM tasks LEFT JOIN running ON running.id = tasks.id {_NAMED}"  # noqa: S608 - ours
ONE: Final = Statement(f"{_DOCUMENT} WHERE tasks.id = ? AND tasks.team = ?")
MANY: Final = Statement(
    f"SELECT {_TASK} FROM {{rows m(id text)}} CROSS JOIN tasks"  # noqa: S608 - text of ours
    f" LEFT JOIN running ON running.id = tasks.id {_NAMED} WHERE tasks.id = m.id AND tasks.team = ?"
)
# The newest of each status, merged: the index that finds tasks by status serves this too; no write pays for another.
_NEWEST: Final = " UNION ALL ".join(
    f"SELECT id FROM (SELECT id FROM tasks WHERE team = ? AND status = '{status}'"  # noqa: S608 - as above
    f" AND id < ? ORDER BY id DESC LIMIT ?) {status}"
    for status in COLD
)
PAGE: Final = Statement(
    f"{_DOCUMENT} WHERE tasks.id IN"  # noqa: S608 - as above
    f" (SELECT id FROM ({_NEWEST}) newest ORDER BY id DESC LIMIT ?) ORDER BY tasks.id DESC"
)
BY_STATUS: Final = Statement(
    f"{_DOCUMENT} WHERE tasks.team = ? AND tasks.status = ? AND tasks.id < ?"
    " AND running.id IS NULL ORDER BY tasks.id DESC LIMIT ?"
)
HELD_BY_STATUS: Final = Statement(
    f"SELECT {_TASK} FROM running CROSS JOIN tasks {_NAMED}"  # noqa: S608 - text of ours
    " WHERE running.team = ? AND running.status = ? AND running.id < ? AND tasks.id = running.id"
    " ORDER BY running.id DESC LIMIT ?"
)
ATTEMPTS: Final = Statement(
    "SELECT attempts.id, attempts.status, attempts.fence, COALESCE(nodes.name, attempts.node), attempts.claimed_at,"
    " attempts.started_at, attempts.ended_at, attempts.exit_code, attempts.code, attempts.error, attempts.task"
    " FROM attempts LEFT JOIN nodes ON nodes.id = attempts.node"
    " WHERE attempts.task IN (SELECT id FROM {rows m(id text)}) ORDER BY attempts.task, attempts.fence"
)
UNFINISHED_PARENTS: Final = Statement(
    "SELECT edges.parent FROM edges JOIN tasks ON tasks.id = edges.parent WHERE edges.child = ?"
    " AND tasks.finished_at IS NULL ORDER BY edges.parent LIMIT 20"
)
BUSY: Final = Statement("SELECT node, COUNT(*) FROM running GROUP BY node")
OPEN: Final = Statement("SELECT 1 FROM tasks WHERE id = ? AND finished_at IS NULL")
COUNTS: Final = Statement("SELECT status, tasks FROM counts WHERE team = ?")
QUEUES: Final = Statement("SELECT id, team, labels, requires, node, resources FROM queues ORDER BY id")
QUEUE: Final = Statement("SELECT id, team, labels, requires, node, resources FROM queues WHERE id = ?")
WAITING: Final = Statement("SELECT 1 FROM ready WHERE queue = ? ORDER BY rank, id LIMIT 1")
LINE: Final = Statement("SELECT rank, id FROM ready WHERE queue = ? ORDER BY rank, id LIMIT ?")


def task(connection: Connection, team: str, task_id: str) -> Task | None:
    """The document of a task of this team, with its attempts; None for a foreign id as for a missing one."""
    rows = connection.rows(ONE, task_id, team)
    return _documents(connection, rows)[0] if rows else None


def many(connection: Connection, team: str, task_ids: Sequence[str]) -> list[Task]:
    """The documents of those of these tasks that are this team's."""
    return _documents(connection, connection.rows(MANY, [(task_id,) for task_id in task_ids], team))


def is_over(connection: Connection, task_id: str) -> bool:
    """Whether a task has ended, or is not there any more."""
    return not connection.rows(OPEN, task_id)


def tasks(connection: Connection, team: str, *, status: TaskStatus | None, before: str, limit: int) -> list[Task]:
    """A page of a team's tasks, newest first, from before this id on."""
    if status is None:
        rows = connection.rows(PAGE, *[team, before, limit] * len(COLD), limit)
    elif status in (TaskStatus.CLAIMED, TaskStatus.RUNNING):
        rows = connection.rows(HELD_BY_STATUS, team, status, before, limit)
    else:
        rows = connection.rows(BY_STATUS, team, status, before, limit)
    return _documents(connection, rows)


def _documents(connection: Connection, rows: Sequence[Row]) -> list[Task]:
    attempts: dict[str, list[Attempt]] = {}
    for row in connection.rows(ATTEMPTS, [(row[0],) for row in rows]):
        attempts.setdefault(row[10], []).append(_attempt(row))
    return [_document(row, attempts.get(row[0], [])) for row in rows]


def _attempt(row: Row) -> Attempt:
    return Attempt(
        id=row[0], status=AttemptStatus(row[1]), fence=row[2], node=row[3], claimed_at=moment(row[4]),
        started_at=_moment(row[5]), ended_at=_moment(row[6]), exit_code=row[7], code=row[8], error=row[9],
    )  # fmt: skip


def _document(row: Row, attempts: list[Attempt]) -> Task:
    (task_id, status, spec_text, created_at, ready_at, finished_at, exit_code, code, error, result, _, _,
     held, fence, node, attempt, claimed_at, started_at, node_name, progress, last_attempt, _) = row  # fmt: skip
    spec = _spec(spec_text)
    if held is not None:
        current = Attempt(
            attempt, AttemptStatus(held), fence, node_name or node, moment(claimed_at), _moment(started_at)
        )
        attempts = [*attempts, current]
    last = attempts[-1] if attempts else None
    return Task(
        id=task_id,
        name=spec.name,
        description=spec.description,
        repo=spec.repo,
        command=spec.command,
        function=spec.function,
        priority=spec.priority,
        labels=spec.labels,
        tags=spec.tags,
        requires=spec.requires,
        node=spec.node,
        resources=spec.resources,
        status=TaskStatus(held or status),
        claimed_by=node_name if held else last.node if last else None,
        claimed_at=_moment(claimed_at) if held else last.claimed_at if last else None,
        attempt=attempt or last_attempt,
        attempts=attempts,
        created_at=moment(created_at),
        ready_at=_moment(ready_at) if status != TaskStatus.BLOCKED else None,
        started_at=_moment(started_at) if held else last.started_at if last else None,
        finished_at=_moment(finished_at),
        result=None if result is None else msgspec.json.decode(result),
        exit_code=exit_code,
        code=code,
        error=error,
        progress=None if progress is None else msgspec.json.decode(progress, type=Progress),
        parent=spec.parent,
        after=spec.after,
        max_attempts=spec.max_attempts,
        timeout_seconds=spec.timeout_seconds,
        deadline=spec.deadline,
        on_node_loss=spec.on_node_loss,
    )


def _moment(at: int | None) -> Any:
    return None if at is None else moment(at)


def unfinished_parents(connection: Connection, task_id: str) -> list[str]:
    """Which parents a blocked task waits for, at most 20."""
    return [str(row[0]) for row in connection.rows(UNFINISHED_PARENTS, task_id)]


def busy(connection: Connection) -> dict[str, int]:
    """How many tasks each node holds."""
    return {str(node): int(held) for node, held in connection.rows(BUSY)}


def counts(connection: Connection, team: str) -> dict[str, int]:
    """How many tasks of a team are in each status."""
    return {str(status): int(number) for status, number in connection.rows(COUNTS, team) if number}


def queues(connection: Connection) -> list[Queue]:
    """Every queue there is."""
    return [_queue(row) for row in connection.rows(QUEUES)]


def live_queues(connection: Connection) -> list[Queue]:
    """The queues in which somebody waits."""
    return [queue for queue in queues(connection) if connection.rows(WAITING, queue.id)]


def queue(connection: Connection, queue_id: str) -> Queue | None:
    """The queue with this id."""
    rows = connection.rows(QUEUE, queue_id)
    return _queue(rows[0]) if rows else None


def line(connection: Connection, queue_id: str, most: int) -> list[tuple[int, str]]:
    """The first tasks of a queue, as (rank, id)."""
    return [(int(rank), str(task_id)) for rank, task_id in connection.rows(LINE, queue_id, most)]


def _queue(row: Row) -> Queue:
    queue_id, team, labels, requires, node, resources = row
    return Queue(
        queue_id,
        team,
        msgspec.json.decode(labels),
        tuple(msgspec.json.decode(requires)),
        node,
        msgspec.json.decode(resources, type=Resources),
    )
