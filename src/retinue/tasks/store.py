"""Tasks in SQL, the hot path: create, claim, start, renew, finish, hand back, reap. Each for many tasks at once.

Three tables: `tasks` is wide and cold; `ready` has a narrow row for what may be claimed, `running` for what is held.
Who deletes the narrow row owns the move: that is the guard of every transition, and it stands in the statement itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from retinue.clock import micros
from retinue.errors import IdempotencyConflict, NotFound, ParentCancelled, RetinueError, StaleClaim, TooManyQueues
from retinue.events.model import NewEvent
from retinue.events.store import APPEND, DENIED
from retinue.nodes import store as nodes
from retinue.nodes.resources import Resources
from retinue.storage.database import Chore, Kind, StoreConflict, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.model import (
    MOST_LOSSES,
    MOST_QUEUES,
    TERMINAL,
    AttemptStatus,
    Claim,
    Ending,
    FailureCode,
    Queue,
    TaskSpec,
    TaskStatus,
    backoff,
    loss_policy,
    next_fence,
    queue_of,
    rank,
)

SECOND: Final = 1_000_000
_FINAL: Final = "('completed', 'failed', 'cancelled')"

# -- counts: what /status shows, moved in the same transaction ---------------------------------------------------------

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


# -- create ------------------------------------------------------------------------------------------------------------


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
ADD_QUEUES = Insert(
    "queues",
    "id text, team text, labels text, requires text, node text, resources text",
    "ON CONFLICT (id) DO NOTHING",
)
# Counting and adding are one step, also beside other coordinators.
ONE_AT_A_TIME = Statement("SELECT {sqlite:?}{postgres:pg_advisory_xact_lock(hashtextextended(?, 0))}")
COUNT_QUEUES = Statement("SELECT COUNT(*) FROM queues WHERE team = ?")
# Whoever puts a task into a queue keeps its row from being dropped until that is committed.
HAS_QUEUE = Statement("SELECT 1 FROM queues WHERE id = ?{postgres: FOR KEY SHARE}")
EMPTY_QUEUES = Statement(
    "SELECT id FROM queues WHERE team = ? AND NOT EXISTS (SELECT 1 FROM ready WHERE ready.queue = queues.id)"
    " ORDER BY id{postgres: FOR UPDATE SKIP LOCKED}"
)
# Looked at again under the lock: a task may have been committed into one between the look and the lock.
DROP_EMPTY_QUEUES = Statement(
    "DELETE FROM queues WHERE id IN (SELECT id FROM {rows q(id text)})"
    " AND NOT EXISTS (SELECT 1 FROM ready WHERE ready.queue = queues.id)"
)
NOW = Statement("SELECT retinue_now()")
ADD_TASKS = Insert(
    "tasks",
    "id text, team text, status text, queue text, rank bigint, waiting_on bigint, patience bigint, parent text,"
    " session text, spec text, created_by text, created_at bigint, ready_at bigint",
)
ADD_READY = Insert("ready", "queue text, rank bigint, id text, fence bigint")
ADD_EDGES = Insert("edges", "parent text, child text, policy text")
ADD_TIMERS = Insert("timers", "due_at bigint, task text, kind text", "ON CONFLICT (due_at, task, kind) DO NOTHING")

_encode = msgspec.json.Encoder().encode
_spec = msgspec.json.Decoder(TaskSpec).decode


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
        room = _room_for_queues(transaction, team, len(queues), wanted)
        for queue in queues[:room]:
            _insert_queue(transaction, queue)
        refused.update(queue.id for queue in queues[room:])
    for place, _, _ in fresh:
        if items[place].queue.id in refused:
            outcomes[place] = TooManyQueues(limit=MOST_QUEUES)
    return [member for member in fresh if items[member[0]].queue.id not in refused]


def _room_for_queues(transaction: Transaction, team: str, most: int, wanted: Mapping[str, Queue]) -> int:
    """How many new queues a team may have, at most `most`; empty ones make room, but not those that are wanted now."""
    transaction.rows(ONE_AT_A_TIME, team)
    room = MOST_QUEUES - int(transaction.rows(COUNT_QUEUES, team)[0][0])
    if room < most:
        empty = [row for row in transaction.rows(EMPTY_QUEUES, team) if row[0] not in wanted]
        room += transaction.run(DROP_EMPTY_QUEUES, empty)
    return max(0, min(room, most))


def _insert_queue(transaction: Transaction, queue: Queue) -> None:
    parts = [_encode(part).decode() for part in (queue.labels, queue.requires, queue.resources)]
    while not transaction.row(HAS_QUEUE, queue.id):  # on a server somebody may make it, or drop it, beside us
        transaction.insert(ADD_QUEUES, [(queue.id, queue.team, parts[0], parts[1], queue.node, parts[2])])


# -- claim -------------------------------------------------------------------------------------------------------------


class Free(msgspec.Struct, frozen=True):
    """Room on one node: its free workers and resources, and ids for the attempts that fill them."""

    node: str
    name: str
    boot: str
    attempts: tuple[str, ...]  # one id a free worker
    room: Resources = Resources()


class Round(msgspec.Struct, frozen=True):
    """One claim for all nodes that serve the same queues: the best waiting tasks, teams in turn."""

    free: tuple[Free, ...]
    queues: tuple[Queue, ...]
    after_team: str  # the team served last; the next one goes first
    lease: int  # microseconds


HEAD = Statement("SELECT queue, rank, id, fence FROM ready WHERE queue = ? ORDER BY rank, id LIMIT ?")
HEADS = Statement(
    "SELECT r.queue, r.rank, r.id, r.fence FROM {rows q(id text)} CROSS JOIN LATERAL ("
    "SELECT queue, rank, id, fence FROM ready WHERE queue = q.id ORDER BY rank, id LIMIT ? FOR UPDATE SKIP LOCKED) r"
)
# Which of these queues have anybody in them, also somebody whom another transaction is just looking at.
PEOPLED = Statement("SELECT q.id FROM {rows q(id text)} WHERE EXISTS (SELECT 1 FROM ready WHERE ready.queue = q.id)")
TAKE_READY = Statement(
    "DELETE FROM ready WHERE (queue, rank, id) IN"
    " (SELECT queue, rank, id FROM {rows t(queue text, rank bigint, id text)}) RETURNING id"
)
CLAIMED = Statement(
    "SELECT id, spec, patience, retinue_now() FROM tasks WHERE id IN (SELECT id FROM {rows t(id text)})"
)
ADD_RUNNING = Insert(
    "running",
    "id text, fence bigint, team text, node text, boot text, attempt text, status text, claimed_at bigint,"
    " reap_at bigint, patience bigint",
)


class Dealt(msgspec.Struct, frozen=True):
    """What a round gave out, and the queues in which nobody waits any more."""

    claims: list[Claim]
    emptied: list[str]


def _claim(transaction: Transaction, items: Sequence[Round]) -> list[Dealt | RetinueError]:
    return [_claim_round(transaction, item) for item in items]


def _claim_round(transaction: Transaction, wanted: Round) -> Dealt:
    slots = sum(len(free.attempts) for free in wanted.free)
    heads = _heads(transaction, wanted.queues, slots)
    waiting = Counter(str(head[0]) for head in heads)
    picked = _dealt(heads, wanted)
    given = Counter(str(head[0]) for head, _, _ in picked)
    emptied = [q.id for q in wanted.queues if waiting[q.id] < slots and given[q.id] == waiting[q.id]]
    if not picked:
        return Dealt([], _emptied(transaction, emptied))
    taken = {str(row[0]) for row in transaction.rows(TAKE_READY, [head[:3] for head, _, _ in picked])}
    specs = {str(row[0]): row for row in transaction.rows(CLAIMED, [(head[2],) for head, _, _ in picked])}
    teams = {queue.id: queue.team for queue in wanted.queues}
    claims: list[Claim] = []
    running: list[Row] = []
    for (queue, _, task, fence), free, attempt in picked:
        if task not in taken:
            continue
        _, spec, patience, now = specs[task]
        team = teams[queue]
        claim = Claim(task, attempt, next_fence(fence, transaction.epoch), queue, team, free.node, free.boot, spec)
        claims.append(claim)
        running.append((task, claim.fence, team, free.node, free.boot, attempt, AttemptStatus.CLAIMED, now,
                        now + wanted.lease + patience, patience))  # fmt: skip
        moved(transaction, team, TaskStatus.PENDING, TaskStatus.CLAIMED)
    transaction.insert(ADD_RUNNING, running)
    transaction.later(
        APPEND, (_fact("task.claimed", c.team, c.task, c.node, c.fence, c.attempt, boot=c.boot) for c in claims)
    )
    return Dealt(claims, _emptied(transaction, emptied))


def _emptied(transaction: Transaction, queues: list[str]) -> list[str]:
    """Those in which nobody is left. Heads that another transaction had locked were skipped, and it may leave them."""
    if transaction.connection.lateral and queues:
        peopled = {row[0] for row in transaction.rows(PEOPLED, [(queue,) for queue in queues])}
        queues = [queue for queue in queues if queue not in peopled]
    for queue in queues:  # what came in this transaction is given out in it: nobody else has to look
        transaction.hints.pop(f"ready.{queue}", None)
    return queues


def _heads(transaction: Transaction, queues: Sequence[Queue], most: int) -> list[Row]:
    """The first `most` waiting tasks of each queue: never more rows than could be claimed."""
    if transaction.connection.lateral:
        return transaction.rows(HEADS, [(queue.id,) for queue in queues], most)
    return [row for queue in queues for row in transaction.rows(HEAD, queue.id, most)]


def _dealt(heads: list[Row], wanted: Round) -> list[tuple[Row, Free, str]]:
    """Waiting tasks dealt to free workers: lowest rank first in a team, teams in turn, each to the emptiest node."""
    queues = {queue.id: queue for queue in wanted.queues}
    lines: dict[str, list[Row]] = {}
    for head in sorted(heads, key=lambda head: (head[1], head[2])):
        lines.setdefault(queues[head[0]].team, []).append(head)
    teams = sorted(lines)
    turn = [*(t for t in teams if t > wanted.after_team), *(t for t in teams if t <= wanted.after_team)]
    room = [(list(free.attempts), free.room, free) for free in wanted.free]
    dealt: list[tuple[Row, Free, str]] = []
    place = 0
    while any(lines.values()):
        for team in turn:
            if place < len(lines[team]):
                head = lines[team][place]
                cost = queues[head[0]].resources
                fitting = [at for at, (ids, left, _) in enumerate(room) if ids and cost.fits(left)]
                if fitting:
                    at = max(fitting, key=lambda at: len(room[at][0]))
                    ids, left, free = room[at]
                    dealt.append((head, free, ids.pop()))
                    room[at] = (ids, left - cost, free)
        place += 1
        if not any(ids for ids, _, _ in room) or all(place >= len(line) for line in lines.values()):
            break
    return dealt


# -- start, renew ------------------------------------------------------------------------------------------------------

START = Statement(
    "UPDATE running SET status = 'running', started_at = retinue_now() FROM {rows m(id text, fence bigint)}"
    " WHERE running.id = m.id AND running.fence = m.fence AND running.status = 'claimed'"
    " RETURNING running.id, running.fence, running.team, running.node, running.attempt"
)
HELD = Statement(
    "SELECT id, fence FROM running WHERE (id, fence) IN (SELECT id, fence FROM {rows m(id text, fence bigint)})"
)
RENEW = Statement(
    "UPDATE running SET reap_at = retinue_now() + m.lease + running.patience"
    " FROM {rows m(id text, fence bigint, lease bigint)}"
    " WHERE running.id = m.id AND running.fence = m.fence RETURNING running.id, running.fence"
)


def _start(transaction: Transaction, items: Sequence[tuple[str, int]]) -> list[RetinueError | None]:
    """Each item is (task, fence). A repeat is fine; a stale one is refused."""
    rows = transaction.rows(START, sorted(items))
    for _, _, team, _, _ in rows:
        moved(transaction, team, TaskStatus.CLAIMED, TaskStatus.RUNNING)
    transaction.later(
        APPEND,
        (_fact("task.started", team, task, node, fence, attempt) for task, fence, team, node, attempt in sorted(rows)),
    )
    done = {(row[0], row[1]) for row in rows}
    repeated = [item for item in items if item not in done]
    if repeated:
        done.update((row[0], row[1]) for row in transaction.rows(HELD, repeated))
    return [None if item in done else stale(transaction, *item) for item in items]


class Renewal(msgspec.Struct, frozen=True):
    """One node's renewal: it is alive and holds these (task, fence)."""

    node: str
    boot: str
    holds: tuple[tuple[str, int], ...]
    lease: int  # microseconds


