"""One demonstration from start to end: the plan becomes tasks of a fleet, and what they found comes back."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import msgspec

from retinue.client.client import Fleet
from retinue.clock import Clock
from retinue.demo.findings import Found
from retinue.demo.folder import Folder
from retinue.demo.plan import STAGES, Setting, Step, plan, spec
from retinue.demo.repository import Repository
from retinue.errors import TaskFailed
from retinue.tasks.model import Task, TaskSpec, TaskStatus

DECODE: Final = msgspec.json.Decoder(Found).decode


@dataclass(frozen=True, slots=True)
class Ran:
    """A demonstration that is over: what was found, and the tasks that found it."""

    repository: Repository
    found: Found
    tasks: tuple[Task, ...]
    took: timedelta
    workers: int

    @property
    def failed(self) -> list[Task]:
        """The tasks that did not complete."""
        return [task for task in self.tasks if task.status is not TaskStatus.COMPLETED]

    @property
    def work(self) -> timedelta:
        """How long all tasks ran, added up."""
        spans = [
            attempt.ended_at - attempt.started_at
            for task in self.tasks
            for attempt in task.attempts
            if attempt.ended_at is not None and attempt.started_at is not None
        ]
        return sum(spans, timedelta())


class Watcher:
    """Is told how far it is. This one says nothing."""

    def planned(self, stages: Mapping[str, int]) -> None:
        """How many tasks each stage has."""

    def started(self, stage: str, name: str) -> None:
        """A task runs."""

    def ended(self, stage: str, task: Task) -> None:
        """A task has ended, however."""


async def run(
    fleet: Fleet,
    repository: Repository,
    folder: Path,
    clock: Clock,
    watcher: Watcher,
    *,
    requires: Sequence[str] = (),
) -> Ran:
    """Look at a repository with the workers of an open fleet. The tasks end with this client, should it go away.

    `folder` takes what tasks share meanwhile; `requires` is what a node must have to run them.

    Raises:
        TaskFailed: there is no report, as its task did not complete.
    """
    begun = clock.monotonic()
    shared = Path(tempfile.mkdtemp(prefix="parts-", dir=folder))
    try:
        Folder(shared).list_files(list(repository.chosen))
        steps = list(plan(repository, clock.now()))
        watcher.planned({stage: sum(step.stage == stage for step in steps) for stage in STAGES})
        last = await fleet.transport.call("GET", "/events/last", dict)
        ids = await _submit(fleet, steps, Setting(_repo(repository, shared), str(shared), list(requires)))
        tasks = await _follow(fleet, {task_id: step for step, task_id in ids}, int(last["position"]), watcher)
        found = await _read(fleet, tasks[-1])
    finally:
        shutil.rmtree(shared, ignore_errors=True)
    found.missing = [task.name or task.id for task in tasks if task.status is not TaskStatus.COMPLETED]
    workers = sum(node.workers for node in await fleet.nodes.list())
    return Ran(repository, found, tuple(tasks), timedelta(seconds=clock.monotonic() - begun), workers)


async def _submit(fleet: Fleet, steps: list[Step], setting: Setting) -> list[tuple[Step, str]]:
    """Submit all steps, wave by wave: those whose parents have ids go together."""
    session = (await fleet.session()).id
    ids: dict[str, str] = {}
    left = list(steps)
    while left:
        wave = [step for step in left if all(name in ids for name in step.after)]
        specs: list[TaskSpec] = [spec(step, setting, ids, session) for step in wave]
        made = await fleet.tasks.submit_many(specs)
        ids |= {step.name: task_id for step, task_id in zip(wave, made, strict=True)}
        left = [step for step in left if step.name not in ids]
    return [(step, ids[step.name]) for step in steps]


async def _follow(fleet: Fleet, steps: Mapping[str, Step], since: int, watcher: Watcher) -> list[Task]:
    """All tasks once they have ended, in the order of the plan. Events up to `since` are of earlier ones."""

    async def starts() -> None:
        async for event in fleet.events.stream(after=since, types=["task.started"]):
            step = steps.get(event.correlation_id)
            if step is not None:
                watcher.started(step.stage, step.name)

    async def end(task_id: str, step: Step) -> Task:
        task = await fleet.tasks.wait(task_id)
        watcher.ended(step.stage, task)
        return task

    starting = asyncio.get_running_loop().create_task(starts())
    try:
        return list(await asyncio.gather(*(end(task_id, step) for task_id, step in steps.items())))
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def _read(fleet: Fleet, report: Task) -> Found:
    """What the last task printed."""
    pieces = [piece async for piece in fleet.tasks.log(report.id)]
    if report.status is not TaskStatus.COMPLETED:
        said = b"".join(piece.base64 for piece in pieces).decode(errors="replace").strip()
        raise TaskFailed(f"There is no report: {said or report.error or report.status}", task=report.id)
    return DECODE(b"".join(piece.base64 for piece in pieces if piece.stream == "stdout"))


def _repo(repository: Repository, shared: Path) -> str:
    """The repository's path as a task may have it, which is text: a path that is none gets a link that is."""
    try:
        return repository.path.decode()
    except UnicodeDecodeError:
        link = shared / "repository"
        os.symlink(repository.path, os.fsencode(link))
        return str(link)
