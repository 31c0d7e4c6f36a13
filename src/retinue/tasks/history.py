"""The life of tasks, replayed: from the event feed alone, where each task is. What the rows say has to agree (I-28)."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from retinue.events import store as events
from retinue.events.model import Event
from retinue.storage.database import Connection
from retinue.storage.sql import Statement
from retinue.tasks.model import EVENTS, HELD, TERMINAL, WAITING, TaskStatus

PAGE: Final = 1000
ROWS: Final = Statement(
    "SELECT tasks.id, COALESCE(running.status, tasks.status), COALESCE(running.fence, tasks.fence),"
    " COALESCE(running.attempt, tasks.attempt), running.node, attempts.digest, tasks.spec"
    " FROM tasks LEFT JOIN running ON running.id = tasks.id"
    " LEFT JOIN attempts ON attempts.task = tasks.id AND attempts.fence = tasks.fence"
    " AND attempts.status = 'completed' AND tasks.status = 'completed'"
    " WHERE tasks.team = ? ORDER BY tasks.id"
)
EDGES: Final = Statement(
    "SELECT edges.child, edges.parent FROM edges JOIN tasks ON tasks.id = edges.child WHERE tasks.team = ?"
    " ORDER BY edges.child, edges.parent"
)


class IllegalMove(ValueError):
    """An event that cannot follow what came before it: the feed, or the code that wrote it, is wrong."""


class Known(msgspec.Struct, frozen=True):
    """What the feed says about a task."""

    status: TaskStatus
    parents: tuple[str, ...] = ()
    fence: int = 0
    attempt: str | None = None
    owner: str | None = None
    digest: str | None = None  # of the accepted result


class _Place(msgspec.Struct):
    known: Known
    before: str | None = None  # the attempt before this one, the last again when this one is handed back unstarted


class _Spec(msgspec.Struct):
    after: list[str] = []


class History:
    """Folds events, oldest first, into what is known of each task."""

    def __init__(self, position: int = 0) -> None:
        """Begin behind `position`; of tasks that were created before it nothing is known."""
        self.position = position
        self._begin = position
        self._places: dict[str, _Place] = {}

    @property
    def tasks(self) -> dict[str, Known]:
        """What is known of every task that was created since the beginning."""
        return {task: place.known for task, place in self._places.items()}

    def apply(self, event: Event) -> None:
        """Take the next event.

        Raises:
            IllegalMove: it is not the next one, or the task's life has no such arrow.
        """
        if event.position != self.position + 1:
            raise IllegalMove(f"event {event.position} follows {self.position}")
        self.position = event.position
        task = event.correlation_id
        if event.type == "task.created":
            if task in self._places:
                raise IllegalMove(f"{_at(event)}: created twice")
            status = TaskStatus(event.data["status"])
            if status not in WAITING:
                raise IllegalMove(f"{_at(event)}: created as {status}")
            self._places[task] = _Place(Known(status, tuple(event.data.get("parents", ()))))
        elif event.type == "task.progress" or event.type in EVENTS:
            place = self._places.get(task)
            if place is None:
                if self._begin:
                    return  # it is older than our beginning
                raise IllegalMove(f"{_at(event)}: never created")
            _moved(place, event)


def fold(feed: Iterable[Event], position: int = 0) -> dict[str, Known]:
    """What the feed, from behind `position` on, says about each task that was created in it.

    Raises:
        IllegalMove: an event is missing, or cannot follow what came before it.
    """
    history = History(position)
    for event in feed:
        history.apply(event)
    return history.tasks


def _moved(place: _Place, event: Event) -> None:
    known = place.known
    if event.type == "task.claimed":
        place.before = known.attempt
    elif known.status in HELD and event.data.get("fence") != known.fence:
        raise IllegalMove(f"{_at(event)}: it is held under fence {known.fence}")
    place.known = msgspec.structs.replace(known, **_changes(place, event))


def _changes(place: _Place, event: Event) -> dict[str, Any]:
    """Which fields of what is known the event changes."""
    known, data = place.known, event.data
    if event.type == "task.progress":
        if known.status not in HELD:
            raise IllegalMove(f"{_at(event)}: it is {known.status}")
        return {}
    move = EVENTS[event.type]
    if known.status not in move.sources:
        raise IllegalMove(f"{_at(event)}: it is {known.status}")
    if event.type == "task.claimed":
        if data["fence"] <= known.fence:
            raise IllegalMove(f"{_at(event)}: its fence was {known.fence} before")
        return {
            "status": TaskStatus.CLAIMED,
            "fence": data["fence"],
            "attempt": data["attempt"],
            "owner": event.node,
            "digest": None,
        }
    if event.type == "task.orphaned" and data["status"] == TaskStatus.FAILED:
        return {}  # the event that says why follows at once
    only = next(iter(move.targets)) if len(move.targets) == 1 else None
    status = only or TaskStatus(data["status"])
    if status in HELD:
        return {"status": status}
    if status not in move.targets or (only is None and not _allowed(known.status, status)):
        raise IllegalMove(f"{_at(event)}: from {known.status} to {status}")
    attempt = place.before if event.type == "task.released" else known.attempt
    return {"status": status, "attempt": attempt, "owner": None, "digest": data.get("digest")}


def _allowed(source: TaskStatus, target: TaskStatus) -> bool:
    """Where a move whose event says the target may lead: on through waiting, never back into being blocked."""
    if target not in WAITING or target is source:
        return False
    return target is not TaskStatus.BLOCKED or source in TERMINAL


def _at(event: Event) -> str:
    return f"{event.type} of {event.correlation_id} at position {event.position}"


def replay(connection: Connection, team: str) -> History:
    """The whole retained feed of a team, folded.

    Raises:
        IllegalMove: an event is missing, or cannot follow what came before it.
    """
    history = History(events.start(connection, team))
    while page := events.page(connection, team, history.position, PAGE):
        for event in page:
            history.apply(event)
    return history


def compare(connection: Connection, team: str, history: History | None = None) -> list[str]:
    """Where the rows of a team's tasks and its feed disagree, a sentence each; none when all is well.

    A `history` that was kept is brought up to date; without one the whole feed is replayed.

    Raises:
        IllegalMove: the feed contradicts itself.
    """
    if history is None:
        history = replay(connection, team)
    while page := events.page(connection, team, history.position, PAGE):
        for event in page:
            history.apply(event)
    told = history.tasks
    rows = {row[0]: row for row in connection.rows(ROWS, team)}
    wrong = []
    for task, known in told.items():
        if task not in rows:
            if known.status not in TERMINAL:
                wrong.append(f"{task} is {known.status} in the feed and has no row")
            continue
        _, status, fence, attempt, node, digest, spec = rows[task]
        after = tuple(msgspec.json.decode(spec, type=_Spec).after)
        row = Known(TaskStatus(status), after, fence, attempt, node, digest)
        wrong += [
            f"{task}: {field} is {getattr(row, field)!r} in its row and {getattr(known, field)!r} in the feed"
            for field in Known.__struct_fields__
            if getattr(row, field) != getattr(known, field)
        ]
    if not events.start(connection, team):
        wrong += [f"{task} has a row and was never created in the feed" for task in rows if task not in told]
    edges = {(child, parent) for child, parent in connection.rows(EDGES, team)}
    known_edges = {(task, parent) for task, known in told.items() for parent in known.parents}
    wrong += [f"{child} has an edge from {parent} that its event does not name" for child, parent in
              sorted((child, parent) for child, parent in edges - known_edges if child in told)]  # fmt: skip
    wrong += [f"{child} has lost its edge from {parent}" for child, parent in sorted(known_edges - edges)
              if child in rows and parent in rows]  # fmt: skip
    return wrong
