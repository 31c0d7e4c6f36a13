"""Tasks in SQL, what an attempt's end leads to: a result, another try, a failure; and what that means for children."""

from collections.abc import Sequence

import msgspec

from retinue.clock import micros
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.storage.database import Transaction
from retinue.storage.sql import Row, Statement
from retinue.tasks.model import (
    Ending,
    FailureCode,
    TaskSpec,
    TaskStatus,
    rank,
)
from retinue.tasks.queues import make_ready
from retinue.tasks.rows import ADD_TIMERS, NOW, moved, task_event

_encode = msgspec.json.Encoder().encode
_spec = msgspec.json.Decoder(TaskSpec).decode

END = Statement(
    "UPDATE tasks SET status = m.status, finished_at = retinue_now(), fence = m.fence, attempt = m.attempt,"
    " exit_code = m.exit_code, code = m.code, error = m.error, result = m.result"
    " FROM {rows m(id text, status text, fence bigint, attempt text, exit_code bigint, code text, error text,"
    " result text)} WHERE tasks.id = m.id"
)
TRIES = Statement(
    "SELECT id, queue, rank, spec, failures, losses FROM tasks"
    " WHERE id IN (SELECT id FROM {rows m(id text)}) ORDER BY id"
)
FAILED_ONCE = Statement(
    "UPDATE tasks SET status = m.status, failures = m.failures, losses = m.losses, rank = m.rank,"
    " ready_at = m.ready_at, fence = m.fence, attempt = COALESCE(m.attempt, tasks.attempt), exit_code = m.exit_code,"
    " code = m.code, error = m.error"
    " FROM {rows m(id text, status text, failures bigint, losses bigint, rank bigint, ready_at bigint, fence bigint,"
    " attempt text, exit_code bigint, code text, error text)} WHERE tasks.id = m.id"
)


def completed(transaction: Transaction, ended: Sequence[tuple[Row, Ending]]) -> None:
    """Attempts with an accepted result: their tasks are over."""
    if not ended:
        return
    transaction.run(
        END,
        [
            (r[0], TaskStatus.COMPLETED, r[1], r[5], e.exit_code, None, None,
             None if e.result is None else _encode(e.result).decode())
            for r, e in ended
        ],
    )  # fmt: skip
    for row, _ in ended:
        moved(transaction, row[2], row[6], TaskStatus.COMPLETED)
    transaction.later(
        APPEND,
        (
            task_event("task.completed", r[2], r[0], r[3], r[1], r[5], exit_code=e.exit_code, digest=e.digest())
            for r, e in ended
        ),
    )
    parents_ended(transaction, [r[0] for r, _ in ended], completed=True)


def failed_for_good(transaction: Transaction, over: Sequence[tuple[Row, Ending]]) -> None:
    """Attempts after which there is none: their tasks are failed."""
    if not over:
        return
    transaction.run(
        END,
        [
            (r[0], TaskStatus.FAILED, r[1], r[5], e.exit_code, e.code or FailureCode.EXIT, e.error, None)
            for r, e in over
        ],
    )
    for row, _ in over:
        moved(transaction, row[2], row[6], TaskStatus.FAILED)
    transaction.later(
        APPEND,
        (
            task_event(
                "task.failed",
                r[2],
                r[0],
                r[3],
                r[1],
                r[5],
                exit_code=e.exit_code,
                code=e.code or FailureCode.EXIT,
                error=e.error,
            )
            for r, e in over
        ),
    )
    parents_ended(transaction, [r[0] for r, _ in over], completed=False)


class Again(msgspec.Struct, frozen=True):
    """A held task that goes back into its line, with what its lost or failed attempt left."""

    row: Row
    spec: str
    queue: str
    rank: int
    failures: int
    losses: int
    wait: int  # microseconds
    ending: Ending
    event: str
    recorded: bool = True  # the attempt is in `attempts`


def wait_again(transaction: Transaction, again: Sequence[Again]) -> None:
    """Waiting once more, under the next fence: at its old rank, or after a backoff at a new one."""
    if not again:
        return
    updates: list[Row] = []
    ready: list[tuple[str, str, str, int, int]] = []
    timers: list[Row] = []
    facts: list[NewEvent] = []
    for one in again:
        task, fence, team, node, _, attempt, held, *_, now = one.row
        at = now + one.wait
        order = rank(at, _spec(one.spec).priority) if one.wait else one.rank
        status = TaskStatus.SCHEDULED if one.wait else TaskStatus.PENDING
        e = one.ending
        updates.append(
            (task, status, one.failures, one.losses, order, at, fence, attempt if one.recorded else None,
             e.exit_code, e.code, e.error)
        )  # fmt: skip
        if one.wait:
            timers.append((at, task, "ready"))
        else:
            ready.append((task, team, one.spec, order, fence))
        moved(transaction, team, held, status)
        facts.append(task_event(one.event, team, task, node, fence, attempt, status=status, code=e.code, error=e.error))
    transaction.run(FAILED_ONCE, updates)
    transaction.insert(ADD_TIMERS, timers)
    if timers:
        transaction.hint("timers")
    make_ready(transaction, ready)
    transaction.later(APPEND, facts)


