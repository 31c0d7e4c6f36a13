"""One life of an embedded fleet: `work` submits until it is killed, `finish` waits for all that was acknowledged.

Each task appends a line with its fence to a file of its own when it starts, which no database can take back.
"""

import asyncio
import os
import sys
from pathlib import Path
from random import Random

from retinue.client.client import Fleet
from retinue.coordinator.app import Timing
from retinue.embedded import EmbeddedSettings, EmbeddedTransport
from retinue.tasks.model import TERMINAL, TaskSpec

TIMING = Timing(lease=1.0, sweep=0.25, heartbeat=1.0, log_flush=0.2)
AT_ONCE = 12  # tasks that one life submits beyond what has ended
MARK = "KILL_NINE"


def spec(number: int, folder: Path) -> TaskSpec:
    """What task `number` is: mostly short work, some that fails, leaves a daemon behind, or may never run twice."""
    random = Random(number)
    kind = random.choices(("work", "fail", "daemon", "talk"), weights=(6, 2, 1, 1))[0]
    rest = {
        "work": f"sleep {random.uniform(0, 0.15):.3f}",
        "fail": "exit 3",
        "daemon": "setsid -f sleep 1000 >/dev/null 2>&1; sleep 0.05",
        "talk": "yes 0123456789abcde | head -c 200000",
    }[kind]
    script = f'echo "$RETINUE_FENCE" >> "$STARTS/{number}"; {rest}'
    return TaskSpec(
        command=["sh", "-c", script],
        name=f"n{number}",
        env={"STARTS": str(folder / "starts"), MARK: folder.name},
        max_attempts=2 if kind == "fail" else 1,
        backoff_seconds=0.05,
        on_node_loss="fail" if number % 4 == 0 else "requeue",
    )


def lines(file: Path) -> list[str]:
    """Whole lines: the last one may have been cut off."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


async def unfinished(fleet: Fleet) -> int:
    return sum(n for status, n in (await fleet.status())["tasks"].items() if status not in TERMINAL)


async def work(fleet: Fleet, folder: Path) -> None:
    """Submit one task after the other, noting each acknowledged id before going on."""
    acknowledged = folder / "acknowledged"
    made = lines(acknowledged)
    acknowledged.write_text("".join(line + "\n" for line in made))
    with acknowledged.open("a") as notes:
        while True:
            if await unfinished(fleet) < AT_ONCE:
                number = len(made)
                task = await fleet.tasks.submit(spec(number, folder), key=f"key-{number}")
                made.append(f"{number} {task.id}")
                notes.write(made[-1] + "\n")
                notes.flush()
            else:
                await asyncio.sleep(0.01)


async def finish(fleet: Fleet, folder: Path) -> None:
    """Wait for the end of everything, also of what was created and never acknowledged."""
    await asyncio.gather(*(fleet.tasks.wait(line.split()[1]) for line in lines(folder / "acknowledged")))
    while await unfinished(fleet):  # noqa: ASYNC110 - as a program outside would
        await asyncio.sleep(0.05)


async def main(verb: str, folder: Path, node: str, store_url: str) -> None:
    settings = EmbeddedSettings(
        data_dir=folder / f"data-{node}", store_url=store_url or None, node=node, workers=4, timing=TIMING
    )
    (folder / "starts").mkdir(exist_ok=True)
    async with Fleet(EmbeddedTransport(settings)) as fleet:
        print("up", flush=True)
        if verb == "idle":
            await asyncio.sleep(1000)
        await {"work": work, "finish": finish}[verb](fleet, folder)


if __name__ == "__main__":
    os.environ.pop(MARK, None)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