def _renew(transaction: Transaction, items: Sequence[Renewal]) -> list[list[tuple[str, int]] | RetinueError]:
    """For each node, the holds that are lost. A claim past its lease is renewed while the reaper has not acted."""
    nodes.seen(transaction, [(item.node, item.boot) for item in items])
    wanted = sorted((task, fence, item.lease) for item in items for task, fence in item.holds)
    kept = {(row[0], row[1]) for row in transaction.rows(RENEW, wanted)} if wanted else set()
    return [[hold for hold in item.holds if hold not in kept] for item in items]


# -- finish ------------------------------------------------------------------------------------------------------------

DROP_RUNNING = Statement(
    "DELETE FROM running WHERE (id, fence) IN (SELECT id, fence FROM {rows m(id text, fence bigint)})"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
END = Statement(
    "UPDATE tasks SET status = m.status, finished_at = retinue_now(), fence = m.fence, attempt = m.attempt,"
    " exit_code = m.exit_code, code = m.code, error = m.error, result = m.result"
    " FROM {rows m(id text, status text, fence bigint, attempt text, exit_code bigint, code text, error text,"
    " result text)} WHERE tasks.id = m.id"
)
ADD_ATTEMPTS = Insert(
    "attempts",
    "task text, fence bigint, id text, node text, status text, digest text, claimed_at bigint, started_at bigint,"
    " ended_at bigint, exit_code bigint, code text, error text",
)
DROP_HELD = Statement(
    "DELETE FROM running WHERE id IN (SELECT id FROM {rows m(id text)})"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
PAST = Statement("SELECT digest FROM attempts WHERE task = ? AND fence = ?")
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


class Finish(msgspec.Struct, frozen=True):
    """A holder's report that its attempt ended. `chance` in 0..1 spreads the backoff of a retry."""

    task: str
    fence: int
    ending: Ending
    digest: str
    chance: float = 0.0


def _finish(transaction: Transaction, items: Sequence[Finish]) -> list[TaskStatus | RetinueError]:
    """What the report was taken for: completed or failed, also when another attempt follows.

    The same report again gets the same answer; a stale one is refused and has no effect.
    """
    holds = sorted({(item.task, item.fence) for item in items})
    dropped = {(r[0], r[1]): r for r in transaction.rows(DROP_RUNNING, holds)}
    first: dict[tuple[str, int], Finish] = {}
    for item in items:
        if (item.task, item.fence) in dropped:
            first.setdefault((item.task, item.fence), item)
    attempts: list[Row] = []
    ended: list[tuple[Row, Ending]] = []
    failed: list[tuple[Row, Finish]] = []
    for hold, item in first.items():
        row, ending = dropped[hold], item.ending
        status = AttemptStatus.COMPLETED if ending.ok else AttemptStatus.FAILED
        attempts.append(_attempt(row, status, item.digest, ending.exit_code, ending.code, ending.error))
        if ending.ok:
            ended.append((row, ending))
        else:
            failed.append((row, item))
    transaction.insert(ADD_ATTEMPTS, attempts)
    completed(transaction, ended)
    _failed(transaction, failed)
    return [
        _settled(transaction, item) if first.get((item.task, item.fence)) is not item
        else TaskStatus.COMPLETED if item.ending.ok else TaskStatus.FAILED
        for item in items
    ]  # fmt: skip


def _settled(transaction: Transaction, item: Finish) -> TaskStatus | RetinueError:
    """The answer to a report whose claim is gone: the stored one if it is the same report, else stale."""
    past = transaction.row(PAST, item.task, item.fence)
    if past is not None and past[0] == item.digest:
        return TaskStatus.COMPLETED if item.ending.ok else TaskStatus.FAILED
    return stale(transaction, item.task, item.fence)


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
            _fact("task.completed", r[2], r[0], r[3], r[1], r[5], exit_code=e.exit_code, digest=e.digest())
            for r, e in ended
        ),
    )
    parents_ended(transaction, [r[0] for r, _ in ended], completed=True)


