"""The manual clock wakes in order, times out, and jumps only on its wall."""

import asyncio
from datetime import timedelta

import pytest

from retinue.testing.clock import START, ManualClock


async def test_sleepers_wake_in_the_order_of_their_moments() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0, 0.0):
            group.create_task(sleeper(seconds))
        await asyncio.sleep(0)
        clock.advance(3)

    assert woken == [0.0, 1.0, 2.0, 3.0]


async def test_a_sleeper_waits_for_its_whole_time() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(5))
    await asyncio.sleep(0)

    clock.advance(4.9)
    await asyncio.sleep(0)

    assert (sleeper.done(), clock.sleepers) == (False, 1)
    clock.advance(0.1)
    await sleeper
    assert clock.sleepers == 0


async def test_a_timeout_ends_its_block_at_its_time() -> None:
    clock = ManualClock()

    async def forever() -> None:
        async with clock.timeout(2):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(forever())
    await asyncio.sleep(0)
    clock.advance(2)

    with pytest.raises(TimeoutError):
        await waiting


async def test_a_timeout_that_was_not_needed_is_forgotten() -> None:
    clock = ManualClock()

    async with clock.timeout(2), clock.timeout(None):
        pass
    clock.advance(3)

    assert clock.sleepers == 0


def test_a_step_of_the_wall_leaves_monotonic_time_alone() -> None:
    clock = ManualClock()

    clock.step_wall(-3600)
    clock.advance(1)

    assert clock.now() == START - timedelta(seconds=3599)
    assert clock.monotonic() == 1
