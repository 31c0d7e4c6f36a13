"""Tasks in SQL, what people and time do to them: cancel, retry, fall due, lose their client's session."""

from collections.abc import Sequence
from typing import Final

import msgspec

from retinue.errors import NotFound, RetinueError, TaskFinal, TaskNotFinal
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.model import TERMINAL, AttemptStatus, Ending, FailureCode, TaskSpec, TaskStatus, rank
from retinue.tasks.store import (
    ADD_ATTEMPTS,
    DROP_RUNNING,
    failed_for_good,
    make_ready,
    moved,
    parents_ended,
)

_spec = msgspec.json.Decoder(TaskSpec).decode


class Steer(msgspec.Struct, frozen=True):
    """Somebody's wish about a task of their team."""

    task: str
    team: str
    actor: str
    reason: str = "cancelled by request"


class Stopped(msgspec.Struct, frozen=True):
    """A claim that ended from above: its node has to be told to stop."""

    task: str
    fence: int
    node: str
    boot: str


# -- cancel ------------------------------------------------------------------------------------------------------------

FIND: Final = Statement("SELECT status FROM tasks WHERE id = ? AND team = ?{postgres: FOR UPDATE}")
TREE: Final = Statement(
    "WITH RECURSIVE tree(id) AS (SELECT id FROM {rows r(id text)}"
    " UNION SELECT tasks.id FROM tasks JOIN tree ON tasks.parent = tree.id)"
    " SELECT id FROM tree ORDER BY id"
)
LOCK: Final = Statement(
    "SELECT id FROM tasks WHERE id IN (SELECT id FROM {rows t(id text)}) ORDER BY id{postgres: FOR UPDATE}"
)
OPEN: Final = Statement(
    "SELECT tasks.id, tasks.team, tasks.status, tasks.queue, tasks.rank, running.fence FROM tasks"
    " LEFT JOIN running ON running.id = tasks.id"
    " WHERE tasks.id IN (SELECT id FROM {rows t(id text)}) AND tasks.finished_at IS NULL ORDER BY tasks.id"
)
DROP_READY: Final = Statement(
    "DELETE FROM ready WHERE (queue, rank, id) IN"
    " (SELECT queue, rank, id FROM {rows t(queue text, rank bigint, id text)})"
)
CANCEL_TASKS: Final = Statement(
    "UPDATE tasks SET status = 'cancelled', finished_at = retinue_now(), code = 'CANCELLED', error = m.reason,"
    " fence = CASE WHEN m.fence > tasks.fence THEN m.fence ELSE tasks.fence END"
    " FROM {rows m(id text, fence bigint, reason text)} WHERE tasks.id = m.id AND tasks.finished_at IS NULL"
)


def _cancel(transaction: Transaction, items: Sequence[Steer]) -> list[list[Stopped] | RetinueError]:
    """Cancel tasks and all below them. Exactly one of this and a completion wins; cancelling again is fine."""
    outcomes: list[list[Stopped] | RetinueError] = []
    for item in items:
        found = transaction.row(FIND, item.task, item.team)
        if found is None:
            outcomes.append(NotFound(id=item.task))
        elif found[0] in TERMINAL and found[0] != TaskStatus.CANCELLED:
            outcomes.append(TaskFinal(task=item.task, status=found[0]))
        else:
            outcomes.append(cancel_trees(transaction, [item.task], item.actor, item.reason))
    return outcomes


def cancel_trees(transaction: Transaction, roots: Sequence[str], actor: str, reason: str) -> list[Stopped]:
    """Cancel these tasks and everything delegated below them, whatever state each is in."""
    tree: list[Row] = [(root,) for root in sorted(roots)]
    while True:  # a child inserted while we waited for a lock is found in the next look
        transaction.rows(LOCK, tree)
        grown = transaction.rows(TREE, tree)
        if len(grown) == len(tree):
            break
        tree = grown
    members = transaction.rows(OPEN, tree)
    held = transaction.rows(DROP_RUNNING, [(row[0], row[5]) for row in members if row[5] is not None])
    transaction.run(DROP_READY, [(row[3], row[4], row[0]) for row in members if row[2] == TaskStatus.PENDING])
    transaction.run(CANCEL_TASKS, [(row[0], row[5] or 0, reason) for row in members])
    by_task = {str(row[0]): row for row in held}
    transaction.insert(
        ADD_ATTEMPTS,
        [
            (
                r[0],
                r[1],
                r[5],
                r[3],
                AttemptStatus.CANCELLED,
                None,
                r[7],
                r[8],
                r[9],
                None,
                FailureCode.CANCELLED,
                reason,
            )
            for r in held
        ],
    )
    facts = []
    for task, team, status, _, _, fence in members:
        holder = by_task.get(task)
        moved(transaction, team, holder[6] if holder else status, TaskStatus.CANCELLED)
        data = {"task_id": task, "reason": reason} | ({"fence": fence, "attempt": holder[5]} if holder else {})
        facts.append(NewEvent(team, "task.cancelled", task, data, holder[3] if holder else None, actor))
    transaction.later(APPEND, facts)
    parents_ended(transaction, [str(row[0]) for row in members], completed=False)
    for row in held:
        transaction.hint(f"cancel.{row[3]}")
    return [Stopped(row[0], row[1], row[3], row[4]) for row in held]


