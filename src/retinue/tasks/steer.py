"""Tasks in SQL, what people and time do to them: cancel, retry, fall due, lose their client's session."""

from collections.abc import Sequence
from typing import Final

import msgspec

from retinue.errors import NotFound, RetinueError, TaskFinal, TaskNotFinal
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.endings import fail_waiting, failed_for_good, parents_ended
from retinue.tasks.losses import Taken, take
from retinue.tasks.model import (
    TERMINAL,
    AttemptStatus,
    Ending,
    FailureCode,
    TaskSpec,
    TaskStatus,
    freed,
    queue_of,
    rank,
)
from retinue.tasks.queues import make_ready
from retinue.tasks.rows import ADD_ATTEMPTS, moved

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

FIND: Final = Statement("SELECT status FROM tasks WHERE id = ? AND team = ?")
TREE: Final = Statement(
    "WITH RECURSIVE tree(id) AS (SELECT id FROM {rows r(id text)}"
    " UNION SELECT tasks.id FROM tasks JOIN tree ON tasks.parent = tree.id)"
    " SELECT id FROM tree ORDER BY id"
)
CANCEL_TASKS: Final = Statement(
    "UPDATE tasks SET status = 'cancelled', finished_at = retinue_now(), code = 'CANCELLED', error = m.reason,"
    " exit_code = NULL, attempt = COALESCE(m.attempt, tasks.attempt),"
    " fence = CASE WHEN m.fence > tasks.fence THEN m.fence ELSE tasks.fence END"
    " FROM {rows m(id text, fence bigint, attempt text, reason text)} WHERE tasks.id = m.id"
)


def _cancel(transaction: Transaction, items: Sequence[Steer]) -> list[list[Stopped] | RetinueError]:
    """Cancel tasks and all below them. Exactly one of this and a completion wins; cancelling again is fine."""
    outcomes: list[list[Stopped] | RetinueError] = []
    for item in items:
        if transaction.row(FIND, item.task, item.team) is None:
            outcomes.append(NotFound(id=item.task))
            continue
        taken = take(transaction, [item.task])
        over = None if taken else transaction.row(FIND, item.task, item.team)  # now nobody else can move it any more
        if over is not None and over[0] != TaskStatus.CANCELLED:
            outcomes.append(TaskFinal(task=item.task, status=over[0]))
        else:
            outcomes.append(_cancel_below(transaction, taken, [item.task], item.actor, item.reason))
    return outcomes


def cancel_trees(transaction: Transaction, roots: Sequence[str], actor: str, reason: str) -> list[Stopped]:
    """Cancel these tasks and everything delegated below them, whatever state each is in."""
    return _cancel_below(transaction, take(transaction, roots), roots, actor, reason)


def _cancel_below(
    transaction: Transaction, taken: list[Taken], roots: Sequence[str], actor: str, reason: str
) -> list[Stopped]:
    """Cancel the taken ones of the roots, and everything below all of them."""
    tree = set(roots)
    while True:  # a child inserted while we waited for its parent's lock is found in the next look
        grown = {str(row[0]) for row in transaction.rows(TREE, [(task,) for task in sorted(tree)])}
        if grown == tree:
            break
        taken = [*taken, *take(transaction, sorted(grown - tree))]
        tree = grown
    taken.sort(key=lambda one: one.task)
    held = [one.held for one in taken if one.held is not None]
    if taken:
        transaction.run(
            CANCEL_TASKS,
            [(one.task, one.held[1] if one.held else 0, one.held[5] if one.held else None, reason) for one in taken],
        )
    _end_attempts(transaction, held, AttemptStatus.CANCELLED, FailureCode.CANCELLED, reason)
    facts = []
    for one in taken:
        moved(transaction, one.team, one.status, TaskStatus.CANCELLED)
        data = {"task_id": one.task, "reason": reason}
        if one.held is not None:
            data |= {"fence": one.held[1], "attempt": one.held[5]}
        facts.append(
            NewEvent(one.team, "task.cancelled", one.task, data, one.held[3] if one.held is not None else None, actor)
        )
    transaction.later(APPEND, facts)
    parents_ended(transaction, [one.task for one in taken], completed=False)
    return _stop(transaction, held)


