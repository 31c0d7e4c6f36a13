"""Tasks in SQL, how they come in: each once per key, behind its parents, into its queue."""

from collections.abc import Sequence
from typing import Any

import msgspec

from retinue.clock import micros
from retinue.errors import IdempotencyConflict, NotFound, ParentCancelled, RetinueError, TooManyQueues
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.storage.database import Kind, StoreConflict, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.endings import fail_waiting
from retinue.tasks.model import (
    MOST_QUEUES,
    TERMINAL,
    Queue,
    TaskSpec,
    TaskStatus,
    loss_policy,
    rank,
)
from retinue.tasks.queues import HAS_QUEUE, insert_queue, room_for_queues
from retinue.tasks.rows import ADD_READY, ADD_TIMERS, COUNT, NOW, SECOND

_encode = msgspec.json.Encoder().encode


class NewTask(msgspec.Struct, frozen=True):
    """A checked submission. With a key, the same principal's same key and body meet the same task again."""

    id: str
    team: str
    spec: TaskSpec
    queue: Queue
    principal: str
    key: str | None = None
    body: str = ""  # digest of what was posted


TAKE_KEY = Statement(
    "INSERT INTO idempotency (team, principal, route, key, body, answer, at)"
    " SELECT team, principal, 'POST /tasks', key, body, answer, retinue_now()"
    " FROM {rows k(team text, principal text, key text, body text, answer text)} WHERE true"
    " ON CONFLICT (team, principal, route, key) DO NOTHING RETURNING answer"
)
READ_KEY = Statement(
    "SELECT body, answer FROM idempotency WHERE team = ? AND principal = ? AND route = 'POST /tasks' AND key = ?"
)
DROP_KEY = Statement(
    "DELETE FROM idempotency WHERE team = ? AND principal = ? AND route = 'POST /tasks' AND key = ? AND answer = ?"
)
# Parents are locked in id order, so that one that ends meanwhile waits and then finds its new child's edge.
PARENTS = Statement(
    "SELECT id, team, status FROM tasks WHERE id IN (SELECT id FROM {rows p(id text)}) ORDER BY id{postgres: FOR SHARE}"
)
# A parent that has ended hands on what is above it: nothing is inserted below a cancelled task, however deep.
CANCELLED_ABOVE = Statement(
    "WITH RECURSIVE up(start, parent, status) AS ("
    "SELECT tasks.id, tasks.parent, tasks.status FROM {rows m(id text)} JOIN tasks ON tasks.id = m.id"
    " UNION SELECT up.start, tasks.parent, tasks.status FROM up JOIN tasks ON tasks.id = up.parent"
    " WHERE up.status IN ('completed', 'failed')) SELECT start FROM up WHERE status = 'cancelled'"
)
# Locked, so that a session which ends meanwhile waits and then finds its new task.
SESSION = Statement("SELECT 1 FROM sessions WHERE id = ? AND team = ?{postgres: FOR KEY SHARE}")
ADD_TASKS = Insert(
    "tasks",
    "id text, team text, status text, queue text, rank bigint, waiting_on bigint, patience bigint, parent text,"
    " session text, spec text, created_by text, created_at bigint, ready_at bigint",
)
ADD_EDGES = Insert("edges", "parent text, child text, policy text")


def _create(transaction: Transaction, items: Sequence[NewTask]) -> list[str | RetinueError]:
    outcomes: dict[int, str | RetinueError] = {}
    fresh = _first_of_their_key(transaction, items, outcomes)
    admitted = _with_live_parents(transaction, items, fresh, outcomes)
    admitted = _with_a_queue(transaction, items, admitted, outcomes)
    _free_keys(transaction, items, outcomes)
    now = int(transaction.rows(NOW)[0][0])
    tasks: list[Row] = []
    ready: list[Row] = []
    timers: list[Row] = []
    facts: list[NewEvent] = []
    failed: list[tuple[str, str]] = []
    for place, unfinished, spoiled in admitted:
        item = items[place]
        spec = item.spec
        not_before = micros(spec.not_before) if spec.not_before else now
        ready_at = max(now, not_before)
        status = (
            TaskStatus.BLOCKED
            if unfinished or spoiled
            else TaskStatus.SCHEDULED
            if not_before > now
            else TaskStatus.PENDING
        )
        order = rank(ready_at, spec.priority)
        patience = int(loss_policy(spec.on_node_loss).patience.total_seconds() * SECOND)
        tasks.append((item.id, item.team, status, item.queue.id, order, unfinished, patience, spec.parent,
                      spec.session, _encode(spec).decode(), item.principal, now, ready_at))  # fmt: skip
        if status is TaskStatus.PENDING:
            ready.append((item.queue.id, order, item.id, 0))
        elif status is TaskStatus.SCHEDULED:
            timers.append((ready_at, item.id, "ready"))
        if spec.deadline is not None:
            timers.append((micros(spec.deadline), item.id, "deadline"))
        if spoiled:
            failed.append((item.id, spoiled))
        data: dict[str, Any] = {"task_id": item.id, "status": status}
        if spec.after:
            data["parents"] = spec.after
        facts.append(NewEvent(item.team, "task.created", item.id, data, actor=item.principal))
        transaction.later(COUNT, [(item.team, status, 1)])
        outcomes[place] = item.id
    transaction.insert(ADD_TASKS, tasks)
    transaction.insert(ADD_READY, ready)
    transaction.insert(ADD_TIMERS, timers)
    transaction.insert(
        ADD_EDGES,
        [
            (parent, items[place].id, items[place].spec.after_policy)
            for place, _, _ in admitted
            for parent in items[place].spec.after
        ],
    )
    transaction.later(APPEND, facts)
    for queue in dict.fromkeys(row[0] for row in ready):
        transaction.hint(f"ready.{queue}")
    if timers:
        transaction.hint("timers")
    if failed:
        fail_waiting(transaction, [(task, f"Its parent {parent} did not complete.") for task, parent in failed])
    return [outcomes[place] for place in range(len(items))]


