"""`kill -9` and SIGSTOP of real fleets under load: nothing acknowledged is lost, counts twice, or is left running."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import psutil
import pytest

from fault import incarnation
from fault.incarnation import MARK, TIMING, lines
from retinue.clock import SystemClock
from retinue.events.store import broken_links
from retinue.storage.database import Connection, Engine
from retinue.storage.sql import Statement
from retinue.storage.sqlite import ReadOnlySqlite
from retinue.tasks import history
from retinue.tasks.model import MOST_LOSSES, TERMINAL
from retinue.teams import store as teams

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(120)]

T = TypeVar("T")
STORES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
TASKS = Statement("SELECT id, status, code, spec FROM tasks")
COMPLETED = Statement("SELECT task, COUNT(*) FROM attempts WHERE status = 'completed' GROUP BY task")
ATTEMPTS = Statement("SELECT task, fence, status FROM attempts ORDER BY task, fence")


@dataclass
class Stage:
    """Where fleets live and die: a folder, a store, and the processes started so far."""

    folder: Path
    store_url: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, verb: str, node: str = "lab", *, wait: bool = True) -> subprocess.Popen[str]:
        argv = [sys.executable, incarnation.__file__, verb, str(self.folder), node, self.store_url]
        with (self.folder / "stderr").open("a") as errors:
            child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)
        self.started.append(child)
        if wait:
            assert child.stdout is not None
            assert child.stdout.readline() == "up\n", self.errors()
        return child

    def finish(self) -> None:
        """A calm life that sees everything end, and ends itself."""
        child = self.start("finish")
        assert child.wait(60) == 0, self.errors()

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()[-4000:]

    @property
    def acknowledged(self) -> list[str]:
        """Task ids by their number."""
        return [line.split()[1] for line in lines(self.folder / "acknowledged")]

    def starts(self, number: int) -> list[int]:
        """The fences under which a task was really started."""
        return [int(line) for line in lines(self.folder / "starts" / str(number))]

    def alive(self) -> list[str]:
        """Processes of tasks and guardians of this stage's fleets that still run."""
        mine = {str(child.pid) for child in self.started}
        found = []
        for one in psutil.process_iter():
            try:
                if one.status() == psutil.STATUS_ZOMBIE:
                    continue
                argv = one.cmdline()
                guards = len(argv) > 4 and argv[3].endswith("guardian.py") and argv[4] in mine
                if guards or one.environ().get(MARK) == self.folder.name:
                    found.append(f"{one.pid} {' '.join(argv)}")
            except psutil.Error:
                continue
        return found

    def open(self) -> Engine:
        if self.store_url:
            from retinue.storage.postgres import Postgres

            return Postgres(self.store_url, SystemClock())
        return ReadOnlySqlite(self.folder / "data-lab" / "retinue.db", SystemClock())  # also while a fleet uses it

    def look(self, work: Callable[[Connection], T]) -> T:
        async def looking() -> T:
            engine = self.open()
            try:
                return await engine.read(work)
            finally:
                await engine.close()

        return asyncio.run(looking())

    def orphaned(self) -> int:
        """How many attempts were taken away from their node, by now."""
        return self.look(lambda connection: sum(1 for *_, how in connection.rows(ATTEMPTS) if how == "orphaned"))


@dataclass
class Evidence:
    """What the store says when all is over."""

    tasks: dict[str, tuple[str, str | None]]
    numbers: dict[str, int]
    completed: dict[str, int]
    attempts: dict[str, list[tuple[int, str]]]
    wrong: list[str]
    broken: list[int]

    @classmethod
    def of(cls, connection: Connection) -> "Evidence":
        (team,) = teams.names(connection)
        rows = connection.rows(TASKS)
        attempts: dict[str, list[tuple[int, str]]] = {}
        for task, fence, status in connection.rows(ATTEMPTS):
            attempts.setdefault(task, []).append((fence, status))
        return cls(
            tasks={row[0]: (row[1], row[2]) for row in rows},
            numbers={row[0]: int(json.loads(row[3])["name"].removeprefix("n")) for row in rows},
            completed=dict(connection.rows(COMPLETED)),  # type: ignore[arg-type]
            attempts=attempts,
            wrong=history.compare(connection, team),
            broken=broken_links(connection, team),
        )


@contextmanager
def staged(folder: Path, store_url: str) -> Iterator[Stage]:
    """A stage on which nobody is left afterwards."""
    folder.mkdir()
    made = Stage(folder, store_url)
    try:
        yield made
    finally:
        for child in made.started:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


@pytest.fixture(params=STORES)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    with staged(tmp_path / f"stage-{uuid.uuid4().hex}", url) as made:
        yield made


