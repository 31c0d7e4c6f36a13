"""Credit: what a node says it has room for, and that it is never given more."""

import pytest

from retinue.client.frames import Assign, Cancel, Credit, Drain, Release
from retinue.nodes.resources import Resources
from retinue.tasks.model import Ending, TaskSpec
from service.rig import SWEEP, Fleet, forged, settle


async def tasks(fleet: Fleet, many: int) -> list[str]:
    made = [await fleet.submit() for _ in range(many)]
    await settle()
    return made


async def test_nothing_is_given_to_a_node_that_offered_nothing(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=0)

    await tasks(fleet, 3)
    await fleet.passes(2 * SWEEP)

    assert hand.given() == []


@pytest.mark.parametrize("first", ["credit", "tasks"])
async def test_exactly_as_many_are_given_as_were_offered(fleet: Fleet, first: str) -> None:
    hand = fleet.hand()
    await hand.joins(free=3 if first == "credit" else 0, workers=3)

    await tasks(fleet, 10)
    if first == "tasks":
        await hand.says(Credit(3, 0))
    given = hand.given()
    await fleet.passes(2 * SWEEP)

    assert len(given) == 3
    assert hand.given() == []


async def test_a_repeated_credit_gives_nothing_more(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    await tasks(fleet, 10)

    await hand.says(Credit(2, 0), Credit(2, 0), Credit(2, 0))

    assert len(hand.given()) == 2


async def test_a_credit_from_before_an_assign_offers_only_what_is_left_of_it(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2, workers=3)
    await tasks(fleet, 10)

    await hand.says(Credit(3, 0))  # sent before the two were seen

    assert len(hand.given()) == 3


async def test_an_older_credit_that_comes_later_is_passed_over(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    await tasks(fleet, 10)
    numbers = [frame.number for frame in hand.heard(Assign)]

    await hand.says(Credit(0, 2), Credit(5, 1))

    assert numbers[-1] == 2
    assert hand.given() == []


async def test_a_credit_of_what_was_seen_is_absolute(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    await tasks(fleet, 10)
    first = hand.heard(Assign)

    await hand.says(Credit(1, 2))
    second = hand.heard(Assign)

    assert (first[-1].number, sum(len(frame.tasks) for frame in first)) == (2, 2)
    assert [(frame.number, len(frame.tasks)) for frame in second] == [(3, 1)]


async def test_credit_taken_back_is_not_used(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)

    await hand.says(Credit(0, 0))
    await tasks(fleet, 2)
    await fleet.passes(2 * SWEEP)

    assert hand.given() == []


@pytest.mark.parametrize("credit", [Credit(-5, 0), Credit(1_000_000, 0), Credit(2, 9)])
async def test_credit_that_makes_no_sense_neither_breaks_anything_nor_lends_workers(
    fleet: Fleet, credit: Credit
) -> None:
    hand = fleet.hand()
    await hand.joins(free=0)

    await hand.says(credit)
    await tasks(fleet, 5)

    assert len(hand.given()) <= 2  # as many as it said it has


async def test_what_two_nodes_offer_is_dealt_to_both_and_to_neither_too_much(fleet: Fleet) -> None:
    hands = [fleet.hand(name, f"boot_{name}") for name in ("a", "b")]
    for hand in hands:
        await hand.joins(free=0)
    await tasks(fleet, 10)

    for hand in hands:
        await hand.says(Credit(2, 0))
    given = [[assignment.hold.task for assignment in hand.given()] for hand in hands]

    assert [len(one) for one in given] == [2, 2]
    assert len({*given[0], *given[1]}) == 4


async def test_a_node_is_given_no_more_than_its_resources_hold(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=5, workers=5, resources=Resources(cpu=2.0))
    for _ in range(5):
        await fleet.submit(resources=Resources(cpu=1.0))
    await settle()

    given = hand.given()
    await hand.ends(given[0])
    await hand.says(Credit(4, 2))
    after_one_ended = hand.given()

    assert len(given) == 2
    assert len(after_one_ended) == 1


async def test_resources_of_a_cancelled_attempt_are_free_once_it_has_ended(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2, resources=Resources(cpu=1.0))
    first, second = [await fleet.submit(resources=Resources(cpu=1.0)) for _ in range(2)]
    await settle()
    (given,) = hand.given()
    await hand.starts(given)

    await fleet.cancel(first)
    cancelled = hand.heard(Cancel)
    await fleet.passes(SWEEP)
    while_it_ends = hand.given()
    await hand.stopped(given)
    await hand.says(Credit(2, 1))

    assert cancelled == [Cancel([given.hold])]
    assert while_it_ends == []
    assert [one.hold.task for one in hand.given()] == [second]
    assert fleet.rows("SELECT * FROM denials") == []


async def test_what_a_node_holds_takes_its_resources_on_a_new_connection_too(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2, resources=Resources(cpu=1.0))
    first, second = [await fleet.submit(resources=Resources(cpu=1.0)) for _ in range(2)]
    await settle()
    (given,) = hand.given()

    again = fleet.hand()
    await again.joins(given.hold, free=1, resources=Resources(cpu=1.0))
    before = again.given()
    await again.ends(given)
    await again.says(Credit(2, 0))

    assert before == []
    assert [one.hold.task for one in again.given()] == [second]
    assert await fleet.status(first) == "completed"


async def test_a_real_node_says_when_a_cancelled_attempt_has_ended(fleet: Fleet) -> None:
    lab = await fleet.node(workers=2, resources=Resources(cpu=1.0))
    first, second = [await fleet.submit(resources=Resources(cpu=1.0)) for _ in range(2)]
    await settle()
    before = len(lab.programs)

    await fleet.cancel(first)

    assert (before, len(lab.programs)) == (1, 2)
    assert await fleet.status(second) == "running"


async def test_a_claim_that_is_handed_back_is_given_out_again_under_a_higher_fence(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=1)
    (task,) = await tasks(fleet, 1)
    (first,) = hand.given()

    await hand.says(Release([first.hold], "no room"), Credit(1, 1))
    (second,) = hand.given()

    assert second.hold.task == task
    assert second.hold.fence > first.hold.fence
    assert await fleet.attempts(task) == ["claimed"]


async def test_a_forged_release_changes_nothing(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins(free=2)
    (task,) = await tasks(fleet, 1)
    (given,) = hand.given()

    await hand.says(Release([forged(given.hold)], "mischief"))

    assert hand.given() == []
    assert (await fleet.status(task), await fleet.attempts(task)) == ("claimed", ["claimed"])


async def test_a_claim_for_a_link_that_broke_meanwhile_is_given_to_another_node(fleet: Fleet) -> None:
    first, second = [fleet.hand(name, f"boot_{name}") for name in ("a", "b")]
    await first.joins(free=1)

    await fleet.coordinator.tasks.submit(fleet.coordinator.team, "me", TaskSpec(command=["do"]))
    first._link.close()  # the claim is committed, and its frame is not sent yet
    await settle()
    await second.joins(free=1)
    await fleet.passes(SWEEP)

    assert len(first.given()) + len(second.given()) == 1


async def test_a_node_that_drains_finishes_what_it_has_and_takes_nothing(fleet: Fleet) -> None:
    lab = await fleet.node(workers=2)
    running, waiting = await fleet.submit(), None
    await settle()

    (session,) = fleet.coordinator.dispatcher.sessions
    session.link.send(Drain(True))
    await settle()
    waiting = await fleet.submit()
    await settle()
    lab.live[0].exits()
    await settle()
    while_draining = (await fleet.status(running), await fleet.status(waiting), lab.cable.said(Credit)[-1])
    session.link.send(Drain(False))
    await settle()

    assert while_draining == ("completed", "pending", Credit(0, 1))
    assert await fleet.status(waiting) == "running"


async def test_an_attempt_that_fails_frees_its_worker_too(fleet: Fleet) -> None:
    lab = await fleet.node(workers=1)
    first, second = await tasks(fleet, 2)

    lab.live[0].exits(3)
    await settle()

    assert [await fleet.status(task) for task in (first, second)] == ["failed", "running"]
    assert (await fleet.task(first)).code == Ending(False, code="EXIT").code
