"""How long after its submission an idle system starts a task: the median of many, one at a time."""

import asyncio
import statistics
import tempfile
import time

import retinue

TITLE = "pick-up of a function task, idle system: submit until its result is back, median"
UNIT = "ms"
TASKS = 200


@retinue.task
async def now() -> float:
    """When it ran."""
    return time.time()


async def _measure() -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with retinue.connect(data_dir=folder, workers=2) as fleet:
            await fleet.run(now)
            waits = []
            for _ in range(TASKS):
                begun = time.time()
                waits.append((await fleet.run(now) - begun) * 1000)
    return statistics.median(waits)


def run() -> float:
    """Milliseconds from the call until the function ran."""
    return asyncio.run(_measure())