def _end_attempts(
    transaction: Transaction, held: Sequence[Row], status: AttemptStatus, code: FailureCode, error: str
) -> None:
    """Record attempts that ended from above."""
    transaction.insert(
        ADD_ATTEMPTS, [(r[0], r[1], r[5], r[3], status, None, r[7], r[8], r[9], None, code, error) for r in held]
    )


def _stop(transaction: Transaction, held: Sequence[Row]) -> list[Stopped]:
    """Tell the holders of ended claims."""
    for row in held:
        transaction.hint(f"cancel.{row[3]}")
    return [Stopped(row[0], row[1], row[3], row[4]) for row in held]


# -- retry -------------------------------------------------------------------------------------------------------------

ENDED: Final = Statement(
    "SELECT status, spec, fence, retinue_now() FROM tasks WHERE id = ? AND team = ?{postgres: FOR UPDATE}"
)
REOPEN: Final = Statement(
    "UPDATE tasks SET status = ?, finished_at = NULL, failures = 0, losses = 0, rank = ?, ready_at = ?,"
    " waiting_on = ?, spec = ?, queue = ?, session = NULL, exit_code = NULL, code = NULL, error = NULL, result = NULL"
    " WHERE id = ?"
)
ABOVE: Final = Statement(
    "SELECT tasks.id, tasks.status, edges.policy FROM edges JOIN tasks ON tasks.id = edges.parent"
    " WHERE edges.child = ? ORDER BY tasks.id{postgres: FOR SHARE OF tasks}"
)
# Children that still wait have this parent before them again: no child starts before all parents are completed.
COUNT_UP: Final = Statement(
    "UPDATE tasks SET waiting_on = waiting_on + 1"
    " WHERE status = 'blocked' AND id IN (SELECT child FROM edges WHERE parent = ?)"
)


def _retry(transaction: Transaction, items: Sequence[Steer]) -> list[RetinueError | None]:
    """An operator's audited retry of a task that has ended: a new attempt with fresh allowances.

    It waits for its parents as at its creation: for those that were retried before it, and it fails again at once
    when one of them has not completed and its policy asks for that.
    """
    outcomes: list[RetinueError | None] = []
    for item in items:
        found = transaction.row(ENDED, item.task, item.team)
        if found is None:
            outcomes.append(NotFound(id=item.task))
        elif found[0] not in TERMINAL:
            outcomes.append(TaskNotFinal(task=item.task, status=found[0]))
        else:
            _reopen(transaction, item, found)
            outcomes.append(None)
    return outcomes


def _reopen(transaction: Transaction, item: Steer, found: Row) -> None:
    before, text, fence, now = found
    goes_on = freed(_spec(text))
    spec = msgspec.json.encode(goes_on).decode()
    parents = transaction.rows(ABOVE, item.task)
    unfinished = sum(1 for _, status, _ in parents if status not in TERMINAL)
    spoiled = next(
        (p for p, s, policy in parents if policy == "success" and s in TERMINAL - {TaskStatus.COMPLETED}), ""
    )
    status = TaskStatus.BLOCKED if unfinished or spoiled else TaskStatus.PENDING
    order = rank(now, goes_on.priority)
    transaction.run(REOPEN, status, order, now, unfinished, spec, queue_of(item.team, goes_on).id, item.task)
    transaction.run(COUNT_UP, item.task)
    if status is TaskStatus.PENDING:
        make_ready(transaction, [(item.task, item.team, spec, order, fence)])
    moved(transaction, item.team, before, status)
    data = {"task_id": item.task, "status": status, "by": item.actor}
    transaction.later(APPEND, [NewEvent(item.team, "task.retried", item.task, data, actor=item.actor)])
    if spoiled:
        fail_waiting(transaction, [(item.task, f"Its parent {spoiled} did not complete.")])


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
    "UPDATE tasks SET status = 'failed', finished_at = retinue_now(), code = 'DEADLINE', error = m.error,"
    " exit_code = NULL FROM {rows m(id text, error text)} WHERE tasks.id = m.id"
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
        if not due:
            left = transaction.row(NEXT_DUE)
            outcomes.append(Due([], left[0] if left else None))
            continue
        transaction.run(DROP_TIMERS, due)
        woken = sorted(transaction.rows(WAKE, sorted({(row[1],) for row in due if row[2] == "ready"})))
        make_ready(transaction, [tuple(row) for row in woken])
        for _, team, *_ in woken:
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
    if not tasks:
        return []
    sentence = "Its deadline passed before it was done."
    taken = take(transaction, tasks)
    held = [one.held for one in taken if one.held is not None]
    waiting = [one for one in taken if one.held is None]
    _end_attempts(transaction, held, AttemptStatus.FAILED, FailureCode.DEADLINE, sentence)
    if waiting:
        transaction.run(FAIL_DUE, [(one.task, sentence) for one in waiting])
    for one in waiting:
        moved(transaction, one.team, one.status, TaskStatus.FAILED)
        data = {"task_id": one.task, "code": FailureCode.DEADLINE, "error": sentence}
        transaction.later(APPEND, [NewEvent(one.team, "task.failed", one.task, data)])
    failed_for_good(transaction, [(row, Ending(False, code=FailureCode.DEADLINE, error=sentence)) for row in held])
    parents_ended(transaction, [one.task for one in waiting], completed=False)
    return _stop(transaction, held)


