"""Two hundred `true` commands on two workers, beside GNU parallel where it is installed."""

import asyncio
import shutil
import subprocess
import tempfile
import time

import retinue

TITLE = "200 `true` commands on 2 workers"
UNIT = "commands/s"
COMMANDS = 200


async def _measure() -> float:
    with tempfile.TemporaryDirectory() as folder:
        async with retinue.connect(data_dir=folder, workers=2, apps=[]) as fleet:
            begun = time.perf_counter()
            ids = await fleet.tasks.submit_many([retinue.TaskSpec(command=["true"]) for _ in range(COMMANDS)])
            ended = await asyncio.gather(*(fleet.tasks.wait(task_id) for task_id in ids))
            took = time.perf_counter() - begun
    if any(task.exit_code != 0 for task in ended):
        raise RuntimeError("a command failed")
    return COMMANDS / took


def run() -> float:
    """Commands a second."""
    return asyncio.run(_measure())


def peer() -> tuple[str, float] | None:
    """GNU parallel doing the same."""
    if shutil.which("parallel") is None:
        return None
    lines = "\n" * COMMANDS
    begun = time.perf_counter()
    subprocess.run(["parallel", "-j2", "true", "#"], input=lines.encode(), check=True, stderr=subprocess.DEVNULL)
    return "GNU parallel", COMMANDS / (time.perf_counter() - begun)
