"""How a node joins: hello, and what the coordinator makes of it."""

import pytest

from retinue.client.frames import VERSION, Credit, Ping, Refused, Welcome
from retinue.tasks.model import Hold
from service.rig import LEASE, Fleet, Hand, at_fence, forged, settle


async def test_a_node_is_welcomed_with_the_lease_of_its_claims(fleet: Fleet) -> None:
    hand = fleet.hand()

    await hand.hello()

    (welcome,) = hand.heard(Welcome)
    assert (welcome.version, welcome.lease_seconds, welcome.heartbeat_seconds, welcome.lost) == (VERSION, LEASE, 30, [])
    assert [(node.name, node.status, node.boot) for node in await nodes(fleet)] == [("hand", "online", "boot_hand")]


async def test_the_first_frame_has_to_be_hello(fleet: Fleet) -> None:
    hand = fleet.hand()

    await hand.says(Credit(1, 0))

    assert [refused.code for refused in hand.heard(Refused)] == ["INVALID"]
    assert hand.closed


async def test_a_node_that_speaks_no_version_of_ours_is_refused_and_leaves_no_trace(fleet: Fleet) -> None:
    hand = fleet.hand()

    await hand.hello(versions=(VERSION + 1, VERSION + 2))

    assert [refused.code for refused in hand.heard(Refused)] == ["VERSION"]
    assert hand.closed
    assert await nodes(fleet) == []


async def test_a_node_that_speaks_ours_among_others_is_welcomed(fleet: Fleet) -> None:
    hand = fleet.hand()

    await hand.hello(versions=(VERSION + 1, VERSION))

    assert [welcome.version for welcome in hand.heard(Welcome)] == [VERSION]


async def test_a_second_boot_is_refused_while_the_first_answers(fleet: Fleet) -> None:
    first, second = fleet.hand(boot="boot_1"), fleet.hand(boot="boot_2")
    await first.joins()

    await second.hello()
    task = await fleet.submit()
    await settle()

    assert [refused.code for refused in second.heard(Refused)] == ["NODE_DUPLICATE"]
    assert (second.closed, first.closed) == (True, False)
    assert [given.hold.task for given in first.given()] == [task]


async def test_a_second_boot_is_welcomed_once_the_first_was_silent_for_a_lease(fleet: Fleet) -> None:
    first, second = fleet.hand(boot="boot_1"), fleet.hand(boot="boot_2")
    await first.joins()
    task = await fleet.submit()
    await settle()
    (held,) = first.given()
    await first.starts(held)

    await fleet.passes(LEASE + 0.5)
    await second.joins()

    assert [given.hold.task for given in second.given()] == [task]
    assert await fleet.attempts(task) == ["orphaned", "claimed"]


async def test_a_second_boot_is_welcomed_at_once_when_the_first_said_good_bye(fleet: Fleet) -> None:
    first, second = fleet.hand(boot="boot_1"), fleet.hand(boot="boot_2")
    await first.joins()

    await first.leaves()
    await second.hello()

    assert first.closed
    assert len(second.heard(Welcome)) == 1


async def test_the_same_boot_on_a_new_connection_takes_the_place_of_its_old_one(fleet: Fleet) -> None:
    old = fleet.hand()
    await old.joins()

    new = fleet.hand()
    await new.joins()
    await fleet.submit()
    await settle()

    assert old.closed
    assert (len(old.given()), len(new.given())) == (0, 1)


async def test_a_node_keeps_its_id_over_boots_and_its_new_offer_counts(fleet: Fleet) -> None:
    first = fleet.hand(boot="boot_1")
    before = await first.joins(labels={"pool": "a"})
    await first.leaves()

    second = fleet.hand(boot="boot_2")
    after = await second.joins(labels={"pool": "b"}, workers=5)

    assert before.node == after.node
    assert [(node.labels, node.workers) for node in await nodes(fleet)] == [({"pool": "b"}, 5)]


async def test_claims_that_a_node_does_not_list_are_free_at_once(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    kept, lost, begun = [await fleet.submit() for _ in range(3)]
    await settle()
    held = {given.hold.task: given for given in hand.given()}
    await hand.starts(held[kept])
    await hand.says(Credit(1, 2))
    held |= {given.hold.task: given for given in hand.given()}
    await hand.starts(held[begun])

    again = fleet.hand()
    welcome = await again.joins(held[kept].hold, free=0)

    assert welcome.lost == []
    assert [await fleet.status(task) for task in (kept, lost, begun)] == ["running", "pending", "pending"]
    assert [await fleet.attempts(task) for task in (lost, begun)] == [[], ["orphaned"]]


async def test_hello_is_told_which_holds_are_lost_forged_or_of_another(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()
    tasks = [await fleet.submit() for _ in range(2)]
    await settle()
    mine, gone = sorted(hand.given(), key=lambda given: tasks.index(given.hold.task))
    await fleet.cancel(gone.hold.task)
    wrong = [gone.hold, forged(mine.hold), at_fence(mine.hold, mine.hold.fence + 1), Hold("tsk_none", 1, "token")]

    again = fleet.hand()
    welcome = await again.joins(mine.hold, *wrong, free=0)

    assert set(welcome.lost) == set(wrong)
    assert await fleet.status(mine.hold.task) == "claimed"


async def test_holds_of_another_boot_prove_nothing(fleet: Fleet) -> None:
    first = fleet.hand(boot="boot_1")
    await first.joins()
    await fleet.submit()
    await settle()
    (given,) = first.given()
    await first.leaves()

    second = fleet.hand(boot="boot_2")
    welcome = await second.joins(given.hold, free=0)

    assert welcome.lost == [given.hold]


async def test_a_ping_is_answered(fleet: Fleet) -> None:
    hand = fleet.hand()
    await hand.joins()

    await hand.says(Ping())

    assert hand.heard(Ping) == [Ping()]


@pytest.mark.parametrize("moment", ["before hello", "after hello"])
async def test_while_the_store_is_away_a_node_is_refused_and_told_to_come_again(fleet: Fleet, moment: str) -> None:
    hand = fleet.hand()
    if moment == "after hello":
        await hand.joins()
    fleet.store.away = True

    late = fleet.hand(name="late", boot="boot_late")
    await late.hello()
    fleet.store.away = False
    again = fleet.hand(name="late", boot="boot_late")
    await again.hello()

    assert [refused.code for refused in late.heard(Refused)] == ["UNAVAILABLE"]
    assert late.closed
    assert len(again.heard(Welcome)) == 1


async def nodes(fleet: Fleet) -> list[Hand]:
    found: list[Hand] = (await fleet.call("GET", "/nodes"))["nodes"]
    return found