def _free_keys(transaction: Transaction, items: Sequence[NewTask], outcomes: dict[int, str | RetinueError]) -> None:
    """A submission that is refused gives its key back; those of its group that met its key are refused as it was."""
    refused: dict[str, RetinueError] = {}
    for place, outcome in outcomes.items():
        item = items[place]
        if item.key is not None and isinstance(outcome, RetinueError):
            transaction.run(DROP_KEY, item.team, item.principal, item.key, item.id)
            refused[item.id] = outcome
    for place, outcome in outcomes.items():
        if isinstance(outcome, str) and outcome in refused:
            outcomes[place] = refused[outcome]


def _first_of_their_key(
    transaction: Transaction, items: Sequence[NewTask], outcomes: dict[int, str | RetinueError]
) -> list[int]:
    """Members whose idempotency key is new; the others are answered with what the first one got."""
    keyed = [item for item in items if item.key is not None]
    if not keyed:
        return list(range(len(items)))
    # In key order, so that groups which meet in several keys wait for each other in one direction.
    keyed.sort(key=lambda item: (item.team, item.principal, item.key or ""))
    taken = transaction.rows(TAKE_KEY, [(i.team, i.principal, i.key, i.body, i.id) for i in keyed])
    won = {str(row[0]) for row in taken}
    fresh = []
    for place, item in enumerate(items):
        if item.key is None or item.id in won:
            fresh.append(place)
            continue
        kept = transaction.row(READ_KEY, item.team, item.principal, item.key)
        if kept is None:
            raise StoreConflict("an idempotency key met us and was pruned before we could read it")
        outcomes[place] = str(kept[1]) if kept[0] == item.body else IdempotencyConflict(key=item.key)
    return fresh


def _with_live_parents(
    transaction: Transaction, items: Sequence[NewTask], places: list[int], outcomes: dict[int, str | RetinueError]
) -> list[tuple[int, int, str]]:
    """(member, how many parents are unfinished, a parent that has spoiled it) for all whose parents exist."""
    named = {name for place in places for name in _relatives(items[place].spec)}
    known = {str(r[0]): r for r in transaction.rows(PARENTS, [(name,) for name in sorted(named)])} if named else {}
    above = sorted({parent for place in places if (parent := items[place].spec.parent) is not None})
    cancelled = {row[0] for row in transaction.rows(CANCELLED_ABOVE, [(name,) for name in above])} if above else set()
    kept = []
    for place in places:
        item = items[place]
        spec = item.spec
        rows = {name: known.get(name) for name in _relatives(spec)}
        missing = [name for name, row in rows.items() if row is None or row[1] != item.team]
        session_gone = spec.session is not None and not transaction.rows(SESSION, spec.session, item.team)
        if missing or session_gone:
            outcomes[place] = NotFound(id=missing[0] if missing else spec.session)
        elif spec.parent in cancelled:
            outcomes[place] = ParentCancelled(parent=spec.parent)
        else:
            states = {parent: known[parent][2] for parent in spec.after}
            spoiled = next((p for p, s in states.items() if s in TERMINAL and s != TaskStatus.COMPLETED), "")
            unfinished = sum(1 for status in states.values() if status not in TERMINAL)
            kept.append((place, unfinished, spoiled if spec.after_policy == "success" else ""))
    return kept


def _relatives(spec: TaskSpec) -> list[str]:
    return [*spec.after, spec.parent] if spec.parent is not None else spec.after


def _with_a_queue(
    transaction: Transaction,
    items: Sequence[NewTask],
    fresh: list[tuple[int, int, str]],
    outcomes: dict[int, str | RetinueError],
) -> list[tuple[int, int, str]]:
    """Members whose queue exists or could be made: a team has at most 1,000 with tasks waiting."""
    wanted = {items[place].queue.id: items[place].queue for place, _, _ in fresh}
    new: dict[str, list[Queue]] = {}
    for queue in wanted.values():
        if not transaction.row(HAS_QUEUE, queue.id):
            new.setdefault(queue.team, []).append(queue)
    refused: set[str] = set()
    for team, queues in sorted(new.items()):
        room = room_for_queues(transaction, team, len(queues), wanted)
        for queue in queues[:room]:
            insert_queue(transaction, queue)
        refused.update(queue.id for queue in queues[room:])
    for place, _, _ in fresh:
        if items[place].queue.id in refused:
            outcomes[place] = TooManyQueues(limit=MOST_QUEUES)
    return [member for member in fresh if items[member[0]].queue.id not in refused]


CREATE: Kind[NewTask, str] = Kind("task.create", 20, _create)
