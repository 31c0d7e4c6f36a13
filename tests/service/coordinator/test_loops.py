"""What the coordinator does by itself: reap, wake, end sessions, and come back from a store that was away."""

from datetime import timedelta

import pytest

from retinue.client.frames import Assignment, Cancel, Credit, ProgressFrame
from retinue.coordinator.opening import abandon_boot, abandon_nodes
from retinue.errors import Unavailable
from retinue.tasks.model import Ending, Progress, Task
from service.rig import LEASE, SWEEP, Fleet, Hand, settle


async def held(fleet: Fleet, hand: Hand, **fields: object) -> Assignment:
    await hand.joins()
    await fleet.submit(**fields)
    await settle()
    (given,) = hand.given()
    await hand.starts(given)
    return given


# -- the reaper --------------------------------------------------------------------------------------------------------


async def test_what_a_lost_node_held_waits_again_a_lease_and_a_sweep_later(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await fleet.passes(3 * LEASE)  # the reaper has been awake for long
    again = (await fleet.attempts(given.hold.task))[:1]

    hand = fleet.hand()
    await hand.joins()
    (second,) = hand.given()
    await hand.starts(second)
    await hand.drops()
    await fleet.passes(LEASE - 1)
    before = await fleet.status(given.hold.task)
    await fleet.passes(SWEEP + 1)

    assert again == ["orphaned"]
    assert (before, await fleet.status(given.hold.task)) == ("running", "pending")


async def test_a_machine_that_slept_orphans_nobody_whose_node_comes_back(fleet: Fleet) -> None:
    lab = await fleet.node()
    await fleet.submit()
    await settle()
    await fleet.passes(2 * LEASE)

    for _ in range(3):
        await fleet.jumps(8 * 3600)
        await fleet.passes(LEASE)

    assert [attempt.status for attempt in (await only(fleet)).attempts] == ["running"]
    assert len(lab.programs) == 1


async def test_a_machine_that_slept_still_orphans_what_nobody_comes_back_for(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.drops()

    await fleet.jumps(8 * 3600)
    await fleet.passes(LEASE - 1)
    in_its_grace = await fleet.status(given.hold.task)
    await fleet.passes(2 * SWEEP)

    assert in_its_grace == "running"
    assert await fleet.status(given.hold.task) == "pending"


async def test_a_coordinator_that_was_away_orphans_nobody_whose_node_comes_back(fleet: Fleet) -> None:
    lab = await fleet.node()
    await fleet.submit()
    await settle()
    lab.cable.close()
    lab.cut_off = True

    await fleet.jumps(10 * LEASE)
    await fleet.restart()
    lab.cut_off = False
    await fleet.passes(LEASE)
    await fleet.passes(3 * LEASE)

    assert [attempt.status for attempt in (await only(fleet)).attempts] == ["running"]
    assert len(lab.programs) == 1


async def test_a_store_that_was_away_gives_nodes_a_full_lease_to_come_back(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await fleet.passes(1)
    fleet.store.away = True
    await fleet.passes(4 * LEASE)

    fleet.store.away = False
    await fleet.passes(LEASE - 1)
    before_the_reaper = await fleet.status(given.hold.task)
    await hand.renews(given.hold)
    await fleet.passes(2 * SWEEP)

    assert before_the_reaper == "running"
    assert await fleet.status(given.hold.task) == "running"


@pytest.mark.parametrize(("policy", "then"), [("requeue", "pending"), ("wait:60", "running"), ("fail", "failed")])
async def test_the_policy_for_a_lost_node_is_followed(fleet: Fleet, policy: str, then: str) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, on_node_loss=policy)
    await hand.drops()

    await fleet.passes(3 * LEASE)

    assert await fleet.status(given.hold.task) == then
    assert (await fleet.task(given.hold.task)).code == (None if then == "running" else "NODE_LOST")


async def test_a_patient_task_is_orphaned_when_its_patience_is_over(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, on_node_loss="wait:60")
    await hand.drops()

    await fleet.passes(LEASE + 60 + 2 * SWEEP)

    assert await fleet.attempts(given.hold.task) == ["orphaned"]


async def test_a_task_that_may_not_run_again_is_never_started_twice_though_its_claim_may_not_have_arrived(
    fleet: Fleet,
) -> None:
    hand = fleet.hand()
    await hand.joins()
    task = await fleet.submit(on_node_loss="fail")
    await settle()
    await hand.drops()

    await fleet.passes(3 * LEASE)

    assert (await fleet.status(task), (await fleet.task(task)).code) == ("failed", "NODE_LOST")


@pytest.mark.parametrize(("policy", "then"), [("requeue", "pending"), ("fail", "failed")])
async def test_a_dead_process_may_have_begun_what_it_only_claimed(fleet: Fleet, policy: str, then: str) -> None:
    hand = fleet.hand()
    await hand.joins()
    task = await fleet.submit(on_node_loss=policy)
    await settle()
    (given,) = hand.given()
    await hand.drops()  # it was killed after it had started the program, before it could say so

    await abandon_nodes(fleet.coordinator)
    again = fleet.hand(boot="boot_2")
    await again.joins(free=0)

    assert given.hold.task == task
    assert await fleet.status(task) == then


async def test_a_boot_that_is_known_to_be_dead_holds_nothing_and_another_one_keeps_what_it_has(fleet: Fleet) -> None:
    hand = fleet.hand(boot="boot_1")
    await hand.joins(free=1)
    task = await fleet.submit()
    await settle()

    await abandon_boot(fleet.coordinator, "hand", "boot_0")
    before = await fleet.status(task)
    await abandon_boot(fleet.coordinator, "hand", "boot_1")
    after = await fleet.status(task)
    again = fleet.hand(boot="boot_2")
    await again.joins()

    assert (before, after) == ("claimed", "pending")
    assert [given.hold.task for given in again.given()] == [task]


async def test_a_task_is_given_up_after_three_lost_nodes(fleet: Fleet) -> None:
    task = await fleet.submit()

    for number in range(3):
        hand = fleet.hand(boot=f"boot_{number}")
        await hand.joins()
        (given,) = hand.given()
        await hand.starts(given)
        await hand.leaves()

    assert (await fleet.status(task), (await fleet.task(task)).code) == ("failed", "NODE_LOST")
    assert await fleet.attempts(task) == ["orphaned"] * 3


async def test_a_node_that_is_silent_for_long_is_offline_and_online_when_it_is_heard_again(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()

    await fleet.passes(2 * 90, step=5)
    silent = await node_status(fleet)
    await hand.renews()

    assert (silent, await node_status(fleet)) == ("offline", "online")


async def node_status(fleet: Fleet) -> str:
    (node,) = (await fleet.call("GET", "/nodes"))["nodes"]
    return str(node.status)


async def only(fleet: Fleet) -> Task:
    (task,) = await fleet.coordinator.tasks.list(fleet.coordinator.team)
    return task


# -- timers ------------------------------------------------------------------------------------------------------------


async def test_a_scheduled_task_starts_at_its_moment_and_not_at_the_next_sweep(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    at = fleet.clock.now() + timedelta(seconds=7.2)
    task = await fleet.submit(not_before=at)

    await fleet.passes(7.0, step=0.1)
    before = await fleet.status(task)
    await fleet.passes(0.3, step=0.1)

    assert before == "scheduled"
    assert [given.hold.task for given in hand.given()] == [task]


async def test_a_timer_that_comes_before_all_others_wakes_the_loop(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    await fleet.submit(not_before=fleet.clock.now() + timedelta(hours=1))
    await fleet.passes(1)

    task = await fleet.submit(not_before=fleet.clock.now() + timedelta(seconds=0.5))
    await fleet.passes(0.6, step=0.1)

    assert [given.hold.task for given in hand.given()] == [task]


async def test_a_deadline_ends_a_task_that_waits_and_one_that_runs_at_its_moment(fleet: Fleet) -> None:
    hand = fleet.hand()
    at = fleet.clock.now() + timedelta(seconds=7.2)
    given = await held(fleet, hand, deadline=at)
    waiting = await fleet.submit(deadline=at, labels={"no": "node"})

    await fleet.passes(7.0, step=0.1)
    before = [await fleet.status(task) for task in (given.hold.task, waiting)]
    await fleet.passes(0.3, step=0.1)

    assert before == ["running", "pending"]
    assert [(await fleet.task(task)).code for task in (given.hold.task, waiting)] == ["DEADLINE", "DEADLINE"]
    assert hand.heard(Cancel) == [Cancel([given.hold])]


async def test_a_deadline_that_passed_while_the_machine_slept_is_met_when_it_wakes(fleet: Fleet) -> None:
    task = await fleet.submit(deadline=fleet.clock.now() + timedelta(hours=1))
    await fleet.passes(1)

    await fleet.jumps(8 * 3600)
    await fleet.passes(0.5)

    assert (await fleet.task(task)).code == "DEADLINE"


async def test_a_backoff_ends_at_its_moment(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, max_attempts=2, backoff_seconds=4.0)
    await hand.ends(given, Ending(ok=False, exit_code=1, code="EXIT"))
    await hand.says(Credit(1, 1))

    await fleet.passes(3.9, step=0.1)
    before = hand.given()
    await fleet.passes(1.2, step=0.1)  # up to a quarter more, by chance

    assert before == []
    assert [again.hold.task for again in hand.given()] == [given.hold.task]


# -- sessions ----------------------------------------------------------------------------------------------------------


async def open_session(fleet: Fleet) -> str:
    return str((await fleet.call("POST", "/sessions", {"lease_seconds": LEASE}))["id"])


async def test_a_foreground_task_ends_with_its_client_a_lease_after_it_was_last_heard_of(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    await fleet.passes(2 * LEASE)
    session = await open_session(fleet)
    task = await fleet.submit(session=session)
    await settle()
    (given,) = hand.given()
    await hand.starts(given)

    await fleet.passes(LEASE - 1)
    before = await fleet.status(task)
    await hand.renews(given.hold)
    await fleet.passes(SWEEP + 2)

    assert (before, await fleet.status(task)) == ("running", "cancelled")
    assert hand.heard(Cancel) == [Cancel([given.hold])]


async def test_a_session_that_is_kept_does_not_lapse(fleet: Fleet) -> None:
    session = await open_session(fleet)
    task = await fleet.submit(session=session)

    for _ in range(10):
        await fleet.passes(LEASE / 2)
        await fleet.call("POST", f"/sessions/{session}/keep", {"lease_seconds": LEASE})

    assert await fleet.status(task) == "pending"


async def test_a_session_that_is_closed_ends_its_tasks_at_once(fleet: Fleet) -> None:
    session = await open_session(fleet)
    task = await fleet.submit(session=session)

    await fleet.call("DELETE", f"/sessions/{session}")

    assert await fleet.status(task) == "cancelled"


async def test_sessions_of_a_dead_coordinator_end_when_the_next_one_starts(fleet: Fleet) -> None:
    task = await fleet.submit(session=await open_session(fleet))

    await fleet.restart()

    assert await fleet.status(task) == "cancelled"


# -- a store that is away ----------------------------------------------------------------------------------------------


async def test_loops_say_that_the_store_is_away_and_recover(fleet: Fleet) -> None:
    await fleet.passes(61, step=5)
    fleet.store.away = True
    await fleet.passes(61, step=5)
    while_away = {loop.name: loop.status for loop in fleet.coordinator.loops}

    fleet.store.away = False
    await fleet.passes(61, step=5)
    status = await fleet.call("GET", "/status")

    assert {name for name, said in while_away.items() if said == "waiting for the store: UNAVAILABLE"} >= {
        "reaper", "timers", "dispatcher", "memory", "pruner",
    }  # fmt: skip
    assert set(status["loops"].values()) == {"ok"}
    assert status["degraded"] == []


async def test_while_the_store_is_away_a_submit_is_refused_and_afterwards_taken(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    fleet.store.away = True

    with pytest.raises(Unavailable):
        await fleet.submit()
    fleet.store.away = False
    task = await fleet.submit()
    await settle()

    assert [given.hold.task for given in hand.given()] == [task]


async def test_credit_that_was_set_aside_for_a_claim_the_store_refused_is_used_later(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=0)
    tasks = [await fleet.submit() for _ in range(2)]
    fleet.store.away = True

    await hand.says(Credit(2, 0))
    while_away = hand.given()
    fleet.store.away = False
    await fleet.passes(2 * SWEEP)

    assert while_away == []
    assert sorted(given.hold.task for given in hand.given()) == sorted(tasks)


async def test_a_start_the_store_could_not_take_is_told_again(fleet: Fleet) -> None:
    lab = await fleet.node()
    lab.slow_to_start.clear()
    task = await fleet.submit()
    await settle()
    fleet.store.away = True
    lab.slow_to_start.set()
    await fleet.passes(1)

    fleet.store.away = False
    while_away = await fleet.status(task)
    await fleet.passes(LEASE)

    assert (while_away, await fleet.status(task)) == ("claimed", "running")


async def test_progress_the_store_could_not_take_is_passed_over_and_the_latest_counts(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    fleet.store.away = True
    await hand.says(ProgressFrame(given.hold, Progress(stage="lost", percent=10)))
    fleet.store.away = False

    await hand.says(ProgressFrame(given.hold, Progress(stage="half", percent=50)))

    assert (await fleet.task(given.hold.task)).progress == Progress(stage="half", percent=50)