# -- sessions of foreground clients ------------------------------------------------------------------------------------

OPEN_SESSIONS: Final = Insert(
    "sessions", "id text, team text, boot text, lease_at bigint", "ON CONFLICT (id) DO NOTHING"
)
NOW: Final = Statement("SELECT retinue_now()")
RENEW_SESSIONS: Final = Statement(
    "UPDATE sessions SET lease_at = retinue_now() + m.lease FROM {rows m(id text, team text, lease bigint)}"
    " WHERE sessions.id = m.id AND sessions.team = m.team RETURNING sessions.id"
)
DROP_SESSIONS: Final = Statement(
    "DELETE FROM sessions WHERE (id, team) IN (SELECT id, team FROM {rows s(id text, team text)}) RETURNING id"
)
DROP_LAPSED: Final = Statement("DELETE FROM sessions WHERE lease_at < retinue_now() RETURNING id")
DROP_OTHER_BOOTS: Final = Statement("DELETE FROM sessions WHERE boot <> ? RETURNING id")
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


def _keep(transaction: Transaction, items: Sequence[tuple[str, str, int]]) -> list[bool | RetinueError]:
    """Each item is (session, team, lease): whether it was still there."""
    kept = {row[0] for row in transaction.rows(RENEW_SESSIONS, items)}
    return [session in kept for session, *_ in items]


def _close(transaction: Transaction, items: Sequence[tuple[str, str, str]]) -> list[list[Stopped] | RetinueError]:
    """Each item is (session, team, reason): its open tasks are cancelled, never run again by surprise."""
    known = sorted({(session, team) for session, team, _ in items})
    gone = {str(row[0]) for row in transaction.rows(DROP_SESSIONS, known)}
    return [_cancel_tied(transaction, session, reason) if session in gone else [] for session, _, reason in items]


def _lapse(transaction: Transaction, items: Sequence[str | None]) -> list[list[Stopped] | RetinueError]:
    """Each item is the only coordinator boot whose sessions can live, or None: then those past their lease end."""
    outcomes: list[list[Stopped] | RetinueError] = []
    for boot in items:
        gone = transaction.rows(DROP_LAPSED) if boot is None else transaction.rows(DROP_OTHER_BOOTS, boot)
        reason = "its foreground client is gone"
        outcomes.append([s for row in sorted(gone) for s in _cancel_tied(transaction, row[0], reason)])
    return outcomes


def _cancel_tied(transaction: Transaction, session: str, reason: str) -> list[Stopped]:
    tied = [str(row[0]) for row in transaction.rows(TIED, session)]
    return cancel_trees(transaction, tied, f"session {session}", reason) if tied else []


CANCEL: Final[Kind[Steer, list[Stopped]]] = Kind("task.cancel", 60, _cancel)
RETRY: Final[Kind[Steer, None]] = Kind("task.retry", 61, _retry)
DUE_KIND: Final[Kind[int, Due]] = Kind("task.due", 62, _due)
OPEN_SESSION: Final[Kind[Session, None]] = Kind("session.open", 10, _open)
KEEP_SESSION: Final[Kind[tuple[str, str, int], bool]] = Kind("session.keep", 11, _keep)
CLOSE_SESSION: Final[Kind[tuple[str, str, str], list[Stopped]]] = Kind("session.close", 63, _close)
LAPSE_SESSIONS: Final[Kind[str | None, list[Stopped]]] = Kind("session.lapse", 64, _lapse)
