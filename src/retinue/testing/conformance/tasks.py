"""What tasks in SQL promise on every engine (INVARIANTS I-01 to I-12, I-46), as tests."""
# ruff: noqa: S101 - asserts are what a suite is made of

from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest

from retinue.clock import SystemClock, micros
from retinue.errors import (
    IdempotencyConflict,
    NotFound,
    ParentCancelled,
    StaleClaim,
    TaskFinal,
    TaskNotFinal,
    TooManyQueues,
)
from retinue.nodes.resources import Resources
from retinue.storage.database import Connection, Engine
from retinue.storage.sql import Statement
from retinue.tasks import logs, queues, read, steer, store
from retinue.tasks.model import FENCE_BITS, MOST_LOSSES, MOST_QUEUES, Claim, Priority, TaskStatus
from retinue.testing.conformance.rig import Op, Rig

HOUR: Final = 3600.0
LIVE_QUEUES: Final = Statement("SELECT COUNT(*) FROM queues WHERE team = ?")
STALE: Final = [StaleClaim]


TABLES: Final = ("attempts", "edges", "progress", "logs", "idempotency")


def count(table: str, connection: Connection) -> int:
    """How many rows a table has."""
    return int(connection.rows(Statement(f"SELECT COUNT(*) FROM {table}"))[0][0])  # noqa: S608


def kinds(outcomes: list[Any]) -> list[type]:
    """The outcomes' types: what tells errors apart."""
    return [type(outcome) for outcome in outcomes]


def by_holder(rig: Rig, claim: Claim) -> list[Op]:
    """Everything that a holder may ask for."""
    return [
        rig.start(claim),
        rig.progress(claim),
        rig.log(claim),
        rig.finish(claim, result="late"),
        rig.release(claim),
    ]


class OnARig:
    """Tests of tasks on an engine."""

    @pytest.fixture
    async def rig(self, engine: Engine) -> AsyncIterator[Rig]:
        """Tasks on the engine. After each test everything that must hold, holds."""
        async with Rig(engine).running() as rig:
            yield rig
            assert await rig.disorder() == []