def _failed(transaction: Transaction, failed: Sequence[tuple[Row, Finish]]) -> None:
    """Attempts that failed: another one after a backoff where that is allowed, else their tasks are over."""
    if not failed:
        return
    tries = {str(row[0]): row for row in transaction.rows(TRIES, sorted((row[0],) for row, _ in failed))}
    again: list[_Again] = []
    over: list[tuple[Row, Ending]] = []
    for row, item in failed:
        _, queue, order, spec, failures, losses = tries[row[0]]
        allowed = _spec(spec)
        if item.ending.retryable and failures + 1 < allowed.max_attempts:
            wait = int(backoff(allowed.backoff_seconds, failures + 1, item.chance).total_seconds() * SECOND)
            again.append(_Again(row, spec, queue, order, failures + 1, losses, wait, item.ending, "task.retried"))
        else:
            over.append((row, item.ending))
    _again(transaction, again)
    failed_for_good(transaction, over)


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
            _fact("task.failed", r[2], r[0], r[3], r[1], r[5], exit_code=e.exit_code, code=e.code, error=e.error)
            for r, e in over
        ),
    )
    parents_ended(transaction, [r[0] for r, _ in over], completed=False)


class _Again(msgspec.Struct, frozen=True):
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


def _again(transaction: Transaction, again: Sequence[_Again]) -> None:
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
        facts.append(_fact(one.event, team, task, node, fence, attempt, status=status, code=e.code, error=e.error))
    transaction.run(FAILED_ONCE, updates)
    transaction.insert(ADD_TIMERS, timers)
    if timers:
        transaction.hint("timers")
    make_ready(transaction, ready)
    transaction.later(APPEND, facts)


