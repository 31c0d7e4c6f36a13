"""Output on the link: by offsets, acknowledged when it is durable, whole before the result that ends its right."""

import pytest

from retinue.client.frames import Assignment, Done, DoneAck, Log, LogKept, Report
from retinue.tasks.logs import SEGMENT
from service.rig import LOG_FLUSH, OK, Fleet, Hand, settle

PIECE = 60 * 1024


async def held(fleet: Fleet, hand: Hand, **fields: object) -> Assignment:
    await hand.joins()
    await fleet.submit(**fields)
    await settle()
    (given,) = hand.given()
    await hand.starts(given)
    return given


async def test_output_is_acknowledged_only_once_it_is_durable(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await hand.writes(given, b"hello ")
    await hand.writes(given, b"world\n", 6)
    before = (hand.heard(LogKept), fleet.kept(given.attempt), await fleet.output(given.attempt))
    await fleet.passes(LOG_FLUSH)

    assert before == ([], 0, b"hello world\n")
    assert hand.heard(LogKept) == [LogKept(given.attempt, "stdout", 12)]
    assert fleet.kept(given.attempt) == 12


async def test_a_repeat_adds_nothing(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"hello ")
    await hand.writes(given, b"hello ")

    await fleet.passes(LOG_FLUSH)
    await hand.writes(given, b"hello ")
    await hand.writes(given, b"lo world\n", 3)
    await fleet.passes(LOG_FLUSH)

    assert await fleet.output(given.attempt) == b"hello world\n"
    assert hand.heard(LogKept)[-1] == LogKept(given.attempt, "stdout", 12)


async def test_what_comes_after_a_gap_is_not_taken_until_the_gap_is_filled(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"one ")

    await hand.writes(given, b"three", 8)
    with_a_gap = await fleet.output(given.attempt)
    await hand.writes(given, b"two ", 4)
    await hand.writes(given, b"three", 8)
    await fleet.passes(LOG_FLUSH)

    assert with_a_gap == b"one "
    assert await fleet.output(given.attempt) == b"one two three"
    assert fleet.kept(given.attempt) == 13


async def test_a_stream_that_begins_with_a_gap_is_not_taken_for_more_than_the_store_has(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await hand.writes(given, b"late", 100)
    await fleet.passes(3 * LOG_FLUSH)

    assert hand.heard(LogKept) == []
    assert await fleet.output(given.attempt) == b""


async def test_after_a_reconnect_output_goes_on_from_what_was_acknowledged(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"kept ")
    await fleet.passes(LOG_FLUSH)
    await hand.writes(given, b"lost?", 5)
    await hand.drops()

    again = fleet.hand()
    await again.joins(given.hold)
    await again.writes(given, b"lost?", 5)
    await again.writes(given, b" no", 10)
    await fleet.passes(LOG_FLUSH)

    assert await fleet.output(given.attempt) == b"kept lost? no"
    assert again.heard(LogKept) == [LogKept(given.attempt, "stdout", 13)]


async def test_a_coordinator_that_starts_anew_takes_output_from_what_is_durable(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"kept ")
    await fleet.passes(LOG_FLUSH)
    await hand.writes(given, b"in memory", 5)

    await fleet.restart()
    again = fleet.hand()
    welcome = await again.joins(given.hold)
    await again.writes(given, b"in memory", 5)
    await fleet.passes(LOG_FLUSH)

    assert welcome.lost == []
    assert await fleet.output(given.attempt) == b"kept in memory"


async def test_a_mebibyte_arrives_in_segments_and_reads_as_it_was_written(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    data = bytes(range(256)) * 4096

    for offset in range(0, len(data), PIECE):
        await hand.writes(given, data[offset : offset + PIECE], offset)
    at_once = fleet.kept(given.attempt)
    await fleet.passes(LOG_FLUSH)

    assert at_once >= 3 * SEGMENT
    assert hand.heard(LogKept)[-1] == LogKept(given.attempt, "stdout", len(data))
    assert await fleet.output(given.attempt) == data
    assert len(fleet.blobs.kept) >= 1
    assert max(size for (size,) in fleet.rows("SELECT size FROM logs")) == SEGMENT


@pytest.mark.parametrize("sizes", [{"stdout": 10}, {"stdout": 10, "stderr": 20}, {"stdout": 300_000, "stderr": 10}])
async def test_output_that_came_before_the_result_is_kept_with_it(fleet: Fleet, sizes: dict[str, int]) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    frames = [
        Log(given.hold, given.attempt, stream, offset, b"x" * min(PIECE, size - offset))
        for stream, size in sizes.items()
        for offset in range(0, size, PIECE)
    ]

    await hand.says(*frames, Done([Report(given.hold, given.attempt, OK)]))

    assert hand.heard(DoneAck) == [DoneAck([given.attempt])]
    assert {stream: fleet.kept(given.attempt, stream) for stream in sizes} == sizes


async def test_output_after_the_result_is_refused(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"in time\n")
    await hand.ends(given)

    await hand.writes(given, b"too late\n", 8)
    await fleet.passes(LOG_FLUSH)

    assert await fleet.output(given.attempt) == b"in time\n"


async def test_while_the_store_is_away_output_waits_and_is_kept_afterwards(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    fleet.store.away = True

    await hand.writes(given, b"patience\n")
    await fleet.passes(5)
    while_away = hand.heard(LogKept)
    fleet.store.away = False
    await fleet.passes(LOG_FLUSH)

    assert while_away == []
    assert hand.heard(LogKept) == [LogKept(given.attempt, "stdout", 9)]
    assert await fleet.output(given.attempt) == b"patience\n"


async def test_a_result_that_the_store_could_not_take_keeps_its_output_for_the_next_try(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"the end\n")
    fleet.store.away = True

    await hand.ends(given)
    while_away = hand.heard(DoneAck)
    fleet.store.away = False
    await hand.ends(given)

    assert while_away == []
    assert hand.heard(DoneAck) == [DoneAck([given.attempt])]
    assert fleet.kept(given.attempt) == 8


async def test_output_of_an_empty_frame_changes_nothing(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)

    await hand.writes(given, b"")
    await hand.writes(given, b"x")
    await hand.writes(given, b"", 1)
    await fleet.passes(LOG_FLUSH)

    assert await fleet.output(given.attempt) == b"x"


async def test_streams_of_attempts_that_ended_without_a_report_are_forgotten(fleet: Fleet) -> None:
    hand = fleet.hand()
    given = await held(fleet, hand)
    await hand.writes(given, b"kept\n")
    await fleet.passes(LOG_FLUSH)

    await fleet.cancel(given.hold.task)
    await fleet.passes(61, step=5)

    assert fleet.coordinator.logs._streams == {}
    assert await fleet.output(given.attempt) == b"kept\n"