class TaskSuite(OnARig):
    """Give it a fixture `engine`: new, migrated, closed by you."""

    # -- the straight way ----------------------------------------------------------------------------------------------

    async def test_a_task_goes_from_its_submission_to_its_result(self, rig: Rig) -> None:
        task = await rig.created(name="a")
        [claim] = await rig.claimed()
        await rig(rig.start(claim))
        answer = await rig(rig.finish(claim, exit_code=0, result={"n": [1, None, "ü"]}))

        assert (claim.task, answer) == (task, TaskStatus.COMPLETED)
        document = await rig.task(task)
        assert (document.status, document.result, document.exit_code) == ("completed", {"n": [1, None, "ü"]}, 0)
        assert [attempt.status for attempt in document.attempts] == ["completed"]
        assert document.attempt == claim.attempt
        assert await rig.story(task) == ["created", "claimed", "started", "completed"]

    async def test_a_result_a_submission_and_a_claim_may_ride_in_one_group(self, rig: Rig) -> None:
        first = await rig.held()
        submission = rig.create()
        dealt, answer, task = await rig.all(rig.claim(), rig.finish(first), submission)

        assert answer == TaskStatus.COMPLETED
        assert [claim.task for claim in dealt.claims] == [task]

    async def test_many_tasks_are_made_claimed_and_finished_in_single_groups(self, rig: Rig) -> None:
        tasks = await rig.all(*(rig.create() for _ in range(200)))
        claims = await rig.claimed(workers=200)
        await rig.all(*(rig.start(claim) for claim in claims))
        answers = await rig.all(*(rig.finish(claim) for claim in claims))

        assert sorted(claim.task for claim in claims) == sorted(tasks)
        assert answers == [TaskStatus.COMPLETED] * 200

    async def test_starting_twice_is_fine_and_starts_once(self, rig: Rig) -> None:
        claim = await rig.claimed_alone()
        outcomes = await rig.all(rig.start(claim), rig.start(claim)) + await rig.all(rig.start(claim))

        assert outcomes == [None, None, None]
        assert await rig.story(claim.task) == ["created", "claimed", "started"]

    async def test_nothing_is_claimed_without_a_free_worker(self, rig: Rig) -> None:
        await rig.created()
        claims = await rig.claimed(workers=0)

        assert claims == []

    async def test_a_task_is_claimed_by_one_node_only(self, rig: Rig) -> None:
        await rig.all(*(rig.create() for _ in range(5)))
        rounds = await rig.all(*(rig.claim(node, 3) for node in "abcd"))

        given = [claim.task for dealt in rounds for claim in dealt.claims]
        assert len(given) == len(set(given)) == 5

    # -- idempotent create ---------------------------------------------------------------------------------------------

    async def test_the_same_key_and_body_meet_the_same_task(self, rig: Rig) -> None:
        first = await rig.created(key="k", name="a")
        again = await rig.created(key="k", name="a")

        assert again == first
        assert await rig.story() == ["created"]

    async def test_another_body_under_the_same_key_is_refused(self, rig: Rig) -> None:
        await rig.created(key="k", name="a")

        with pytest.raises(IdempotencyConflict):
            await rig.created(key="k", name="b")

    async def test_another_principals_or_teams_key_meets_nothing(self, rig: Rig) -> None:
        tasks = {
            await rig.created(key="k"),
            await rig.created(key="k", principal="bob"),
            await rig.created(key="k", team=rig.other),
        }

        assert len(tasks) == 3

    async def test_many_with_one_key_in_one_group_make_one_task(self, rig: Rig) -> None:
        tasks = await rig.all(*(rig.create(key="k") for _ in range(50)))

        assert len(set(tasks)) == 1
        assert await rig.story() == ["created"]

    async def test_coordinators_with_one_key_make_one_task(self, rig: Rig, engine: Engine) -> None:
        async with Rig(engine, rig.ids).running() as beside:
            for round_of in range(10):
                first = rig.all(*(rig.create(key=f"k{round_of}-{n}") for n in range(20)))
                second = beside.all(*(beside.create(key=f"k{round_of}-{n}") for n in reversed(range(20))))
                ours, theirs = await first, await second

                assert ours == theirs[::-1]

    async def test_a_refused_create_gives_its_key_back(self, rig: Rig) -> None:
        with pytest.raises(NotFound):
            await rig.created(key="k", after=["tsk_missing"])
        task = await rig.created(key="k", name="another body")

        assert await rig.status(task) == TaskStatus.PENDING

    async def test_who_meets_a_refused_create_in_its_group_is_refused_too(self, rig: Rig) -> None:
        refused = await rig.all(*(rig.create(key="k", after=["tsk_missing"]) for _ in range(3)))

        assert kinds(refused) == [NotFound] * 3
        assert await rig.story() == []

    # -- stale holders -------------------------------------------------------------------------------------------------

    async def test_a_stale_holder_changes_nothing_and_each_try_is_counted(self, rig: Rig) -> None:
        stale = await rig.held(lease=-1)
        await rig(rig.reap())
        current = await rig.again(stale, "b")
        before = await rig.story(stale.task)

        outcomes = await rig.all(*by_holder(rig, stale)) + await rig.all(rig.renew("a", stale))

        assert kinds(outcomes[:5]) == STALE * 5
        assert outcomes[5] == [(stale.task, stale.fence)]
        assert await rig.story(stale.task) == before
        assert await rig.denials() == 5
        assert current.fence > stale.fence
        assert await rig.status(stale.task) == TaskStatus.CLAIMED

    async def test_a_holder_of_a_task_that_has_ended_changes_nothing(self, rig: Rig) -> None:
        for end in ("finish", "cancel"):
            claim = await rig.held()
            await rig(rig.finish(claim) if end == "finish" else rig.cancel(claim.task))
            before = await rig.kept(claim.task)

            outcomes = await rig.all(*by_holder(rig, claim))

            assert kinds(outcomes) == STALE * 5
            assert await rig.kept(claim.task) == before

    async def test_of_a_group_only_the_stale_members_are_refused(self, rig: Rig) -> None:
        claims = [await rig.held() for _ in range(6)]
        await rig.all(*(rig.cancel(claim.task) for claim in claims[::2]))

        outcomes = await rig.all(*(rig.finish(claim) for claim in claims))

        assert kinds(outcomes) == [StaleClaim, TaskStatus] * 3

    async def test_a_fence_that_was_never_given_is_stale(self, rig: Rig) -> None:
        claim = await rig.held()
        ahead = Claim(claim.task, claim.attempt, claim.fence + 1, claim.queue, claim.team, "a", "a", "{}")

        outcomes = await rig.all(*by_holder(rig, ahead))

        assert kinds(outcomes) == STALE * 5

    # -- finishing -----------------------------------------------------------------------------------------------------

    async def test_the_same_report_again_gets_the_same_answer(self, rig: Rig) -> None:
        claim = await rig.held()
        report = rig.finish(claim, result=1)

        answers = await rig.all(report, report) + await rig.all(report)

        assert answers == [TaskStatus.COMPLETED] * 3
        assert await rig.story(claim.task) == ["created", "claimed", "started", "completed"]

    async def test_of_two_reports_of_one_claim_the_first_counts(self, rig: Rig) -> None:
        claim = await rig.held()
        answers = await rig.all(rig.finish(claim, result=1), rig.finish(claim, result=2), rig.fail(claim))

        assert kinds(answers) == [TaskStatus, StaleClaim, StaleClaim]
        assert (await rig.task(claim.task)).result == 1

    async def test_a_report_is_remembered_through_an_operators_retry(self, rig: Rig) -> None:
        claim = await rig.held()
        report = rig.finish(claim, result=1)
        await rig(report)
        await rig(rig.retry(claim.task))

        answer = await rig(report)

        assert answer == TaskStatus.COMPLETED
        assert await rig.status(claim.task) == TaskStatus.PENDING

    async def test_a_failure_is_final_unless_more_attempts_are_allowed(self, rig: Rig) -> None:
        claim = await rig.held()
        answer = await rig(rig.fail(claim, exit_code=7, error="seven"))

        assert answer == TaskStatus.FAILED
        document = await rig.task(claim.task)
        assert (document.status, document.exit_code, document.code, document.error) == ("failed", 7, "EXIT", "seven")

    async def test_failures_end_at_max_attempts_whatever_came_between(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=3, backoff_seconds=0)
        for fence in range(3):
            await rig(rig.fail(claim))
            if fence < 2:
                unstarted = await rig.again(claim)
                await rig(rig.release(unstarted))
                claim = await rig.again(claim)
                await rig(rig.start(claim))

        document = await rig.task(claim.task)
        assert document.status == TaskStatus.FAILED
        assert [attempt.status for attempt in document.attempts] == ["failed"] * 3

    async def test_a_failure_that_cannot_be_mended_is_not_tried_again(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=5)
        await rig(rig.fail(claim, retryable=False, code="COMMAND_NOT_FOUND"))

        assert await rig.status(claim.task) == TaskStatus.FAILED

    async def test_another_attempt_waits_for_its_backoff(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=3, backoff_seconds=60)
        await rig(rig.fail(claim))
        early = await rig(rig.due())
        first = await rig.status(claim.task)
        await rig.pass_time(61)
        await rig(rig.due())
        again = await rig.again(claim)
        await rig(rig.fail(again))
        await rig.pass_time(61)
        still = await rig(rig.due())

        assert first == TaskStatus.SCHEDULED
        assert early.stopped == []
        assert 55e6 < early.next_in <= 60e6
        assert 55e6 < still.next_in <= 60e6  # twice as long
        assert await rig.status(claim.task) == TaskStatus.SCHEDULED
        assert again.fence > claim.fence

    # -- leases, losses ------------------------------------------------------------------------------------------------

    async def test_an_orphan_is_claimed_again_under_a_higher_fence(self, rig: Rig) -> None:
        first = await rig.held(lease=10)
        early = await rig(rig.reap())
        await rig.pass_time(11)
        late = await rig(rig.reap())
        second = await rig.again(first, "b")

        assert (early, late) == (0, 1)
        assert second.fence > first.fence
        assert await rig.story(first.task) == ["created", "claimed", "started", "orphaned", "claimed"]

    async def test_a_renewal_past_the_lease_counts_until_the_reaper_has_acted(self, rig: Rig) -> None:
        claim = await rig.held(lease=-60)
        lost = await rig(rig.renew("a", claim))
        reaped = await rig(rig.reap())
        await rig.pass_time(16)
        reaped_later = await rig(rig.reap())
        lost_then = await rig(rig.renew("a", claim))

        assert (lost, reaped) == ([], 0)
        assert (reaped_later, lost_then) == (1, [(claim.task, claim.fence)])

    async def test_a_renewal_in_the_same_group_comes_before_the_reaper(self, rig: Rig) -> None:
        claim = await rig.held(lease=-1)
        outcomes = await rig.all(rig.reap(), rig.renew("a", claim))

        assert outcomes == [0, []]

    async def test_a_reaper_takes_no_more_than_it_was_told_the_longest_lapsed_first(self, rig: Rig) -> None:
        claims = [await rig.held(lease=-lease) for lease in (1, 30, 20)]
        taken = await rig(rig.reap(2))

        assert taken == 2
        assert await rig.statuses(*(claim.task for claim in claims)) == ["running", "pending", "pending"]

    async def test_the_third_loss_is_the_last(self, rig: Rig) -> None:
        claim = await rig.held(lease=-1)
        for _ in range(MOST_LOSSES - 1):
            await rig(rig.reap())
            claim = await rig.again(claim, lease=-1)
            await rig(rig.start(claim))
        before = await rig.status(claim.task)
        await rig(rig.reap())

        assert before == TaskStatus.RUNNING
        document = await rig.task(claim.task)
        assert (document.status, document.code) == ("failed", "NODE_LOST")
        assert [attempt.status for attempt in document.attempts] == ["orphaned"] * MOST_LOSSES

    async def test_a_claim_that_was_never_started_costs_nothing_when_it_is_lost(self, rig: Rig) -> None:
        claim = await rig.claimed_alone(lease=-1)
        for _ in range(2 * MOST_LOSSES):
            await rig(rig.reap())
            claim = await rig.again(claim, lease=-1)

        assert await rig.status(claim.task) == TaskStatus.CLAIMED
        assert (await rig.kept(claim.task)).losses == 0

    async def test_losses_and_failures_are_counted_apart(self, rig: Rig) -> None:
        claim = await rig.held(lease=-1, max_attempts=2, backoff_seconds=0)
        await rig(rig.reap())
        claim = await rig.again(claim)
        await rig(rig.start(claim))
        await rig(rig.fail(claim))

        kept = await rig.kept(claim.task)
        assert (kept.status, kept.failures, kept.losses) == ("pending", 1, 1)

    async def test_fail_gives_up_at_the_first_loss_started_or_not(self, rig: Rig) -> None:
        running = await rig.held(lease=-1, on_node_loss="fail")
        claimed = await rig.claimed_alone(lease=-1, on_node_loss="fail")
        await rig(rig.reap())

        assert await rig.statuses(running.task, claimed.task) == ["failed", "failed"]
        assert (await rig.story(running.task))[-2:] == ["orphaned", "failed"]

    async def test_wait_covers_a_silence_for_its_duration_and_no_longer(self, rig: Rig) -> None:
        claim = await rig.held(lease=15, on_node_loss="wait:600")
        await rig.pass_time(600)
        early = await rig(rig.reap())
        await rig(rig.renew("a", claim))
        await rig.pass_time(610)
        still = await rig(rig.reap())
        await rig.pass_time(6)
        late = await rig(rig.reap())

        assert (early, still, late) == (0, 0, 1)
        assert await rig.status(claim.task) == TaskStatus.PENDING

    async def test_a_released_claim_waits_at_its_old_place(self, rig: Rig) -> None:
        first = await rig.created()
        await rig.created()
        [claim] = await rig.claimed()
        await rig(rig.release(claim))
        [again] = await rig.claimed()

        assert [claim.task, again.task] == [first, first]
        document = await rig.task(first)
        assert [attempt.status for attempt in document.attempts] == ["claimed"]

    async def test_an_attempt_that_never_began_is_not_the_tasks_last(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=2, backoff_seconds=0)
        await rig(rig.fail(claim))
        await rig(rig.release(await rig.again(claim)))

        assert (await rig.task(claim.task)).attempt == claim.attempt

    async def test_a_new_epoch_puts_fences_above_all_of_the_old(self, rig: Rig, engine: Engine) -> None:
        claim = await rig.claimed_alone()
        await rig(rig.release(claim))

        def restore(transaction: Any) -> Any:
            transaction.epoch = 1
            [dealt] = store.CLAIM.apply(transaction, [rig.claim(queues=[rig.queues[claim.queue]]).item])
            assert isinstance(dealt, store.Dealt)
            return dealt.claims

        [again] = await engine.write(restore)

        assert again.fence == (1 << FENCE_BITS) + 1

    # -- hello ---------------------------------------------------------------------------------------------------------

    async def test_hello_gives_back_what_the_node_does_not_hold(self, rig: Rig) -> None:
        kept = await rig.held("a")
        never_arrived = await rig.claimed_alone("a")
        lost_track = await rig.held("a")
        other_node = await rig.held("b")

        gone = await rig(rig.hello("a", kept, other_node))

        assert gone == [(other_node.task, other_node.fence)]
        claims = [kept, never_arrived, lost_track, other_node]
        assert await rig.statuses(*(c.task for c in claims)) == ["running", "pending", "pending", "running"]
        assert (await rig.story(never_arrived.task))[-1] == "released"
        assert (await rig.story(lost_track.task))[-1] == "orphaned"

    async def test_hello_of_a_new_boot_orphans_what_the_dead_one_held(self, rig: Rig) -> None:
        claim = await rig.held("a")
        gone = await rig(rig.hello("a", claim, boot="a, started again"))

        assert gone == [(claim.task, claim.fence)]
        assert await rig.status(claim.task) == TaskStatus.PENDING

    async def test_hello_again_changes_nothing(self, rig: Rig) -> None:
        claim = await rig.held("a")
        outcomes = await rig.all(rig.hello("a", claim), rig.hello("a", claim))

        assert outcomes == [[], []]
        assert await rig.status(claim.task) == TaskStatus.RUNNING

    # -- times ---------------------------------------------------------------------------------------------------------

    async def test_a_task_for_later_is_ready_when_its_time_has_come(self, rig: Rig) -> None:
        task = await rig.created(not_before=SystemClock().now() + timedelta(hours=1))
        nothing = await rig.claimed()
        await rig(rig.due())
        before = await rig.status(task)
        await rig.pass_time(HOUR)
        due = await rig(rig.due())
        claims = await rig.claimed()

        assert (nothing, before) == ([], TaskStatus.SCHEDULED)
        assert due.next_in is None
        assert [claim.task for claim in claims] == [task]

    async def test_timers_come_in_bites_and_say_when_the_next_is_due(self, rig: Rig) -> None:
        at = SystemClock().now()
        for hours in range(5):
            await rig.created(not_before=at + timedelta(hours=1 + hours, minutes=1))
        await rig.pass_time(3 * HOUR + 120)
        first = await rig(rig.due(2))
        second = await rig(rig.due(2))

        assert first.next_in < 0
        assert second.next_in == pytest.approx(HOUR * 1e6, abs=100e6)
        assert len(await rig.claimed(workers=9)) == 3

    async def test_a_deadline_ends_a_task_wherever_it_is(self, rig: Rig) -> None:
        deadline = SystemClock().now() + timedelta(hours=1)
        slow = await rig.held()
        running = await rig.held("b", deadline=deadline)
        waiting = await rig.created(deadline=deadline)
        blocked = await rig.created(deadline=deadline, after=[slow.task])
        behind = await rig.created(deadline=deadline, after=[blocked])
        later = await rig.created(deadline=deadline, not_before=deadline)
        done = await rig.ended(deadline=deadline)

        await rig.pass_time(HOUR)
        due = await rig(rig.due())

        assert [(stop.task, stop.fence, stop.node) for stop in due.stopped] == [(running.task, running.fence, "b")]
        ended = [running.task, waiting, blocked, behind, later, done]
        assert await rig.statuses(*ended) == ["failed"] * 5 + ["completed"]
        assert {(await rig.kept(task)).code for task in ended[:5]} == {"DEADLINE"}
        assert kinds(await rig.all(rig.finish(running))) == STALE
        assert await rig.claimed(workers=5) == []

    async def test_a_cancelled_task_is_not_woken(self, rig: Rig) -> None:
        task = await rig.created(not_before=SystemClock().now() + timedelta(hours=1))
        await rig(rig.cancel(task))
        await rig.pass_time(HOUR)
        await rig(rig.due())

        assert await rig.status(task) == TaskStatus.CANCELLED

    # -- parents that a task runs after --------------------------------------------------------------------------------

    async def test_a_task_runs_after_its_parents(self, rig: Rig) -> None:
        first, second = await rig.held(), await rig.held()
        child = await rig.created(after=[first.task, second.task])
        before = (await rig.kept(child)).waiting_on
        await rig(rig.finish(first))
        between = await rig.kept(child)
        await rig(rig.finish(second))

        assert (before, between.status, between.waiting_on) == (2, "blocked", 1)
        assert await rig.status(child) == TaskStatus.PENDING
        assert await rig.story(child) == ["created", "ready"]

    async def test_parents_that_end_in_one_group_unblock_their_child_once(self, rig: Rig) -> None:
        parents = [await rig.held() for _ in range(5)]
        child = await rig.created(after=[claim.task for claim in parents])
        await rig.all(*(rig.finish(claim) for claim in parents))

        assert await rig.story(child) == ["created", "ready"]

    async def test_a_diamond_opens_once(self, rig: Rig) -> None:
        top = await rig.held()
        sides = await rig.all(*(rig.create(after=[top.task]) for _ in range(3)))
        bottom = await rig.created(after=sides)
        await rig(rig.finish(top))
        claims = await rig.claimed(workers=9)
        await rig.all(*(rig.finish(claim) for claim in claims))

        assert sorted(claim.task for claim in claims) == sorted(sides)
        assert await rig.story(bottom) == ["created", "ready"]

    async def test_parents_that_have_ended_are_not_waited_for(self, rig: Rig) -> None:
        done = await rig.ended()
        child = await rig.created(after=[done])

        assert await rig.status(child) == TaskStatus.PENDING

    async def test_a_child_that_is_added_as_its_parent_ends_is_unblocked(self, rig: Rig) -> None:
        parent = await rig.held()
        child, _ = await rig.all(rig.create(after=[parent.task]), rig.finish(parent))

        assert await rig.status(child) == TaskStatus.PENDING

    async def test_a_child_with_a_time_waits_for_both(self, rig: Rig) -> None:
        parent = await rig.held()
        child = await rig.created(after=[parent.task], not_before=SystemClock().now() + timedelta(hours=1))
        await rig(rig.finish(parent))
        between = await rig.status(child)
        await rig.pass_time(HOUR)
        await rig(rig.due())

        assert between == TaskStatus.SCHEDULED
        assert await rig.status(child) == TaskStatus.PENDING

    async def test_a_failed_parent_fails_its_children_or_frees_them_as_they_asked(self, rig: Rig) -> None:
        parent, other = await rig.held(), await rig.held()
        strict = await rig.created(after=[parent.task, other.task])
        below = await rig.created(after=[strict])
        lenient = await rig.created(after=[parent.task], after_policy="any")
        either = await rig.created(after=[parent.task, strict], after_policy="any")
        await rig(rig.fail(parent))

        assert await rig.statuses(strict, below, lenient, either) == ["failed", "failed", "pending", "pending"]
        assert (await rig.kept(strict)).code == "PARENT_FAILED"
        assert await rig.story(strict) == ["created", "failed"]
        await rig(rig.finish(other))
        assert await rig.story(strict) == ["created", "failed"]

    async def test_a_child_of_a_parent_that_has_failed_fails_at_once_or_runs_as_it_asked(self, rig: Rig) -> None:
        parent = await rig.held()
        await rig(rig.fail(parent))
        strict = await rig.created(after=[parent.task])
        lenient = await rig.created(after=[parent.task], after_policy="any")

        assert await rig.statuses(strict, lenient) == ["failed", "pending"]
        assert parent.task in str((await rig.kept(strict)).error)

    async def test_a_cancelled_parent_counts_as_one_that_did_not_complete(self, rig: Rig) -> None:
        parent = await rig.created()
        strict = await rig.created(after=[parent])
        lenient = await rig.created(after=[parent], after_policy="any")
        await rig(rig.cancel(parent))
        late = await rig.created(after=[parent])

        assert await rig.statuses(strict, lenient, late) == ["failed", "pending", "failed"]

    @pytest.mark.slow
    async def test_a_chain_may_be_as_long_as_anyone_likes(self, rig: Rig) -> None:
        first = await rig.held()
        chain = [first.task]
        for _ in range(1500):
            chain.append(await rig.created(after=[chain[-1]]))
        await rig(rig.fail(first))

        counts = await rig.read(lambda connection: read.counts(connection, rig.team))
        assert counts == {"failed": 1501}

    async def test_a_missing_or_foreign_parent_is_not_found(self, rig: Rig) -> None:
        foreign = await rig.created(team=rig.other)
        outcomes = await rig.all(
            rig.create(after=["tsk_missing"]),
            rig.create(after=[foreign]),
            rig.create(parent="tsk_missing"),
            rig.create(parent=foreign),
            rig.create(session="ses_missing"),
        )

        assert kinds(outcomes) == [NotFound] * 5

    # -- cancel, delegation --------------------------------------------------------------------------------------------

    async def test_cancel_flows_down_whatever_state_each_is_in(self, rig: Rig) -> None:
        root = await rig.held()
        running = await rig.held("b", parent=root.task)
        claimed = await rig.claimed_alone("c", parent=running.task)
        pending = await rig.created(parent=claimed.task)
        blocked = await rig.created(parent=root.task, after=[pending])
        later = await rig.created(parent=root.task, not_before=SystemClock().now() + timedelta(hours=1))
        done = await rig.ended(parent=root.task)
        below_done = await rig.created(parent=done)
        beside = await rig.created()

        stopped = await rig(rig.cancel(root.task))

        assert sorted(stop.node for stop in stopped) == ["a", "b", "c"]
        gone = [root.task, running.task, claimed.task, pending, blocked, later, below_done]
        assert await rig.statuses(*gone) == ["cancelled"] * 7
        assert await rig.statuses(done, beside) == ["completed", "pending"]
        assert kinds(await rig.all(rig.finish(root), rig.finish(running), rig.start(claimed))) == STALE * 3
        assert (await rig.task(root.task)).attempt == root.attempt

    async def test_a_cancelled_task_takes_no_children_however_deep(self, rig: Rig) -> None:
        root = await rig.held()
        done = await rig.ended(parent=root.task)
        await rig(rig.cancel(root.task))

        outcomes = await rig.all(rig.create(parent=root.task), rig.create(parent=done))

        assert kinds(outcomes) == [ParentCancelled] * 2

    async def test_a_child_below_a_task_that_was_retried_under_a_cancelled_one_is_taken(self, rig: Rig) -> None:
        root = await rig.created()
        below = await rig.created(parent=root)
        await rig(rig.cancel(root))
        await rig(rig.retry(below))
        child = await rig.created(parent=below)

        assert await rig.statuses(root, below, child) == ["cancelled", "pending", "pending"]

    async def test_of_a_report_and_a_cancel_in_one_group_exactly_one_wins(self, rig: Rig) -> None:
        claim = await rig.held()
        child = await rig.created(parent=claim.task)
        cancelled, reported = await rig.all(rig.cancel(claim.task), rig.finish(claim))

        assert (type(cancelled), reported) == (TaskFinal, TaskStatus.COMPLETED)
        assert await rig.status(child) == TaskStatus.PENDING

    async def test_cancelling_again_is_fine_and_says_nothing_twice(self, rig: Rig) -> None:
        task = await rig.created()
        outcomes = await rig.all(rig.cancel(task), rig.cancel(task)) + await rig.all(rig.cancel(task))

        assert outcomes == [[], [], []]
        assert await rig.story(task) == ["created", "cancelled"]

    async def test_what_has_ended_cannot_be_cancelled(self, rig: Rig) -> None:
        done = await rig.ended()
        with pytest.raises(TaskFinal):
            await rig(rig.cancel(done))
        with pytest.raises(NotFound):
            await rig(rig.cancel("tsk_missing"))

    async def test_another_teams_task_looks_like_a_missing_one(self, rig: Rig) -> None:
        task = await rig.created()
        outcomes = await rig.all(rig.cancel(task, rig.other), rig.retry(task, rig.other))

        assert kinds(outcomes) == [NotFound] * 2
        assert await rig.read(lambda connection: read.task(connection, rig.other, task)) is None

    async def test_a_task_with_fractions_of_resources_is_cancelled_out_of_its_line(self, rig: Rig) -> None:
        whole = await rig.created(resources=Resources(cpu=1))  # an int, where the store gives a float back
        claim = await rig.held(resources=Resources(cpu=0), max_attempts=2, backoff_seconds=0)
        await rig(rig.fail(claim))
        await rig.all(rig.cancel(whole), rig.cancel(claim.task))

        assert await rig.claimed(workers=9, cpu=9) == []

    # -- retry ---------------------------------------------------------------------------------------------------------

    async def test_an_operator_may_run_a_task_once_more_with_fresh_allowances(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=2, backoff_seconds=0)
        await rig(rig.fail(claim, retryable=False))
        await rig(rig.retry(claim.task))
        again = await rig.again(claim)
        await rig(rig.fail(again))

        kept = await rig.kept(claim.task)
        assert (kept.status, kept.failures, kept.losses) == ("pending", 1, 0)
        assert again.fence > claim.fence

    async def test_what_has_not_ended_cannot_be_retried(self, rig: Rig) -> None:
        task = await rig.created()
        with pytest.raises(TaskNotFinal):
            await rig(rig.retry(task))

    async def test_a_parent_that_is_retried_is_waited_for_again(self, rig: Rig) -> None:
        first, second = await rig.held(), await rig.held()
        child = await rig.created(after=[first.task, second.task])
        await rig(rig.finish(first))
        await rig(rig.retry(first.task))
        await rig(rig.finish(second))
        between = await rig.status(child)
        await rig(rig.finish(await rig.again(first)))

        assert between == TaskStatus.BLOCKED
        assert await rig.status(child) == TaskStatus.PENDING

    async def test_a_retried_child_waits_for_its_parents(self, rig: Rig) -> None:
        parent = await rig.held()
        child = await rig.created(after=[parent.task])
        await rig(rig.fail(parent))
        await rig(rig.retry(child))
        too_early = await rig.status(child)
        await rig(rig.retry(parent.task))
        await rig(rig.retry(child))
        between = await rig.status(child)
        await rig(rig.finish(await rig.again(parent)))

        assert (too_early, between) == ("failed", "blocked")
        assert await rig.status(child) == TaskStatus.PENDING

    # -- sessions ------------------------------------------------------------------------------------------------------

    async def test_a_sessions_tasks_end_with_it(self, rig: Rig) -> None:
        await rig.all(rig.open_session("s"), rig.open_session("t"))
        waiting = await rig.created(session="s")
        running = await rig.held(session="s")
        below = await rig.created(parent=running.task)
        done = await rig.ended(session="s")
        other = await rig.created(session="t")

        stopped = await rig(rig.close_session("s"))

        assert [stop.task for stop in stopped] == [running.task]
        assert await rig.statuses(waiting, running.task, below, done) == ["cancelled"] * 3 + ["completed"]
        assert await rig.status(other) == TaskStatus.PENDING
        with pytest.raises(NotFound):
            await rig.created(session="s")

    async def test_a_session_that_is_not_kept_lapses(self, rig: Rig) -> None:
        await rig.all(rig.open_session("s"), rig.open_session("t"))
        gone, stays = await rig.created(session="s"), await rig.created(session="t")
        await rig.pass_time(16)
        kept = await rig(rig.keep_session("t"))
        await rig(rig.lapse())

        assert kept is True
        assert await rig.statuses(gone, stays) == ["cancelled", "pending"]
        assert await rig(rig.keep_session("s")) is False

    async def test_sessions_of_other_boots_end(self, rig: Rig) -> None:
        await rig.all(rig.open_session("s", boot="c1"), rig.open_session("t", boot="c2"))
        gone, stays = await rig.created(session="s"), await rig.created(session="t")
        await rig(rig.lapse("c2"))

        assert await rig.statuses(gone, stays) == ["cancelled", "pending"]

    async def test_a_retried_task_is_tied_to_no_session(self, rig: Rig) -> None:
        await rig(rig.open_session("s"))
        task = await rig.created(session="s")
        await rig(rig.cancel(task))
        await rig(rig.retry(task))
        await rig(rig.close_session("s"))

        assert await rig.status(task) == TaskStatus.PENDING

    # -- who gets what -------------------------------------------------------------------------------------------------

    async def test_priorities_go_first_and_equal_ones_in_order(self, rig: Rig) -> None:
        wanted = [Priority.LOW, Priority.MEDIUM, Priority.CRITICAL, Priority.HIGH, Priority.MEDIUM]
        tasks = [await rig.created(priority=priority) for priority in wanted]
        claims = [(await rig.claimed())[0].task for _ in tasks]

        assert [tasks.index(task) for task in claims] == [2, 3, 1, 4, 0]

    async def test_nobody_is_overtaken_by_one_that_came_more_than_ten_minutes_later(self, rig: Rig) -> None:
        old = await rig.created(priority=Priority.LOW)
        await rig.pass_time(601)
        await rig.created(priority=Priority.CRITICAL)
        [claim] = await rig.claimed()

        assert claim.task == old

    async def test_teams_are_served_in_turn(self, rig: Rig) -> None:
        ours = await rig.all(*(rig.create() for _ in range(6)))
        theirs = await rig.all(*(rig.create(team=rig.other) for _ in range(2)))
        turn, given = "", []
        for _ in range(5):
            [claim] = await rig.claimed(after_team=turn)
            turn = claim.team
            given.append(claim.task in ours)
        many = await rig.claimed(workers=4, after_team=turn)

        assert given in ([True, False, True, False, True], [False, True, False, True, True])
        assert len(many) == 3
        assert len(theirs) == 2

    async def test_a_claim_looks_only_into_the_queues_it_names(self, rig: Rig) -> None:
        gpu = rig.create(labels={"gpu": "yes"})
        await rig.all(gpu, rig.create())
        claims = await rig.claimed(workers=9, queues=[gpu.item.queue])

        assert [claim.queue for claim in claims] == [gpu.item.queue.id]

    async def test_the_best_of_all_named_queues_is_claimed(self, rig: Rig) -> None:
        tasks = [await rig.created(labels={"n": str(n % 7)}) for n in range(20)]
        claims = await rig.claimed(workers=10)

        assert [claim.task for claim in claims] == tasks[:10]

    async def test_claims_fit_into_the_room_that_a_node_has(self, rig: Rig) -> None:
        large = await rig.created(resources=Resources(cpu=3, memory_mb=100))
        small = [await rig.created(resources=Resources(cpu=1)) for _ in range(3)]
        claims = await rig.claimed(workers=9, cpu=4, memory_mb=100)
        full = await rig.claimed("b", workers=9, cpu=0.5)

        assert [claim.task for claim in claims] == [large, small[0]]
        assert full == []

    async def test_several_nodes_are_filled_evenly_in_one_round(self, rig: Rig) -> None:
        await rig.all(*(rig.create() for _ in range(5)))
        dealt = await rig(rig.round([rig.free("a", 2), rig.free("b", 3), rig.free("c", 1)]))

        assert sorted(claim.node for claim in dealt.claims) == ["a", "a", "b", "b", "b"] or sorted(
            claim.node for claim in dealt.claims
        ) == ["a", "a", "b", "b", "c"]
        assert len({claim.attempt for claim in dealt.claims}) == 5

    async def test_emptied_queues_are_told_truly(self, rig: Rig) -> None:
        one, two, none = (rig.create(labels={"n": n}) for n in "123")
        await rig.all(one, two, rig.create(labels={"n": "2"}))
        lines = [op.item.queue for op in (one, two, none)]
        first = await rig(rig.claim(workers=2, queues=lines))
        second = await rig(rig.claim(workers=2, queues=lines))

        assert first.emptied in ([lines[0].id, lines[2].id], [lines[2].id])
        assert second.emptied == [line.id for line in lines]

    async def test_a_task_that_does_not_fit_leaves_its_queue_peopled(self, rig: Rig) -> None:
        large = rig.create(resources=Resources(gpu=2))
        await rig(large)
        dealt = await rig(rig.claim(workers=2, queues=[large.item.queue], gpu=1))

        assert (dealt.claims, dealt.emptied) == ([], [])

    async def test_a_task_claimed_in_the_group_that_made_it_is_announced_to_nobody(self, rig: Rig) -> None:
        op = rig.create()
        await rig.all(op, rig.claim(workers=2, queues=[op.item.queue]))
        await rig(rig.create())

        assert [hint for hint in rig.hints if hint.startswith("ready.")] == [f"ready.{op.item.queue.id}"]

    @pytest.mark.slow
    async def test_a_team_has_at_most_a_thousand_live_queues_and_may_use_them_again(self, rig: Rig) -> None:
        outcomes = await rig.all(*(rig.create(labels={"n": str(n)}) for n in range(MOST_QUEUES + 3)))
        made = [outcome for outcome in outcomes if isinstance(outcome, str)]
        more = await rig.all(rig.create(labels={"n": "500"}), rig.create(team=rig.other, labels={"n": "new"}))
        await rig(rig.cancel(made[7]))
        reused = await rig.all(rig.create(labels={"n": "new"}), rig.create(labels={"n": "newer"}))

        assert len(made) == MOST_QUEUES
        assert kinds(outcomes).count(TooManyQueues) == 3
        assert kinds(more) == [str, str]
        assert kinds(reused) == [str, TooManyQueues]
        assert await rig.read(lambda c: c.rows(LIVE_QUEUES, rig.team)) == [(MOST_QUEUES,)]

    async def test_a_task_comes_back_into_a_queue_that_was_dropped(self, rig: Rig, engine: Engine) -> None:
        claim = await rig.held(max_attempts=2, backoff_seconds=0)
        await engine.write(lambda t: t.run(queues.DROP_EMPTY_QUEUES, t.rows(queues.EMPTY_QUEUES, rig.team)))
        gone = await rig.read(lambda connection: read.queue(connection, claim.queue))
        await rig(rig.fail(claim))
        live = await rig.read(read.live_queues)

        assert gone is None
        assert [queue.id for queue in live] == [claim.queue]

    # -- progress, logs ------------------------------------------------------------------------------------------------

    async def test_progress_is_the_latest_of_this_attempt_and_a_stage_is_an_event(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=2, backoff_seconds=0)
        for stage in ("one", "one", "two"):
            await rig(rig.progress(claim, stage))
        shown = (await rig.task(claim.task)).progress
        await rig(rig.fail(claim))
        again = await rig.again(claim)
        shown_again = (await rig.task(claim.task)).progress
        await rig(rig.progress(again, "two"))

        assert shown is not None
        assert shown.stage == "two"
        assert shown_again is None
        assert (await rig.story(claim.task)).count("progress") == 3

    async def test_a_log_keeps_each_segment_once_and_in_order(self, rig: Rig) -> None:
        claim = await rig.held()
        outcomes = await rig.all(
            rig.log(claim, 0, b"abc"), rig.log(claim, 0, b"abc"), rig.log(claim, 9, b"gap"), rig.log(claim, 3, b"def")
        )
        found = await rig.read(lambda connection: logs.segments(connection, claim.attempt, "stdout", 4))

        assert outcomes == [3, 3, 3, 6]
        assert found == [(3, 3, None, b"def")]

    # -- pruning -------------------------------------------------------------------------------------------------------

    async def test_what_is_old_goes_with_all_that_hangs_on_it(self, rig: Rig) -> None:
        claim = await rig.held(max_attempts=2, backoff_seconds=0)
        await rig.all(rig.progress(claim), rig.log(claim))
        await rig(rig.fail(claim))
        again = await rig.again(claim)
        await rig.all(rig.log(again, 0, b"x" * 9, digest="blob"), rig.finish(again))
        child = await rig.created(after=[claim.task], key="k")
        await rig(rig.cancel(child))
        await rig.all(*by_holder(rig, claim))
        await rig.pass_time(91 * 24 * HOUR)
        fresh = await rig.created()

        gone = await rig(rig.prune())

        assert (gone.tasks, gone.logs, gone.keys, gone.blobs) == (2, 2, 1, ("blob",))
        assert [await rig.task(task) for task in (claim.task, child)] == [None, None]
        assert await rig.status(fresh) == TaskStatus.PENDING
        counts = await rig.read(lambda connection: read.counts(connection, rig.team))
        assert counts == {"pending": 1}
        left = [(await rig.read(partial(count, table))) for table in TABLES]
        assert left == [0] * 5

    async def test_what_something_unfinished_needs_stays(self, rig: Rig) -> None:
        done = await rig.ended()
        delegator = await rig.ended()
        slow = await rig.created()
        blocked = await rig.created(after=[done, slow])
        below = await rig.created(parent=delegator)
        await rig.pass_time(91 * 24 * HOUR)
        kept = await rig(rig.prune())
        await rig.all(rig.cancel(blocked), rig.cancel(below))
        then = await rig(rig.prune())
        await rig.pass_time(91 * 24 * HOUR)
        last = [(await rig(rig.prune())).tasks for _ in range(2)]

        assert (kept.tasks, then.tasks) == (0, 1)  # `done`; the delegator stays while `below` is there
        assert last == [2, 1]

    async def test_a_blob_that_a_younger_log_names_stays(self, rig: Rig) -> None:
        old = await rig.held()
        await rig(rig.log(old, 0, b"same", digest="shared"))
        await rig.pass_time(31 * 24 * HOUR)
        young = await rig.held()
        await rig(rig.log(young, 0, b"same", digest="shared"))
        first = await rig(rig.prune())
        await rig.pass_time(31 * 24 * HOUR)
        second = await rig(rig.prune())

        assert (first.logs, first.blobs) == (1, ())
        assert (second.logs, second.blobs) == (1, ("shared",))

    async def test_a_key_is_remembered_for_a_day(self, rig: Rig) -> None:
        first = await rig.created(key="k")
        await rig.pass_time(23 * HOUR)
        await rig(rig.prune())
        same = await rig.created(key="k")
        await rig.pass_time(2 * HOUR)
        await rig(rig.prune())
        other = await rig.created(key="k")

        assert same == first
        assert other != first

    async def test_nothing_young_is_pruned(self, rig: Rig) -> None:
        await rig.ended()
        gone = await rig(rig.prune())

        assert (gone.events, gone.tasks, gone.logs, gone.keys, gone.blobs) == (0, 0, 0, 0, ())

    async def test_denials_end_too(self, rig: Rig) -> None:
        claim = await rig.held()
        await rig(rig.finish(claim))
        await rig.all(rig.start(claim))
        before = await rig.denials()
        await rig(rig.prune(events=-120))

        assert (before, await rig.denials()) == (1, 0)

    # -- looking -------------------------------------------------------------------------------------------------------

    async def test_counts_say_where_tasks_are(self, rig: Rig) -> None:
        await rig.all(rig.create(), rig.create(), rig.create(team=rig.other))
        await rig.held()
        await rig.claimed_alone()
        await rig.ended()

        counts = await rig.read(lambda connection: read.counts(connection, rig.team))
        assert counts == {"pending": 2, "running": 1, "claimed": 1, "completed": 1}

    async def test_tasks_are_listed_newest_first_by_page_and_status(self, rig: Rig) -> None:
        tasks = [await rig.created() for _ in range(5)]
        await rig.created(team=rig.other)
        running = (await rig.held()).task

        def listed(status: TaskStatus | None, before: str, limit: int) -> Any:
            return rig.read(
                lambda c: [t.id for t in read.tasks(c, rig.team, status=status, before=before, limit=limit)]
            )

        assert await listed(None, "tsk_~", 3) == [running, tasks[4], tasks[3]]
        assert await listed(None, tasks[3], 9) == [tasks[2], tasks[1], tasks[0]]
        assert await listed(TaskStatus.PENDING, "tsk_~", 9) == tasks[::-1]
        assert await listed(TaskStatus.RUNNING, "tsk_~", 9) == [running]

    async def test_a_cancel_is_told_as_what_to_stop(self, rig: Rig) -> None:
        claim = await rig.held("a")
        stopped = await rig(rig.cancel(claim.task))

        assert stopped == [steer.Stopped(claim.task, claim.fence, "a", "a")]
        assert f"cancel.{claim.node}" in rig.hints

    async def test_the_store_keeps_times_of_the_database(self, rig: Rig) -> None:
        before = micros(SystemClock().now())
        task = await rig.task(await rig.created())

        assert abs(micros(task.created_at) - before) < 60_000_000