def until(true: Callable[[], Any], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (holds := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds)


def check(stage: Stage) -> Evidence:
    """Everything that holds however often fleets were killed."""
    found = stage.look(Evidence.of)
    acknowledged = stage.acknowledged
    assert [task for task in acknowledged if task not in found.tasks] == []
    assert len(set(acknowledged)) == len(acknowledged)
    assert Counter(found.numbers.values()).most_common(1)[0][1] == 1  # one task a key
    assert {status for status, _ in found.tasks.values()} <= TERMINAL
    assert [task for task, times in found.completed.items() if times > 1] == []
    assert (found.wrong, found.broken) == ([], [])
    for task, number in found.numbers.items():
        starts, attempts = stage.starts(number), found.attempts.get(task, [])
        status, code = found.tasks[task]
        assert len(set(starts)) == len(starts), f"{task} was started twice under one fence: {starts}"
        if number % 4 == 0:
            assert len(starts) <= 1 + attempts_that(attempts, "failed"), f"{task} was started again: {starts}"
        if status == "completed":
            (fence,) = [fence for fence, how in attempts if how == "completed"]
            assert fence in starts
            assert attempts[-1] == (fence, "completed")
        if code == "NODE_LOST":
            assert number % 4 == 0 or attempts_that(attempts, "orphaned") >= MOST_LOSSES
    return found


def attempts_that(attempts: list[tuple[int, str]], how: str) -> int:
    return sum(1 for _, status in attempts if status == how)


def test_kill_9_at_random_moments_loses_nothing_and_doubles_nothing(stage: Stage) -> None:
    random, kills = Random(9), 8 if stage.store_url else 18
    for number in range(kills):
        early = number % 4 == 3  # also while it starts, or settles what the last one left
        child = stage.start("work", wait=not early)
        time.sleep(random.uniform(0.1, 1.0) if early else random.uniform(0.0, 0.7))
        assert child.poll() is None, stage.errors()
        child.kill()
        child.wait()

    nothing_left = until(lambda: not stage.alive(), 10)
    stage.finish()
    found = check(stage)

    assert nothing_left
    assert until(lambda: not stage.alive(), 5)
    if not stage.store_url:
        with closing(sqlite3.connect(stage.folder / "data-lab" / "retinue.db")) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    orphaned = sum(lost(found, task) for task in found.tasks)
    print(f"{kills} kills, {len(stage.acknowledged)} tasks acknowledged, {orphaned} attempts lost with their node")
    assert len(stage.acknowledged) >= 5 * kills
    assert orphaned >= kills  # or the kills met nothing that ran


def test_a_fleet_that_was_stopped_for_longer_than_a_lease_goes_on_and_runs_nothing_twice(stage: Stage) -> None:
    child = stage.start("work")
    until(lambda: len(stage.acknowledged) > 10, 10)

    for _ in range(3):
        child.send_signal(signal.SIGSTOP)
        time.sleep(2.5 * TIMING.lease)
        before = len(stage.acknowledged)
        child.send_signal(signal.SIGCONT)
        assert until(lambda before=before: len(stage.acknowledged) > before + 5, 10), stage.errors()
    time.sleep(1.5 * TIMING.lease)
    orphaned = stage.orphaned()
    child.kill()
    child.wait()
    stage.finish()
    found = check(stage)

    print(f"{len(found.tasks)} tasks, {orphaned} attempts lost while stopped")
    assert orphaned == 0


@pytest.mark.postgres
def test_what_a_stopped_fleet_held_is_run_by_another_and_its_late_results_do_not_count(
    postgres_url: str, tmp_path: Path
) -> None:
    with staged(tmp_path / f"stage-{uuid.uuid4().hex}", postgres_url) as stage:
        first = stage.start("work")
        stage.start("idle", "other")
        until(lambda: len(stage.acknowledged) > 10, 10)
        for _ in range(3):
            first.send_signal(signal.SIGSTOP)
            time.sleep(3.5 * TIMING.lease)
            first.send_signal(signal.SIGCONT)
            time.sleep(1.0)
        first.kill()
        first.wait()
        stage.finish()
        found = check(stage)

    orphaned = [number for task, number in found.numbers.items() if lost(found, task)]
    finished_elsewhere = [number for number in orphaned if len(stage.starts(number)) > 1]
    print(f"{len(found.tasks)} tasks, {len(orphaned)} lost while stopped, {len(finished_elsewhere)} started again")
    assert len(finished_elsewhere) >= 3
    assert until(lambda: not stage.alive(), 10)


def lost(found: Evidence, task: str) -> int:
    """How many attempts of a task were orphaned."""
    return attempts_that(found.attempts.get(task, []), "orphaned")
