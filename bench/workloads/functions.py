"""No-op Python functions, end to end: submitted, claimed, run in a host process, committed, seen by the client."""

import asyncio
import tempfile
import time

import retinue

TITLE = "no-op function tasks, embedded SQLite FULL, one process"
UNIT = "tasks/s"
TASKS = 3000


@retinue.task
async def nothing(number: int) -> int:
    """The least a task can do."""
    return number


async def _measure() -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with retinue.connect(data_dir=folder, workers=64) as fleet:
            await fleet.run(nothing, 0)
            begun = time.perf_counter()
            results = await fleet.map(nothing, range(TASKS))
            took = time.perf_counter() - begun
    if results != list(range(TASKS)):
        raise RuntimeError("a result is missing")
    return TASKS / took


def run() -> float:
    """Tasks a second."""
    return asyncio.run(_measure())
