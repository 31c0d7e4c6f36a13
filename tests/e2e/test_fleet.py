"""A fleet as a program uses it: a real coordinator, a real node, real processes, on both databases."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import retinue
from retinue.errors import Invalid, NotFound, TaskFinal
from retinue.tasks.model import TaskSpec, TaskStatus

pytestmark = [pytest.mark.real]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[retinue.Fleet]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    async with retinue.connect(data_dir=tmp_path / "data", store_url=url, apps=[], workers=2) as opened:
        yield opened


async def output(fleet: retinue.Fleet, task_id: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    async for piece in fleet.tasks.log(task_id, follow=True):
        found[piece.stream] = found.get(piece.stream, b"") + piece.base64
    return found


async def test_a_command_runs_and_its_output_and_exit_code_come_back(fleet: retinue.Fleet) -> None:
    task = await fleet.tasks.submit(command=["sh", "-c", "echo out; echo err >&2; exit 3"])

    said = await output(fleet, task.id)
    ended = await fleet.tasks.wait(task.id)

    assert said == {"stdout": b"out\n", "stderr": b"err\n"}
    assert (ended.status, ended.exit_code, ended.code) == (TaskStatus.FAILED, 3, "EXIT")


async def test_output_is_live(fleet: retinue.Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    task = await fleet.tasks.submit(command=["sh", "-c", f"echo first; cat {gate}"])
    pieces = fleet.tasks.log(task.id, follow=True)

    first = await anext(pieces)
    gate.write_bytes(b"second\n")  # opens only because the command, still running, reads it
    rest = b"".join([piece.base64 async for piece in pieces])

    assert (first.base64, rest) == (b"first\n", b"second\n")


async def test_a_megabyte_of_output_is_kept_whole(fleet: retinue.Fleet) -> None:
    task = await fleet.tasks.submit(command=["sh", "-c", "yes 0123456789abcde | head -c 1048576"])

    said = await output(fleet, task.id)

    assert said == {"stdout": b"0123456789abcde\n" * 65536}


async def test_a_cancelled_command_is_gone_and_its_result_is_not_accepted(fleet: retinue.Fleet, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = await fleet.tasks.submit(
        command=["sh", "-c", f"echo $$ > {pid}.new; mv {pid}.new {pid}; echo up; sleep 600"]
    )
    await anext(aiter(fleet.tasks.log(task.id, follow=True)))

    cancelled = await fleet.tasks.cancel(task.id)

    assert cancelled.status is TaskStatus.CANCELLED
    await gone(int(pid.read_text()))
    assert (await fleet.tasks.wait(task.id)).status is TaskStatus.CANCELLED


async def gone(pid: int) -> None:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


async def test_a_failed_attempt_is_followed_by_another(fleet: retinue.Fleet, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/second || {{ touch {tmp_path}/second; exit 1; }}"
    task = await fleet.tasks.submit(command=["sh", "-c", script], max_attempts=2, backoff_seconds=0.05)

    ended = await fleet.tasks.wait(task.id)

    assert ended.status is TaskStatus.COMPLETED
    assert [attempt.status for attempt in ended.attempts] == ["failed", "completed"]


async def test_a_child_runs_after_its_parents(fleet: retinue.Fleet, tmp_path: Path) -> None:
    parents = [await fleet.tasks.submit(command=["touch", f"{tmp_path}/{name}"]) for name in "ab"]
    child = await fleet.tasks.submit(
        command=["sh", "-c", f"test -e {tmp_path}/a && test -e {tmp_path}/b"], after=[p.id for p in parents]
    )

    assert (await fleet.tasks.wait(child.id)).status is TaskStatus.COMPLETED


async def test_standard_input_reaches_the_command(fleet: retinue.Fleet) -> None:
    task = await fleet.tasks.submit(command=["sha256sum"], stdin=True)

    for _ in range(20):
        await fleet.tasks.write(task.id, b"x" * 50_000)
    await fleet.tasks.write(task.id, b"", end=True)

    import hashlib

    assert (await output(fleet, task.id))["stdout"].split()[0].decode() == hashlib.sha256(b"x" * 1_000_000).hexdigest()


async def test_events_tell_the_life_of_a_task_in_order(fleet: retinue.Fleet) -> None:
    task = await fleet.tasks.submit(command=["true"])
    await fleet.tasks.wait(task.id)

    events, _ = await fleet.events.page(types=["task.>"])

    assert [event.type for event in events if event.correlation_id == task.id] == [
        "task.created", "task.claimed", "task.started", "task.completed",
    ]  # fmt: skip


async def test_a_task_nobody_can_run_says_why_it_waits(fleet: retinue.Fleet) -> None:
    task = await fleet.tasks.submit(command=["true"], labels={"pool": "gpu"})

    waiting = await fleet.tasks.get(task.id)

    assert waiting.waiting_because is not None
    assert waiting.waiting_because.code == "NO_MATCHING_NODE"
    assert "pool=gpu" in waiting.waiting_because.sentence


async def test_the_same_key_makes_one_task(fleet: retinue.Fleet) -> None:
    tasks = await asyncio.gather(*(fleet.tasks.submit(command=["true"], key="k") for _ in range(10)))

    assert len({task.id for task in tasks}) == 1


async def test_bad_requests_are_refused_with_what_is_wrong(fleet: retinue.Fleet) -> None:
    done = await fleet.tasks.submit(command=["true"])
    await fleet.tasks.wait(done.id)

    with pytest.raises(Invalid, match="exactly one of command and function"):
        await fleet.tasks.submit()
    with pytest.raises(NotFound):
        await fleet.tasks.get("tsk_00000000000000000000000000")
    with pytest.raises(NotFound):
        await fleet.tasks.wait("tsk_00000000000000000000000000")
    with pytest.raises(TaskFinal):
        await fleet.tasks.cancel(done.id)


async def test_a_hundred_commands_all_complete(fleet: retinue.Fleet) -> None:
    ids = await fleet.tasks.submit_many([TaskSpec(command=["true"]) for _ in range(100)])

    ended = await asyncio.gather(*(fleet.tasks.wait(task_id) for task_id in ids))

    assert {task.status for task in ended} == {TaskStatus.COMPLETED}
    assert (await fleet.status())["tasks"] == {"completed": 100}
