"""What the event feed in SQL promises on every engine (INVARIANTS I-28, I-36, I-41), as tests."""
# ruff: noqa: S101 - asserts are what a suite is made of

from collections.abc import Callable
from functools import partial

import pytest

from retinue.errors import CursorExpired
from retinue.events import store as events
from retinue.events.model import Event
from retinue.storage.database import Engine, Transaction
from retinue.storage.sql import Statement
from retinue.tasks import history
from retinue.testing.conformance.rig import Rig
from retinue.testing.conformance.tasks import HOUR, OnARig

DELETE = Statement("DELETE FROM events WHERE team = ? AND position = ?")
CHANGE = Statement("UPDATE events SET actor = 'nobody' WHERE team = ? AND position = ?")
COPY = Statement(
    "INSERT INTO events (team, position, type, at, subject, node, actor, data)"
    " SELECT team, position + 1, type, at, subject, node, actor, data FROM events WHERE team = ? AND position = ?"
)
DROP_LINK = Statement("DELETE FROM links WHERE team = ? AND last = ?")
NOW = Statement("SELECT retinue_now()")
FORGET = Statement("UPDATE tasks SET fence = fence + 1 WHERE id = ?")


class EventSuite(OnARig):
    """Give it a fixture `engine`: new, migrated, closed by you."""

    async def test_positions_have_no_gap_and_each_team_its_own(self, rig: Rig) -> None:
        await rig.all(*(rig.create(team=team) for team in [rig.team, rig.other] * 10))
        await rig.ended()
        other = await rig.read(lambda connection: events.page(connection, rig.other, 0, 100))

        assert [event.position for event in await rig.feed()] == list(range(1, 15))
        assert [event.position for event in other] == list(range(1, 11))
        assert {event.team for event in other} == {rig.other}

    async def test_a_refused_write_leaves_no_event_and_no_gap(self, rig: Rig) -> None:
        await rig.all(rig.create(), rig.create(after=["tsk_missing"]), rig.create())
        await rig.created()

        assert [event.position for event in await rig.feed()] == [1, 2, 3]

    async def test_an_event_says_who_did_what_to_which_task(self, rig: Rig) -> None:
        claim = await rig.held("a")
        await rig(rig.cancel(claim.task))
        created, claimed, started, cancelled = await rig.feed(claim.task)

        assert (created.actor, created.node, created.data["status"]) == ("ann", None, "pending")
        assert (claimed.node, claimed.data["fence"], claimed.data["attempt"]) == ("a", claim.fence, claim.attempt)
        assert (started.type, started.correlation_id) == ("task.started", claim.task)
        assert (cancelled.actor, cancelled.data["reason"]) == ("ann", "cancelled by request")
        assert len({event.id for event in (created, claimed, started, cancelled)}) == 4

    async def test_what_a_node_did_and_what_was_done_to_it_have_different_actors(self, rig: Rig) -> None:
        failed = await rig.held("a")
        lost = await rig.held("b", lease=-1, on_node_loss="fail")
        await rig.all(rig.fail(failed), rig.reap())
        by_node, *by_us = [*(await rig.feed(failed.task))[-1:], *(await rig.feed(lost.task))[-2:]]

        assert (by_node.actor, by_node.data["code"]) == ("a", "EXIT")
        assert [(event.type, event.actor, event.node) for event in by_us] == [
            ("task.orphaned", "system", "b"), ("task.failed", "system", "b"),
        ]  # fmt: skip

    async def test_pages_follow_each_other_without_gap_or_repeat(self, rig: Rig) -> None:
        await rig.all(*(rig.create() for _ in range(25)))
        found: list[Event] = []
        for after in (0, 10, 20, 25):
            found += await rig.read(partial(events.page, team=rig.team, after=after, limit=10))

        assert [event.position for event in found] == list(range(1, 26))
        assert await rig.read(lambda connection: events.last(connection, rig.team)) == 25

    async def test_links_of_an_untouched_feed_verify(self, rig: Rig) -> None:
        for _ in range(5):
            await rig.ended()

        assert await rig.read(lambda connection: events.broken_links(connection, rig.team)) == []

    @pytest.mark.parametrize("position", [1, 4, 8])
    @pytest.mark.parametrize("harm", [DELETE, CHANGE], ids=["deleted", "changed"])
    async def test_an_event_that_is_deleted_or_changed_is_noticed(
        self, rig: Rig, engine: Engine, harm: Statement, position: int
    ) -> None:
        await rig.ended()
        await rig.ended()

        broken = await looked_at(engine, rig, lambda transaction: transaction.run(harm, rig.team, position))

        assert broken != []

    async def test_an_event_that_is_added_behind_our_back_is_noticed(self, rig: Rig, engine: Engine) -> None:
        await rig.created()

        broken = await looked_at(engine, rig, lambda transaction: transaction.run(COPY, rig.team, 1))

        assert broken == [1]

    async def test_a_feed_that_was_cut_off_at_its_end_is_noticed(self, rig: Rig, engine: Engine) -> None:
        await rig.created()
        await rig.created()

        def cut(transaction: Transaction) -> None:
            transaction.run(DELETE, rig.team, 2)
            transaction.run(DROP_LINK, rig.team, 2)

        assert await looked_at(engine, rig, cut) == [1]

    async def test_a_cursor_before_the_retained_start_is_refused_with_the_new_start(self, rig: Rig) -> None:
        await rig.ended()
        await rig.pass_time(31 * 24 * HOUR)
        await rig.created()
        gone = await rig(rig.prune())
        with pytest.raises(CursorExpired) as refused:
            await rig.read(lambda connection: events.page(connection, rig.team, 3, 10))
        after = await rig.read(lambda connection: events.page(connection, rig.team, 4, 10))

        assert gone.events == 4
        assert refused.value.details == {"start": 4}
        assert [event.position for event in after] == [5]

    async def test_pruning_ends_at_a_link_and_the_rest_still_verifies(self, rig: Rig) -> None:
        for _ in range(3):
            await rig.all(*(rig.create() for _ in range(10)))
        await rig.pass_time(31 * 24 * HOUR)
        young = await rig.all(*(rig.create() for _ in range(10)))
        bites = [
            await rig.engine.write(lambda t: events.prune(t, rig.team, before=t.rows(NOW)[0][0] - 10**12, most=15))
            for _ in range(3)
        ]

        assert bites == [10, 10, 10]
        assert [event.correlation_id for event in await rig.feed()] == young
        assert await rig.read(lambda connection: events.broken_links(connection, rig.team)) == []

    async def test_a_group_larger_than_a_bite_is_pruned_whole(self, rig: Rig) -> None:
        await rig.all(*(rig.create() for _ in range(30)))
        await rig.all(*(rig.create() for _ in range(30)))
        await rig.pass_time(31 * 24 * HOUR)
        bites = [
            await rig.engine.write(lambda t: events.prune(t, rig.team, before=t.rows(NOW)[0][0] - 10**12, most=7))
            for _ in range(3)
        ]

        assert bites == [30, 30, 0]

    async def test_a_feed_may_be_pruned_to_nothing_and_goes_on(self, rig: Rig) -> None:
        await rig.created()
        await rig.pass_time(31 * 24 * HOUR)
        await rig(rig.prune())
        empty = await rig.feed()
        await rig.created()

        assert empty == []
        assert [event.position for event in await rig.feed()] == [2]

    async def test_the_feed_alone_says_where_every_task_is(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=3, backoff_seconds=60)
        child = await rig.created(after=[claim.task])
        await rig(rig.fail(claim))
        lost = await rig.held("b", lease=-1)
        await rig(rig.reap())
        given_back = await rig.again(lost, "c")
        await rig(rig.release(given_back))
        done = await rig.held("d")
        await rig(rig.finish(done))

        told = history.fold(await rig.feed())

        assert [told[task].status for task in (claim.task, child, lost.task, done.task)] == [
            "scheduled", "blocked", "pending", "completed",
        ]  # fmt: skip
        assert (told[lost.task].attempt, told[lost.task].fence) == (lost.attempt, given_back.fence)
        assert told[child].parents == (claim.task,)

    async def test_a_row_that_was_changed_without_an_event_is_noticed(self, rig: Rig, engine: Engine) -> None:
        task = await rig.created()

        wrong = await engine.write(lambda t: (t.run(FORGET, task), history.compare(t.connection, rig.team))[1])
        await rig(rig.cancel(task))
        await engine.write(lambda t: t.run(Statement("UPDATE tasks SET fence = 0 WHERE id = ?"), task))

        assert wrong == [f"{task}: fence is 1 in its row and 0 in the feed"]


class Undo(Exception):
    """Raised to roll a transaction back."""


async def looked_at(engine: Engine, rig: Rig, harm: Callable[[Transaction], object]) -> list[int]:
    """The broken links that are found when somebody did this to the feed; it is undone."""
    found: list[int] = []

    def look(transaction: Transaction) -> None:
        harm(transaction)
        found.extend(events.broken_links(transaction.connection, rig.team))
        raise Undo

    with pytest.raises(Undo):
        await engine.write(look)
    return found