SPOILED = Statement(
    "SELECT DISTINCT e.child FROM {rows m(id text)} JOIN edges e ON e.parent = m.id"
    " WHERE e.policy = 'success' ORDER BY e.child"
)
COUNT_DOWN = Statement(
    "UPDATE tasks SET waiting_on = tasks.waiting_on - e.ended FROM ("
    "SELECT edges.child AS child, COUNT(*) AS ended FROM {rows m(id text)} JOIN edges ON edges.parent = m.id"
    " GROUP BY edges.child) e WHERE tasks.id = e.child AND tasks.status = 'blocked'"
    " RETURNING tasks.id, tasks.waiting_on, tasks.team, tasks.spec, tasks.fence"
)
UNBLOCK = Statement(
    "UPDATE tasks SET status = m.status, rank = m.rank, ready_at = m.ready_at"
    " FROM {rows m(id text, status text, rank bigint, ready_at bigint)}"
    " WHERE tasks.id = m.id AND tasks.status = 'blocked'"
)


def parents_ended(transaction: Transaction, parents: Sequence[str], *, completed: bool) -> None:
    """Tasks ended: their children wait for fewer, the last one makes them ready, a failed one may spoil them.

    Generation by generation, not by recursion: a chain of tasks may be longer than Python's stack is deep.
    """
    ended = sorted(parents)
    while ended:
        members = [(parent,) for parent in ended]
        spoiled: list[str] = []
        if not completed:
            children = [
                (str(row[0]), "One of its parents did not complete.") for row in transaction.rows(SPOILED, members)
            ]
            spoiled = _fail_blocked(transaction, children)
        open_now = [row for row in transaction.rows(COUNT_DOWN, members) if row[1] <= 0]
        if open_now:
            _unblock(transaction, sorted(open_now))
        ended, completed = spoiled, False


def _unblock(transaction: Transaction, tasks: Sequence[Row]) -> None:
    now = int(transaction.rows(NOW)[0][0])
    updates: list[Row] = []
    ready: list[tuple[str, str, str, int, int]] = []
    timers: list[Row] = []
    facts: list[NewEvent] = []
    for task, _, team, text, fence in tasks:
        spec = _spec(text)
        at = max(now, micros(spec.not_before)) if spec.not_before else now
        status = TaskStatus.SCHEDULED if at > now else TaskStatus.PENDING
        order = rank(at, spec.priority)
        updates.append((task, status, order, at))
        if status is TaskStatus.PENDING:
            ready.append((task, team, text, order, fence))
        else:
            timers.append((at, task, "ready"))
            transaction.hint("timers")
        moved(transaction, team, TaskStatus.BLOCKED, status)
        facts.append(NewEvent(team, "task.ready", task, {"task_id": task, "status": status}))
    transaction.run(UNBLOCK, updates)
    transaction.insert(ADD_TIMERS, timers)
    make_ready(transaction, ready)
    transaction.later(APPEND, facts)


FAIL_WAITING = Statement(
    "UPDATE tasks SET status = 'failed', finished_at = retinue_now(), code = 'PARENT_FAILED', error = m.error"
    " FROM {rows m(id text, error text)} WHERE tasks.id = m.id AND tasks.status = 'blocked'"
    " RETURNING tasks.id, tasks.team"
)


def fail_waiting(transaction: Transaction, tasks: Sequence[tuple[str, str]]) -> None:
    """Blocked tasks, each with a sentence, that can never run; their own children follow."""
    parents_ended(transaction, _fail_blocked(transaction, tasks), completed=False)


def _fail_blocked(transaction: Transaction, tasks: Sequence[tuple[str, str]]) -> list[str]:
    """Those of these tasks that were still blocked and are failed now, in order."""
    failed = sorted(transaction.rows(FAIL_WAITING, sorted(tasks))) if tasks else []
    errors = dict(tasks)
    for task, team in failed:
        moved(transaction, team, TaskStatus.BLOCKED, TaskStatus.FAILED)
        data = {"task_id": task, "code": FailureCode.PARENT_FAILED, "error": errors[task]}
        transaction.later(APPEND, [NewEvent(team, "task.failed", task, data)])
    return [str(row[0]) for row in failed]