# -- retry -------------------------------------------------------------------------------------------------------------

ENDED: Final = Statement(
    "SELECT status, spec, fence, retinue_now() FROM tasks WHERE id = ? AND team = ?{postgres: FOR UPDATE}"
)
REOPEN: Final = Statement(
    "UPDATE tasks SET status = 'pending', finished_at = NULL, failures = 0, losses = 0, rank = ?, ready_at = ?,"
    " waiting_on = 0, session = NULL, exit_code = NULL, code = NULL, error = NULL, result = NULL WHERE id = ?"
)


def _retry(transaction: Transaction, items: Sequence[Steer]) -> list[RetinueError | None]:
    """An operator's audited retry of a task that has ended: a new attempt with fresh allowances."""
    outcomes: list[RetinueError | None] = []
    for item in items:
        found = transaction.row(ENDED, item.task, item.team)
        if found is None:
            outcomes.append(NotFound(id=item.task))
        elif found[0] not in TERMINAL:
            outcomes.append(TaskNotFinal(task=item.task, status=found[0]))
        else:
            status, spec, fence, now = found
            order = rank(now, _spec(spec).priority)
            transaction.run(REOPEN, order, now, item.task)
            make_ready(transaction, [(item.task, item.team, spec, order, fence)])
            moved(transaction, item.team, status, TaskStatus.PENDING)
            data = {"task_id": item.task, "status": TaskStatus.PENDING, "by": item.actor}
            transaction.later(APPEND, [NewEvent(item.team, "task.retried", item.task, data, actor=item.actor)])
            outcomes.append(None)
    return outcomes


# -- timers ------------------------------------------------------------------------------------------------------------

DUE: Final = Statement(
    "SELECT due_at, task, kind FROM timers WHERE due_at <= retinue_now() ORDER BY due_at, task LIMIT ?"
)
DROP_TIMERS: Final = Statement(
    "DELETE FROM timers WHERE (due_at, task, kind) IN"
    " (SELECT due_at, task, kind FROM {rows t(due_at bigint, task text, kind text)})"
)
NEXT_DUE: Final = Statement("SELECT MIN(due_at) - retinue_now() FROM timers")
WAKE: Final = Statement(
    "UPDATE tasks SET status = 'pending' FROM {rows m(id text)}"
    " WHERE tasks.id = m.id AND tasks.status = 'scheduled' AND tasks.ready_at <= retinue_now()"
    " AND NOT EXISTS (SELECT 1 FROM running WHERE running.id = tasks.id)"
    " RETURNING tasks.id, tasks.team, tasks.spec, tasks.rank, tasks.fence"
)
FAIL_DUE: Final = Statement(
    "UPDATE tasks SET status = 'failed', finished_at = retinue_now(), code = 'DEADLINE', error = ?"
    " WHERE id = ? AND finished_at IS NULL"
)


class Due(msgspec.Struct, frozen=True):
    """What falling due did: the claims to stop, and in how many microseconds the next timer is due (None: none)."""

    stopped: list[Stopped]
    next_in: int | None


def _due(transaction: Transaction, items: Sequence[int]) -> list[Due | RetinueError]:
    """Each item is how many timers at most: scheduled tasks become ready, deadlines end what is still open."""
    outcomes: list[Due | RetinueError] = []
    for most in items:
        due = transaction.rows(DUE, most)
        transaction.run(DROP_TIMERS, due)
        woken = sorted(transaction.rows(WAKE, sorted({(row[1],) for row in due if row[2] == "ready"})))
        make_ready(transaction, [tuple(row) for row in woken])
        for task, team, *_ in woken:
            moved(transaction, team, TaskStatus.SCHEDULED, TaskStatus.PENDING)
        transaction.later(
            APPEND,
            [NewEvent(r[1], "task.ready", r[0], {"task_id": r[0], "status": TaskStatus.PENDING}) for r in woken],
        )
        stopped = _missed(transaction, sorted({str(row[1]) for row in due if row[2] == "deadline"}))
        left = transaction.row(NEXT_DUE)
        outcomes.append(Due(stopped, left[0] if left else None))
    return outcomes


