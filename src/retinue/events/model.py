"""Events as values: a fact about something, with its place in its team's feed. No I/O."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from retinue.bus.bus import matches
from retinue.clock import moment
from retinue.ids import encode

# Every type there is, with what it says. Completeness is tested against `docs/events.md`.
EVENT_TYPES: Final[Mapping[str, str]] = {
    "task.created": "a task was submitted",
    "task.ready": "a blocked or scheduled task may be claimed now",
    "task.claimed": "a node was given the task under a new fence",
    "task.started": "the attempt runs",
    "task.progress": "the attempt entered another stage",
    "task.released": "the node handed the task back, or never received it",
    "task.orphaned": "the attempt's lease ran out or its node restarted",
    "task.retried": "another attempt follows a failed one, or an operator asked for one",
    "task.completed": "the result was accepted",
    "task.failed": "the task ended without a result",
    "task.cancelled": "somebody cancelled the task, or its foreground client went away",
    "node.registered": "a node process said what it has",
    "node.online": "a node is connected",
    "node.offline": "a node said good-bye, or was silent for too long",
}


class NewEvent(msgspec.Struct, frozen=True):
    """A fact about to be written with the change it tells of."""

    team: str
    type: str
    subject: str  # the id of what it is about
    data: dict[str, Any]
    node: str | None = None
    actor: str = "system"


class Event(msgspec.Struct, frozen=True):
    """A fact at its place in the feed."""

    id: str
    position: int
    type: str
    time: datetime
    team: str
    correlation_id: str
    data: dict[str, Any]
    node: str | None = None
    actor: str = "system"


def event(team: str, position: int, kind: str, at: int, subject: str, node: str | None, actor: str, data: str) -> Event:
    """An event from its row."""
    return Event(
        event_id(team, position, at), position, kind, moment(at), team, subject, msgspec.json.decode(data), node, actor
    )


def event_id(team: str, position: int, at: int) -> str:
    """A UUIDv7 whose chance bits are team and position: the same for the same event, so no row has to keep it."""
    place = int.from_bytes(hashlib.blake2b(team.encode(), digest_size=2).digest()) & 0xFFF
    return f"evt_{encode((at // 1000) << 80 | 0x7 << 76 | place << 64 | 0b10 << 62 | position)}"


def link(previous: str, rows: Iterable[tuple[Any, ...]]) -> str:
    """The hash link over a group's event rows, on top of the previous link."""
    return hashlib.sha256(previous.encode() + msgspec.json.encode(list(rows))).hexdigest()


def wanted(kind: str, patterns: Iterable[str]) -> bool:
    """Whether a type matches one of the patterns (`task.*`, `node.>`); no patterns want everything."""
    patterns = list(patterns)
    return not patterns or any(matches(pattern, kind) for pattern in patterns)
