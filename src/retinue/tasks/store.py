"""Tasks in SQL, the hot path: claim, start, renew, finish. Each for many tasks at once.

Three tables: `tasks` is wide and cold, `ready` has a narrow row for what may be claimed, `running` for what is held.
Who deletes the narrow row owns the move: that is the guard of every transition, and it stands in the statement itself.
What comes before is in `admission.py` and `queues.py`, what follows in `endings.py` and `losses.py`.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from retinue.errors import RetinueError
from retinue.events.store import APPEND
from retinue.nodes import store as nodes
from retinue.nodes.resources import Resources
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.endings import TRIES, Again, completed, failed_for_good, wait_again
from retinue.tasks.model import (
    AttemptStatus,
    Claim,
    Ending,
    Queue,
    TaskSpec,
    TaskStatus,
    backoff,
    next_fence,
)
from retinue.tasks.rows import ADD_ATTEMPTS, DROP_RUNNING, SECOND, attempt_row, moved, stale, task_event

_spec = msgspec.json.Decoder(TaskSpec).decode


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
        APPEND, (task_event("task.claimed", c.team, c.task, c.node, c.fence, c.attempt, boot=c.boot) for c in claims)
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
        (
            task_event("task.started", team, task, node, fence, attempt)
            for task, fence, team, node, attempt in sorted(rows)
        ),
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


PAST = Statement("SELECT digest FROM attempts WHERE task = ? AND fence = ?")


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
        attempts.append(attempt_row(row, status, item.digest, ending.exit_code, ending.code, ending.error))
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


def _failed(transaction: Transaction, failed: Sequence[tuple[Row, Finish]]) -> None:
    """Attempts that failed: another one after a backoff where that is allowed, else their tasks are over."""
    if not failed:
        return
    tries = {str(row[0]): row for row in transaction.rows(TRIES, sorted((row[0],) for row, _ in failed))}
    again: list[Again] = []
    over: list[tuple[Row, Ending]] = []
    for row, item in failed:
        _, queue, order, spec, failures, losses = tries[row[0]]
        allowed = _spec(spec)
        if item.ending.retryable and failures + 1 < allowed.max_attempts:
            wait = int(backoff(allowed.backoff_seconds, failures + 1, item.chance).total_seconds() * SECOND)
            again.append(Again(row, spec, queue, order, failures + 1, losses, wait, item.ending, "task.retried"))
        else:
            over.append((row, item.ending))
    wait_again(transaction, again)
    failed_for_good(transaction, over)


START_KIND: Kind[tuple[str, int], None] = Kind("task.start", 30, _start)
RENEW_KIND: Kind[Renewal, list[tuple[str, int]]] = Kind("task.renew", 31, _renew)
FINISH: Kind[Finish, TaskStatus] = Kind("task.finish", 40, _finish)
CLAIM: Kind[Round, Dealt] = Kind("task.claim", 80, _claim)