def _missed(transaction: Transaction, tasks: Sequence[str]) -> list[Stopped]:
    """Tasks past their deadline fail, wherever they are."""
    sentence = "Its deadline passed before it was done."
    members = transaction.rows(OPEN, [(task,) for task in tasks])
    held = transaction.rows(DROP_RUNNING, [(row[0], row[5]) for row in members if row[5] is not None])
    transaction.insert(
        ADD_ATTEMPTS,
        [
            (r[0], r[1], r[5], r[3], AttemptStatus.FAILED, None, r[7], r[8], r[9], None, FailureCode.DEADLINE, sentence)
            for r in held
        ],
    )
    failed_for_good(transaction, [(row, Ending(False, code=FailureCode.DEADLINE, error=sentence)) for row in held])
    taken = {row[0] for row in held}
    for task, team, status, queue, order, _ in members:
        if task in taken:
            continue
        transaction.run(DROP_READY, [(queue, order, task)])
        transaction.run(FAIL_DUE, sentence, task)
        moved(transaction, team, status, TaskStatus.FAILED)
        data = {"task_id": task, "code": FailureCode.DEADLINE, "error": sentence}
        transaction.later(APPEND, [NewEvent(team, "task.failed", task, data)])
        parents_ended(transaction, [task], completed=False)
    return [Stopped(row[0], row[1], row[3], row[4]) for row in held]


# -- sessions of foreground clients ------------------------------------------------------------------------------------

OPEN_SESSIONS: Final = Insert(
    "sessions", "id text, team text, boot text, lease_at bigint", "ON CONFLICT (id) DO NOTHING"
)
NOW: Final = Statement("SELECT retinue_now()")
RENEW_SESSIONS: Final = Statement(
    "UPDATE sessions SET lease_at = retinue_now() + m.lease FROM {rows m(id text, lease bigint)}"
    " WHERE sessions.id = m.id RETURNING sessions.id"
)
DROP_SESSIONS: Final = Statement("DELETE FROM sessions WHERE id IN (SELECT id FROM {rows s(id text)})")
LAPSED: Final = Statement("SELECT id FROM sessions WHERE lease_at < retinue_now() ORDER BY id")
OTHER_BOOTS: Final = Statement("SELECT id FROM sessions WHERE boot <> ? ORDER BY id")
TIED: Final = Statement("SELECT id FROM tasks WHERE session = ? AND finished_at IS NULL ORDER BY id")


class Session(msgspec.Struct, frozen=True):
    """A foreground client: its tasks live no longer than it."""

    id: str
    team: str
    boot: str  # of the coordinator it is connected to
    lease: int  # microseconds


def _open(transaction: Transaction, items: Sequence[Session]) -> list[None]:
    now = int(transaction.rows(NOW)[0][0])
    transaction.insert(OPEN_SESSIONS, [(item.id, item.team, item.boot, now + item.lease) for item in items])
    return [None] * len(items)


def _keep(transaction: Transaction, items: Sequence[tuple[str, int]]) -> list[bool | RetinueError]:
    """Each item is (session, lease): whether it was still there."""
    kept = {row[0] for row in transaction.rows(RENEW_SESSIONS, items)}
    return [session in kept for session, _ in items]


def _close(transaction: Transaction, items: Sequence[tuple[str, str]]) -> list[list[Stopped] | RetinueError]:
    """Each item is (session, reason): its open tasks are cancelled, never run again by surprise."""
    return [_end_session(transaction, session, reason) for session, reason in items]


def _lapse(transaction: Transaction, items: Sequence[str | None]) -> list[list[Stopped] | RetinueError]:
    """Each item is the only coordinator boot whose sessions can live, or None: then those past their lease end."""
    outcomes: list[list[Stopped] | RetinueError] = []
    for boot in items:
        gone = transaction.rows(LAPSED) if boot is None else transaction.rows(OTHER_BOOTS, boot)
        stopped = [s for row in gone for s in _end_session(transaction, row[0], "its foreground client is gone")]
        outcomes.append(stopped)
    return outcomes


def _end_session(transaction: Transaction, session: str, reason: str) -> list[Stopped]:
    transaction.run(DROP_SESSIONS, [(session,)])
    tied = [str(row[0]) for row in transaction.rows(TIED, session)]
    return cancel_trees(transaction, tied, f"session {session}", reason) if tied else []


CANCEL: Final[Kind[Steer, list[Stopped]]] = Kind("task.cancel", 60, _cancel)
RETRY: Final[Kind[Steer, None]] = Kind("task.retry", 61, _retry)
DUE_KIND: Final[Kind[int, Due]] = Kind("task.due", 62, _due)
OPEN_SESSION: Final[Kind[Session, None]] = Kind("session.open", 10, _open)
KEEP_SESSION: Final[Kind[tuple[str, int], bool]] = Kind("session.keep", 11, _keep)
CLOSE_SESSION: Final[Kind[tuple[str, str], list[Stopped]]] = Kind("session.close", 63, _close)
LAPSE_SESSIONS: Final[Kind[str | None, list[Stopped]]] = Kind("session.lapse", 64, _lapse)
