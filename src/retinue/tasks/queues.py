"""Queues in SQL: one line per requirement set, at most 1,000 live ones a team, and how a task gets into its line."""

from collections.abc import Mapping, Sequence

import msgspec

from retinue.storage.database import Transaction
from retinue.storage.sql import Insert, Row, Statement
from retinue.tasks.model import (
    MOST_QUEUES,
    Queue,
    TaskSpec,
    queue_of,
)
from retinue.tasks.rows import ADD_READY

_encode = msgspec.json.Encoder().encode
_spec = msgspec.json.Decoder(TaskSpec).decode

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


def room_for_queues(transaction: Transaction, team: str, most: int, wanted: Mapping[str, Queue]) -> int:
    """How many new queues a team may have, at most `most`; empty ones make room, but not those that are wanted now."""
    transaction.rows(ONE_AT_A_TIME, team)
    room = MOST_QUEUES - int(transaction.rows(COUNT_QUEUES, team)[0][0])
    if room < most:
        empty = [row for row in transaction.rows(EMPTY_QUEUES, team) if row[0] not in wanted]
        room += transaction.run(DROP_EMPTY_QUEUES, empty)
    return max(0, min(room, most))


def insert_queue(transaction: Transaction, queue: Queue) -> None:
    """Make sure that the queue's row is there when this transaction commits."""
    parts = [_encode(part).decode() for part in (queue.labels, queue.requires, queue.resources)]
    while not transaction.row(HAS_QUEUE, queue.id):  # on a server somebody may make it, or drop it, beside us
        transaction.insert(ADD_QUEUES, [(queue.id, queue.team, parts[0], parts[1], queue.node, parts[2])])


def make_ready(transaction: Transaction, tasks: Sequence[tuple[str, str, str, int, int]]) -> None:
    """Put (task, team, spec, rank, fence) into their lines; their status is the caller's to write."""
    rows: list[Row] = []
    for task, team, spec, order, fence in tasks:
        queue = queue_of(team, _spec(spec))
        insert_queue(transaction, queue)
        rows.append((queue.id, order, task, fence))
        transaction.hint(f"ready.{queue.id}")
    transaction.insert(ADD_READY, rows)
