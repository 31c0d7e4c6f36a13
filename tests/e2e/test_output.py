"""Output against results: what a program wrote is kept however close to its end it was written."""

import asyncio
import sys
from pathlib import Path

import pytest

import retinue
from retinue.tasks.model import TaskSpec, TaskStatus

pytestmark = [pytest.mark.real, pytest.mark.slow]

BOTH = "import sys; print('out'); print('error', file=sys.stderr)"


async def test_the_output_of_a_completed_task_is_complete(tmp_path: Path) -> None:
    async with retinue.connect(data_dir=tmp_path, apps=(), workers=4) as fleet:
        specs = [TaskSpec(command=["echo", str(number)]) for number in range(20)]

        ids = await fleet.tasks.submit_many([*specs, TaskSpec(command=[sys.executable, "-c", BOTH])])
        ended = await asyncio.gather(*(fleet.tasks.wait(one) for one in ids))
        written = [{piece.stream: piece.base64 async for piece in fleet.tasks.log(one)} for one in ids]

    assert {task.status for task in ended} == {TaskStatus.COMPLETED}
    assert written[:-1] == [{"stdout": f"{number}\n".encode()} for number in range(20)]
    assert written[-1] == {"stdout": b"out\n", "stderr": b"error\n"}
