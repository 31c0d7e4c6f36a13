"""What holders say of their attempts: start, renew, progress, done, and that nobody else may."""

import asyncio

import pytest

from retinue.client.frames import (
    Assignment,
    Cancel,
    Credit,
    Done,
    DoneAck,
    Log,
    ProgressFrame,
    Release,
    Renewed,
    Report,
    Started,
    WantInput,
)
from retinue.tasks.model import Ending, Hold, Progress
from service.rig import LEASE, OK, SWEEP, Fleet, Hand, at_fence, forged, settle

FAILED = Ending(ok=False, exit_code=1, error="The command ended with exit code 1.", code="EXIT")


async def held(fleet: Fleet, hand: Hand, **fields: object) -> Assignment:
    """A task that the node was given, and started."""
    await hand.joins()
    await fleet.submit(**fields)
    await settle()
    (given,) = hand.given()
    await hand.starts(given)
    return given


async def test_a_result_is_acknowledged_after_it_is_committed(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await hand.ends(given)

    assert hand.heard(DoneAck) == [DoneAck([given.attempt])]
    assert await fleet.status(given.hold.task) == "completed"


async def test_the_same_result_again_is_acknowledged_again_and_accepted_once(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    report = Report(given.hold, given.attempt, OK)

    await hand.says(Done([report, report]), Done([report]))
    await hand.says(Done([report]))

    answers = hand.heard(DoneAck)
    assert {attempt for ack in answers for attempt in ack.attempts} == {given.attempt}
    assert [ack.stale for ack in answers] == [[], [], []]
    assert (await fleet.events(given.hold.task)).count("task.completed") == 1
    assert await fleet.attempts(given.hold.task) == ["completed"]


async def test_another_result_for_an_accepted_one_is_stale(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.ends(given)
    hand.heard(DoneAck)

    await hand.ends(given, FAILED)

    assert hand.heard(DoneAck) == [DoneAck([], [given.attempt])]
    assert await fleet.status(given.hold.task) == "completed"


@pytest.mark.parametrize("lost", ["cancelled", "reaped", "forged", "older fence", "newer fence"])
async def test_a_stale_result_is_acknowledged_as_stale_and_changes_nothing(fleet: Fleet, lost: str) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    hold = given.hold
    if lost == "cancelled":
        await fleet.cancel(hold.task)
    elif lost == "reaped":
        await fleet.passes(2 * LEASE + 2 * SWEEP)
    elif lost == "forged":
        hold = forged(hold)
    else:
        hold = at_fence(hold, hold.fence + (1 if lost == "newer fence" else -1))
    before = await fleet.task(given.hold.task)

    await hand.says(Done([Report(hold, given.attempt, OK)]))

    assert hand.heard(DoneAck) == [DoneAck([], [given.attempt])]
    assert (await fleet.task(given.hold.task)).status == before.status
    assert "task.completed" not in await fleet.events(given.hold.task)


async def test_of_many_results_in_one_frame_each_gets_its_own_answer(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=3)
    for _ in range(3):
        await fleet.submit()
    await settle()
    good, bad, gone = hand.given()
    await fleet.cancel(gone.hold.task)

    await hand.says(Done([Report(good.hold, good.attempt, OK), Report(bad.hold, bad.attempt, FAILED),
                          Report(gone.hold, gone.attempt, OK)]))  # fmt: skip

    assert hand.heard(DoneAck) == [DoneAck([good.attempt, bad.attempt], [gone.attempt])]
    assert [await fleet.status(given.hold.task) for given in (good, bad, gone)] == ["completed", "failed", "cancelled"]


SPEECHES = {
    "started": lambda hold, given: Started([hold]),
    "progress": lambda hold, given: ProgressFrame(hold, Progress(stage="half", percent=50)),
    "log": lambda hold, given: Log(hold, given.attempt, "stdout", 0, b"mine\n"),
    "want_input": lambda hold, given: WantInput(hold, given.attempt, 0, 1000),
}


@pytest.mark.parametrize(
    ("speech", "how"),
    [
        (speech, how)
        for speech in SPEECHES
        for how in ("forged", "older fence", "cancelled")
        if (speech, how) != ("want_input", "cancelled")  # there is no input any more
    ],
)
async def test_who_has_no_right_is_told_to_stop_and_has_no_effect(fleet: Fleet, speech: str, how: str) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, stdin=True)
    hold = forged(given.hold) if how == "forged" else given.hold
    if how == "older fence":
        hold = at_fence(hold, hold.fence - 1)
    if how == "cancelled":
        await fleet.cancel(hold.task)
    hand.heard(Cancel)
    fleet.coordinator.stdin.put(hold.task, b"secret")

    await hand.says(SPEECHES[speech](hold, given))
    await fleet.passes(2.0)

    assert hand.heard(Cancel) == [Cancel([hold])]
    assert [frame for frame in hand.frames if not isinstance(frame, Renewed)] == []
    assert fleet.kept(given.attempt) == 0
    assert (await fleet.task(given.hold.task)).progress is None
    assert (await fleet.events(given.hold.task)).count("task.started") == 1


async def test_a_renewal_keeps_what_is_held_and_says_what_is_lost(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    for _ in range(2):
        await fleet.submit()
    await settle()
    mine, gone = hand.given()
    await fleet.cancel(gone.hold.task)
    strange = [forged(mine.hold), at_fence(mine.hold, mine.hold.fence + 1), Hold("tsk_none", 3, "token")]

    await hand.renews(mine.hold, gone.hold, *strange)

    (renewed,) = hand.heard(Renewed)
    assert set(renewed.lost) == {gone.hold, *strange}


async def test_who_renews_is_never_reaped_and_who_does_not_is(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    for _ in range(2):
        await fleet.submit()
    await settle()
    kept, left = hand.given()
    await hand.starts(kept)
    await hand.starts(left)

    for _ in range(10):
        await fleet.passes(LEASE / 3)
        await hand.renews(kept.hold)

    assert await fleet.status(kept.hold.task) == "running"
    assert await fleet.attempts(left.hold.task) == ["orphaned"]


async def test_a_renewal_under_a_forged_right_does_not_keep_anything(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    for _ in range(10):
        await fleet.passes(LEASE / 3)
        await hand.renews(forged(given.hold))

    assert (await fleet.attempts(given.hold.task))[0] == "orphaned"


async def test_a_claim_past_its_lease_is_kept_by_a_renewal_that_comes_before_the_reaper(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await fleet.jumps(LEASE * 2)
    await hand.renews(given.hold)
    await fleet.passes(LEASE - 1)
    await hand.renews(given.hold)

    assert hand.heard(Renewed) == [Renewed([]), Renewed([])]
    assert await fleet.status(given.hold.task) == "running"


async def test_a_start_that_is_said_again_counts_once(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await hand.says(Started([given.hold, given.hold]), Started([given.hold]))

    assert hand.heard(Cancel) == []
    assert (await fleet.events(given.hold.task)).count("task.started") == 1


async def test_a_release_gives_back_what_was_not_started_at_no_cost_and_counts_what_was(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    for _ in range(2):
        await fleet.submit()
    await settle()
    fresh, begun = hand.given()
    await hand.starts(begun)

    await hand.says(Release([fresh.hold, begun.hold], "stopping"))

    assert [await fleet.status(given.hold.task) for given in (fresh, begun)] == ["pending", "pending"]
    assert [await fleet.attempts(given.hold.task) for given in (fresh, begun)] == [[], ["orphaned"]]


async def test_good_bye_hands_everything_back_and_the_node_is_offline(fleet: Fleet) -> None:
    hand, other = fleet.hand(), fleet.hand("other", "boot_other")
    given = await held(fleet, hand)

    await hand.leaves()
    await other.joins()

    assert hand.closed
    assert [again.hold.task for again in other.given()] == [given.hold.task]
    assert {node.name: str(node.status) for node in (await fleet.call("GET", "/nodes"))["nodes"]} == {
        "hand": "offline", "other": "online",
    }  # fmt: skip


async def test_good_bye_does_not_hand_back_as_unstarted_what_was_started_while_the_store_was_away(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    task = await fleet.submit(on_node_loss="fail")
    await settle()
    (given,) = hand.given()
    fleet.store.away = True
    await hand.starts(given)

    fleet.store.away = False
    await hand.leaves()

    assert await fleet.status(task) == "failed"
    assert await fleet.attempts(task) == ["orphaned"]


async def test_a_cancel_is_told_to_the_node_at_once_and_to_nobody_else(fleet: Fleet) -> None:
    hand, other = fleet.hand(), fleet.hand("other", "boot_other")
    given = await held(fleet, hand)
    await other.joins()

    await fleet.cancel(given.hold.task)

    assert hand.heard(Cancel) == [Cancel([given.hold])]
    assert other.heard(Cancel) == []


async def test_a_task_that_may_be_tried_again_is_given_out_after_its_backoff(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, max_attempts=2, backoff_seconds=10)

    await hand.ends(given, FAILED)
    await hand.says(Credit(1, 1))
    await fleet.passes(9)
    too_soon = hand.given()
    await fleet.passes(4)
    (again,) = hand.given()

    assert too_soon == []
    assert again.hold.fence > given.hold.fence
    assert await fleet.attempts(given.hold.task) == ["failed", "claimed"]


@pytest.mark.parametrize("before", ["a start", "a start and output"])
async def test_a_result_waits_for_what_came_before_it_though_another_writer_is_free(before: str) -> None:
    fleet = Fleet(writers=2)
    await fleet.start()
    hand = fleet.hand()
    await hand.joins()
    task = await fleet.submit()
    await settle()
    (given,) = hand.given()
    slow = asyncio.Event()
    fleet.store.gates.append(slow)

    await hand.starts(given)
    if before != "a start":
        await hand.writes(given, b"the end\n")
    await hand.ends(given)
    early = hand.heard(DoneAck)
    slow.set()
    await settle()

    assert early == []
    assert hand.heard(DoneAck) == [DoneAck([given.attempt])]
    assert await fleet.events(task) == ["task.created", "task.claimed", "task.started", "task.completed"]
    assert fleet.kept(given.attempt) == (0 if before == "a start" else 8)
    await fleet.stop()
