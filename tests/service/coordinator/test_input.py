"""Standard input on its way from a client to the attempt that reads it."""

import asyncio

from retinue.client.frames import Assignment, Cancel, Credit, Input, WantInput
from retinue.tasks.model import Ending
from service.rig import Fleet, Hand, settle

MIB = 1 << 20
FAILED = Ending(ok=False, exit_code=1, code="EXIT")


async def held(fleet: Fleet, hand: Hand, **fields: object) -> Assignment:
    await hand.joins()
    await fleet.submit(stdin=True, **fields)
    await settle()
    (given,) = hand.given()
    await hand.starts(given)
    return given


def write(fleet: Fleet, task: str, data: bytes, *, end: bool = False) -> "asyncio.Task[object]":
    return fleet.spawn(fleet.call("POST", f"/tasks/{task}/stdin", {"base64": data, "end": end}))


def wants(given: Assignment, offset: int, credit: int = MIB) -> WantInput:
    return WantInput(given.hold, given.attempt, offset, credit)


def read(hand: Hand) -> tuple[bytes, bool]:
    """What came, and whether it ended."""
    pieces = hand.heard(Input)
    return b"".join(piece.data for piece in pieces), any(piece.end for piece in pieces)


async def test_input_waits_for_who_reads_it_and_comes_to_its_end(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await write(fleet, given.hold.task, b"first ")
    unasked = read(hand)
    await hand.says(wants(given, 0))
    asked = read(hand)
    await write(fleet, given.hold.task, b"second", end=True)
    await settle()

    assert unasked == (b"", False)
    assert asked == (b"first ", False)
    assert read(hand) == (b"second", True)


async def test_no_more_is_sent_than_there_is_credit_for(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await write(fleet, given.hold.task, b"x" * 100_000, end=True)

    await hand.says(wants(given, 0, 70_000))
    first = read(hand)
    await hand.says(wants(given, 70_000, 70_000))

    assert (len(first[0]), first[1]) == (70_000, False)
    assert read(hand) == (b"x" * 30_000, True)


async def test_a_client_waits_while_the_program_is_far_behind(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await write(fleet, given.hold.task, b"x" * MIB)

    ahead = write(fleet, given.hold.task, b"y")
    await settle()
    waited = not ahead.done()
    await hand.says(wants(given, 0))
    await settle()

    assert waited
    assert ahead.done()


async def test_a_client_that_waits_is_told_when_the_task_is_over(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    ahead = write(fleet, given.hold.task, b"x" * (MIB + 1))
    await settle()

    await hand.ends(given)

    assert ahead.done()
    assert fleet.coordinator.stdin.tasks == set()


async def test_a_later_attempt_reads_from_the_beginning(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand, max_attempts=2, backoff_seconds=0.0)
    await write(fleet, given.hold.task, b"all of it", end=True)
    await hand.says(wants(given, 0))
    first = read(hand)

    await hand.ends(given, FAILED)
    await hand.says(Credit(1, 1))
    (again,) = hand.given()
    await hand.says(wants(again, 0))

    assert first == read(hand) == (b"all of it", True)


async def test_a_lost_attempt_cannot_take_the_input_of_the_one_that_runs(fleet: Fleet) -> None:
    first, second = fleet.hand("a", "boot_a"), fleet.hand("b", "boot_b")
    old = await held(fleet, first)
    await first.says(wants(old, 0))
    await first.leaves()
    await second.joins()
    (new,) = second.given()
    await second.says(wants(new, 0))

    back = fleet.hand("a", "boot_a")
    await back.joins(free=0)
    await back.says(wants(old, 0))
    await write(fleet, new.hold.task, b"for the new one", end=True)
    await settle()

    assert back.heard(Cancel) == [Cancel([old.hold])]
    assert read(back) == (b"", False)
    assert read(second) == (b"for the new one", True)


async def test_input_of_a_task_that_was_cancelled_before_it_ran_is_let_go_of(fleet: Fleet) -> None:
    task = await fleet.submit(stdin=True)
    await write(fleet, task, b"never read")

    await fleet.cancel(task)
    await fleet.passes(61, step=5)

    assert fleet.coordinator.stdin.tasks == set()


async def test_after_a_reconnect_reading_goes_on_where_it_was(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await write(fleet, given.hold.task, b"0123456789")
    await hand.says(wants(given, 0))
    before = read(hand)
    await hand.drops()
    await write(fleet, given.hold.task, b"abcdef", end=True)

    again = fleet.hand()
    await again.joins(given.hold)
    await again.says(wants(given, 4))

    assert before == (b"0123456789", False)
    assert read(again) == (b"456789abcdef", True)
