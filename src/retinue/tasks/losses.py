"""Tasks in SQL, claims that end without a report: handed back, reaped, not listed at hello, taken from above."""

from collections.abc import Sequence

import msgspec

from retinue.errors import RetinueError
from retinue.events.store import APPEND
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Row, Statement
from retinue.tasks.endings import TRIES, Again, failed_for_good, wait_again
from retinue.tasks.model import (
    MOST_LOSSES,
    AttemptStatus,
    Ending,
    FailureCode,
    TaskSpec,
    TaskStatus,
    loss_policy,
)
from retinue.tasks.rows import ADD_ATTEMPTS, DROP_RUNNING, attempt_row, stale, task_event

_spec = msgspec.json.Decoder(TaskSpec).decode

DROP_HELD = Statement(
    "DELETE FROM running WHERE id IN (SELECT id FROM {rows m(id text)})"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
REAP = Statement(
    "DELETE FROM running WHERE (id, fence) IN (SELECT id, fence FROM {rows m(id text, fence bigint)})"
    " AND reap_at < retinue_now()"
    " RETURNING id, fence, team, node, boot, attempt, status, claimed_at, started_at, retinue_now()"
)
OVERDUE = Statement("SELECT id, fence FROM running WHERE reap_at < retinue_now() ORDER BY reap_at LIMIT ?")
OF_NODE = Statement("SELECT id, fence, boot, attempt FROM running WHERE node = ? ORDER BY id")


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
    unsent: tuple[str, ...] = ()  # attempts that were claimed for the node and that no process of it was told of


def _hello(transaction: Transaction, items: Sequence[Presence]) -> list[list[tuple[str, int]] | RetinueError]:
    """Give back what the node does not hold: claims of its boot that never arrived, and those of its dead boots.

    The outcome is the holds which are not the node's any more.
    """
    outcomes: list[list[tuple[str, int]] | RetinueError] = []
    for item in items:
        rows = transaction.rows(OF_NODE, item.node)
        held = set(item.holds)
        mine = {(task, fence) for task, fence, boot, _ in rows if boot == item.boot}
        unlisted = sorted(mine - held)
        dead = sorted((task, fence) for task, fence, boot, _ in rows if boot != item.boot)
        never = sorted((task, fence) for task, fence, _, attempt in rows if attempt in item.unsent)
        hand_back(transaction, transaction.rows(DROP_RUNNING, never) if never else [], "task.released")
        given_up = transaction.rows(DROP_RUNNING, unlisted) if unlisted else []
        hand_back(transaction, [row for row in given_up if row[8] is None], "task.released")
        hand_back(transaction, [row for row in given_up if row[8] is not None], "task.orphaned")
        hand_back(transaction, transaction.rows(DROP_RUNNING, dead) if dead else [], "task.orphaned")
        outcomes.append([hold for hold in item.holds if hold not in mine])
    return outcomes


def _unclaim(transaction: Transaction, items: Sequence[tuple[str, tuple[str, ...]]]) -> list[int | RetinueError]:
    """Each item is (node, attempts) of claims that were never sent to the node; how many there really were.

    Only the coordinator that made the ids of these attempts can say so. They cost nothing, whatever the policy.
    """
    outcomes: list[int | RetinueError] = []
    for node, attempts in items:
        unsent = sorted((row[0], row[1]) for row in transaction.rows(OF_NODE, node) if row[3] in attempts)
        rows = transaction.rows(DROP_RUNNING, unsent) if unsent else []
        hand_back(transaction, rows, "task.released")
        outcomes.append(len(rows))
    return outcomes


def hand_back(transaction: Transaction, rows: Sequence[Row], event: str) -> None:
    """Claims that ended without a report: released ones wait again; orphaned ones as their policy says.

    A claim that was never started costs nothing, except under `fail`: nobody can know whether a lost node had begun.
    """
    if not rows:
        return
    tries = {str(row[0]): row for row in transaction.rows(TRIES, sorted((row[0],) for row in rows))}
    again: list[Again] = []
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
                attempt_row(
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
            again.append(Again(row, spec, queue, order, failures, losses, 0, ending, event, recorded=lost or started))
    transaction.insert(ADD_ATTEMPTS, attempts)
    wait_again(transaction, again)
    if over:
        transaction.later(
            APPEND,
            (task_event("task.orphaned", r[2], r[0], r[3], r[1], r[5], status=TaskStatus.FAILED) for r, _ in over),
        )
    failed_for_good(transaction, over)


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


RELEASE: Kind[tuple[str, int], None] = Kind("task.release", 50, _release)
HELLO: Kind[Presence, list[tuple[str, int]]] = Kind("node.hello", 51, _hello)
REAP_KIND: Kind[int, int] = Kind("task.reap", 52, _reap)
UNCLAIM: Kind[tuple[str, tuple[str, ...]], int] = Kind("task.unclaim", 53, _unclaim)
