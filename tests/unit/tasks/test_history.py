"""The feed replayed: a legal story says where its task is, an illegal one is noticed."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from retinue.events.model import Event
from retinue.tasks.history import IllegalMove, Known, fold
from retinue.tasks.model import TaskStatus

AT = datetime(2026, 1, 1, tzinfo=UTC)
CREATED = ("created", {"status": "pending"})
CLAIMED = ("claimed", {"fence": 1, "attempt": "att_1"})
STARTED = ("started", {"fence": 1, "attempt": "att_1"})
HELD = [CREATED, CLAIMED, STARTED]
Step = tuple[str, dict[str, Any]]


def feed(steps: Iterable[Step]) -> list[Event]:
    return [
        Event(f"evt_{place}", place, f"task.{kind}", AT, "ours", "tsk", data, node="nod" if kind == "claimed" else None)
        for place, (kind, data) in enumerate(steps, start=1)
    ]


def told(*steps: Step) -> Known:
    return fold(feed(steps))["tsk"]


def test_a_story_to_the_end() -> None:
    known = told(*HELD, ("progress", {"fence": 1}), ("completed", {"fence": 1, "digest": "d"}))

    assert known == Known(TaskStatus.COMPLETED, (), 1, "att_1", None, "d")


def test_a_held_task_has_an_owner() -> None:
    assert told(*HELD) == Known(TaskStatus.RUNNING, (), 1, "att_1", "nod")


def test_a_claim_that_was_handed_back_leaves_no_attempt() -> None:
    assert told(CREATED, CLAIMED, ("released", {"fence": 1, "status": "pending"})) == Known(TaskStatus.PENDING, (), 1)


def test_a_lost_attempt_stays_the_last() -> None:
    lost = ("orphaned", {"fence": 1, "status": "pending"})

    assert told(*HELD, lost) == Known(TaskStatus.PENDING, (), 1, "att_1")


def test_a_lost_attempt_that_was_the_last_one_is_followed_by_the_end() -> None:
    story = [*HELD, ("orphaned", {"fence": 1, "status": "failed"}), ("failed", {"fence": 1})]

    assert told(*story).status == TaskStatus.FAILED


def test_an_operators_retry_opens_what_has_ended() -> None:
    done = ("completed", {"fence": 1, "digest": "d"})

    assert told(*HELD, done, ("retried", {"status": "pending"})) == Known(TaskStatus.PENDING, (), 1, "att_1")


def test_what_began_before_the_retained_feed_is_left_out() -> None:
    later = [event for event in feed([*HELD, ("completed", {"fence": 1})]) if event.position > 2]

    assert fold(later, position=2) == {}


@pytest.mark.parametrize(
    "steps",
    [
        [STARTED],
        [CREATED, CREATED],
        [("created", {"status": "running"})],
        [CREATED, STARTED],
        [CREATED, ("ready", {"status": "pending"})],
        [CREATED, CLAIMED, CLAIMED],
        [CREATED, CLAIMED, ("released", {"fence": 1}), ("claimed", {"fence": 1, "attempt": "att_2"})],
        [*HELD, ("progress", {"fence": 2})],
        [*HELD, ("completed", {"fence": 2})],
        [*HELD, ("completed", {})],
        [*HELD, ("completed", {"fence": 1}), ("failed", {"fence": 1})],
        [*HELD, ("completed", {"fence": 1}), ("cancelled", {})],
        [*HELD, ("retried", {"fence": 1, "status": "blocked"})],
        [*HELD, ("retried", {"fence": 1, "status": "completed"})],
        [CREATED, ("retried", {"status": "pending"})],
        [CREATED, ("progress", {"fence": 0})],
        [CREATED, ("orphaned", {"fence": 1, "status": "failed"})],
    ],
)
def test_a_story_that_cannot_be_is_noticed(steps: list[Step]) -> None:
    with pytest.raises(IllegalMove):
        fold(feed(steps))


def test_a_missing_event_is_noticed() -> None:
    events = feed(HELD)

    with pytest.raises(IllegalMove):
        fold([events[0], events[2]])
