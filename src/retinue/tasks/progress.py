"""Progress in SQL: the latest value of each task, an event only when the stage changes."""

from collections.abc import Sequence
from typing import Final

import msgspec

from retinue.errors import RetinueError
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.storage.database import Kind, Transaction
from retinue.storage.sql import Statement
from retinue.tasks.model import Progress
from retinue.tasks.rows import stale

# Locked against the claim's end, so that nothing is taken from a holder that is stale when it is committed.
HOLDER: Final = Statement("SELECT team, node, attempt FROM running WHERE id = ? AND fence = ?{postgres: FOR KEY SHARE}")
LATEST: Final = Statement("SELECT fence, data FROM progress WHERE task = ?")
SET: Final = Statement(
    "INSERT INTO progress (task, fence, data, at) VALUES (?, ?, ?, retinue_now())"
    " ON CONFLICT (task) DO UPDATE SET fence = excluded.fence, data = excluded.data, at = excluded.at"
)


def _progress(transaction: Transaction, items: Sequence[tuple[str, int, Progress]]) -> list[RetinueError | None]:
    """Each item is (task, fence, value)."""
    outcomes: list[RetinueError | None] = []
    for task, fence, value in items:
        holder = transaction.row(HOLDER, task, fence)
        if holder is None:
            outcomes.append(stale(transaction, task, fence))
            continue
        team, node, attempt = holder
        before = transaction.row(LATEST, task)
        stage = msgspec.json.decode(before[1], type=Progress).stage if before and before[0] == fence else None
        transaction.run(SET, task, fence, msgspec.json.encode(value).decode())
        if value.stage != stage:
            data = {"task_id": task, "attempt": attempt, "fence": fence, "stage": value.stage}
            transaction.later(APPEND, [NewEvent(team, "task.progress", task, data, node, node)])
        outcomes.append(None)
    return outcomes


PROGRESS: Final[Kind[tuple[str, int, Progress], None]] = Kind("task.progress", 33, _progress)