def make_ready(transaction: Transaction, tasks: Sequence[tuple[str, str, str, int, int]]) -> None:
    """Put (task, team, spec, rank, fence) into their lines; their status is the caller's to write."""
    rows: list[Row] = []
    for task, team, spec, order, fence in tasks:
        queue = queue_of(team, _spec(spec))
        _insert_queue(transaction, queue)
        rows.append((queue.id, order, task, fence))
        transaction.hint(f"ready.{queue.id}")
    transaction.insert(ADD_READY, rows)


# -- parents and children ----------------------------------------------------------------------------------------------

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


# -- hand back, reap ---------------------------------------------------------------------------------------------------

REAP = Statement(
    "DELETE FROM running WHERE (id, fence) IN (SELECT id, fence FROM {rows m(id text, fence bigint)})"
    " AND reap_at < retinue_now()"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
OVERDUE = Statement("SELECT id, fence FROM running WHERE reap_at < retinue_now() ORDER BY reap_at LIMIT ?")
OF_NODE = Statement("SELECT id, fence, boot FROM running WHERE node = ? ORDER BY id")


def _release(transaction: Transaction, items: Sequence[tuple[str, int]]) -> list[RetinueError | None]:
    """Each item is (task, fence): handed back by its holder before it was started."""
    dropped = {(row[0], row[1]): row for row in transaction.rows(DROP_RUNNING, sorted(items))}
    hand_back(transaction, [row for row in dropped.values() if row[8] is None], "task.released")
    hand_back(transaction, [row for row in dropped.values() if row[8] is not None], "task.orphaned")
    return [None if item in dropped else stale(transaction, *item) for item in items]


def _reap(transaction: Transaction, items: Sequence[int]) -> list[int | RetinueError]:
    """Each item is how many at most; the outcome is how many were orphaned. The write repeats the whole guard."""
    outcomes: list[int | RetinueError] = []
    for most in items:
        overdue = transaction.rows(OVERDUE, most)
        lost = transaction.rows(REAP, overdue) if overdue else []
        hand_back(transaction, lost, "task.orphaned")
        outcomes.append(len(lost))
    return outcomes


class Presence(msgspec.Struct, frozen=True):
    """What a node's process holds, said at hello."""

    node: str
    boot: str
    holds: tuple[tuple[str, int], ...]


def _hello(transaction: Transaction, items: Sequence[Presence]) -> list[list[tuple[str, int]] | RetinueError]:
    """Give back what the node does not hold: claims of its boot that never arrived, and those of its dead boots.

    The outcome is the holds which are not the node's any more.
    """
    outcomes: list[list[tuple[str, int]] | RetinueError] = []
    for item in items:
        rows = transaction.rows(OF_NODE, item.node)
        held = set(item.holds)
        mine = {(task, fence) for task, fence, boot in rows if boot == item.boot}
        unlisted = sorted(mine - held)
        dead = sorted((task, fence) for task, fence, boot in rows if boot != item.boot)
        given_up = transaction.rows(DROP_RUNNING, unlisted) if unlisted else []
        hand_back(transaction, [row for row in given_up if row[8] is None], "task.released")
        hand_back(transaction, [row for row in given_up if row[8] is not None], "task.orphaned")
        hand_back(transaction, transaction.rows(DROP_RUNNING, dead) if dead else [], "task.orphaned")
        outcomes.append([hold for hold in item.holds if hold not in mine])
    return outcomes


def hand_back(transaction: Transaction, rows: Sequence[Row], event: str) -> None:
    """Claims that ended without a report: released ones wait again; orphaned ones as their policy says.

    A claim that was never started costs nothing, except under `fail`: nobody can know whether a lost node had begun.
    """
    if not rows:
        return
    tries = {str(row[0]): row for row in transaction.rows(TRIES, sorted((row[0],) for row in rows))}
    again: list[_Again] = []
    over: list[tuple[Row, Ending]] = []
    attempts: list[Row] = []
    lost = event == "task.orphaned"
    for row in sorted(rows):
        _, queue, order, spec, failures, losses = tries[row[0]]
        started = row[8] is not None
        losses += lost and started
        ending = Ending(
            False,
            error="Its node was lost while it ran." if lost else None,
            code=FailureCode.NODE_LOST if lost else None,
        )
        if lost or started:
            attempts.append(
                _attempt(
                    row,
                    AttemptStatus.ORPHANED if lost else AttemptStatus.RELEASED,
                    None,
                    None,
                    ending.code,
                    ending.error,
                )
            )
        if lost and (losses >= MOST_LOSSES or not loss_policy(_spec(spec).on_node_loss).requeue):
            over.append((row, ending))
        else:
            again.append(_Again(row, spec, queue, order, failures, losses, 0, ending, event, recorded=lost or started))
    transaction.insert(ADD_ATTEMPTS, attempts)
    _again(transaction, again)
    if over:
        transaction.later(
            APPEND,
            (_fact("task.orphaned", r[2], r[0], r[3], r[1], r[5], status=TaskStatus.FAILED) for r, _ in over),
        )
    failed_for_good(transaction, over)


# -- take from whoever has it ------------------------------------------------------------------------------------------

LOCK = Statement(
    "SELECT id, team, status, queue, rank, finished_at FROM tasks WHERE id IN (SELECT id FROM {rows t(id text)})"
    " ORDER BY id{postgres: FOR UPDATE}"
)
DROP_READY = Statement(
    "DELETE FROM ready WHERE (queue, rank, id) IN"
    " (SELECT queue, rank, id FROM {rows t(queue text, rank bigint, id text)}) RETURNING id"
)


class Taken(msgspec.Struct, frozen=True):
    """A task that is open and that nobody but this transaction can move any more."""

    task: str
    team: str
    status: str  # as it is counted: the held ones' is their `running` row's
    held: Row | None  # its deleted `running` row


def take(transaction: Transaction, tasks: Sequence[str]) -> list[Taken]:
    """Those of these tasks that are open, wherever they are: their narrow rows are deleted, their wide ones locked.

    The caller has to end them. In the order in which holders take rows, `running` before `tasks`, so that a report
    which comes at the same moment waits instead of deadlocking. A claim may move a task from `ready` to `running`
    while we look, once: after that our lock keeps it where it is.
    """
    ids = [(task,) for task in sorted(tasks)]
    held: dict[str, Row] = {}
    gone: set[str] = set()
    rows: list[Row] = []
    for _ in range(2):
        held.update((row[0], row) for row in transaction.rows(DROP_HELD, ids))
        rows = [row for row in transaction.rows(LOCK, ids) if row[5] is None]
        waiting = [(row[3], row[4], row[0]) for row in rows
                   if row[2] == TaskStatus.PENDING and row[0] not in held and row[0] not in gone]  # fmt: skip
        if not waiting:
            break
        gone.update(row[0] for row in transaction.rows(DROP_READY, waiting))
        if all(row[2] in gone for row in waiting):
            break
    return [
        Taken(task, team, held[task][6] if task in held else status, held.get(task)) for task, team, status, *_ in rows
    ]


# -- shared ------------------------------------------------------------------------------------------------------------


def _attempt(
    row: Row, status: AttemptStatus, digest: str | None, exit_code: int | None, code: str | None, error: str | None
) -> Row:
    """The record of a held task's attempt, from its deleted `running` row."""
    task, fence, _, node, _, attempt, _, claimed_at, started_at, now = row
    return (task, fence, attempt, node, status, digest, claimed_at, started_at, now, exit_code, code, error)


def _fact(kind: str, team: str, task: str, node: str, fence: int, attempt: str, **data: Any) -> NewEvent:
    said = {name: value for name, value in data.items() if value is not None}
    return NewEvent(team, kind, task, {"task_id": task, "attempt": attempt, "fence": fence, **said}, node, actor=node)


TEAM_OF = Statement("SELECT team FROM tasks WHERE id = ?")


def stale(transaction: Transaction, task: str, fence: int) -> StaleClaim:
    """The refusal of a stale claim, counted as a denial."""
    team = transaction.row(TEAM_OF, task)
    if team is not None:
        transaction.later(DENIED, [(str(team[0]), task, "STALE_CLAIM")])
    return StaleClaim(task=task, fence=fence)


CREATE: Kind[NewTask, str] = Kind("task.create", 20, _create)
START_KIND: Kind[tuple[str, int], None] = Kind("task.start", 30, _start)
RENEW_KIND: Kind[Renewal, list[tuple[str, int]]] = Kind("task.renew", 31, _renew)
FINISH: Kind[Finish, TaskStatus] = Kind("task.finish", 40, _finish)
RELEASE: Kind[tuple[str, int], None] = Kind("task.release", 50, _release)
HELLO: Kind[Presence, list[tuple[str, int]]] = Kind("node.hello", 51, _hello)
REAP_KIND: Kind[int, int] = Kind("task.reap", 52, _reap)
CLAIM: Kind[Round, Dealt] = Kind("task.claim", 80, _claim)
KINDS: Final[Iterable[Kind[Any, Any]]] = (CREATE, START_KIND, RENEW_KIND, FINISH, RELEASE, HELLO, REAP_KIND, CLAIM)
