"""Tasks for tests: the real kinds of writes through a group commit on any engine, moving time, and what must hold."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random  # noqa: TID251 - seeded
from typing import Any, Final, NamedTuple

from retinue.clock import SystemClock
from retinue.events import store as events
from retinue.events.model import Event
from retinue.ids import Ids
from retinue.nodes.resources import Resources
from retinue.storage.database import Connection, Engine, Kind
from retinue.storage.group import GroupCommit
from retinue.storage.sql import Row, Statement
from retinue.tasks import admission, history, logs, losses, progress, prune, read, rows, steer, store
from retinue.tasks.model import Claim, Ending, Progress, Queue, Task, TaskSpec, TaskStatus, queue_of
from retinue.teams import store as teams

LEASE: Final = 15.0
# Every time in the store but those of events, which their links have sealed.
TIMES: Final = (
    ("tasks", ("created_at", "ready_at", "finished_at", "rank")),
    ("ready", ("rank",)),
    ("running", ("claimed_at", "started_at", "reap_at")),
    ("attempts", ("claimed_at", "started_at", "ended_at")),
    ("timers", ("due_at",)),
    ("sessions", ("lease_at",)),
    ("nodes", ("created_at", "seen_at")),
    ("links", ("at",)),
    ("logs", ("at",)),
    ("idempotency", ("at",)),
)
SHIFTS: Final = tuple(
    Statement(f"UPDATE {table} SET " + ", ".join(f"{column} = {column} - ?" for column in columns))  # noqa: S608
    for table, columns in TIMES
)
ROW: Final = Statement(
    "SELECT status, fence, failures, losses, waiting_on, attempt, code, error, exit_code FROM tasks WHERE id = ?"
)
DENIALS: Final = Statement("SELECT COALESCE(SUM(times), 0) FROM denials WHERE team = ?")


class Op(NamedTuple):
    """A write that somebody asks for."""

    kind: Kind[Any, Any]
    item: Any


class Kept(NamedTuple):
    """A task's row, as far as its rules go."""

    status: str
    fence: int
    failures: int
    losses: int
    waiting_on: int
    attempt: str | None
    code: str | None
    error: str | None
    exit_code: int | None


class Rig:
    """Everything that is done to tasks, on one engine. Several rigs on it are several coordinators."""

    def __init__(self, engine: Engine, ids: Ids | None = None) -> None:
        self.engine = engine
        self.hints: list[str] = []
        self.ids = ids or Ids(SystemClock(), Random(0))  # noqa: S311
        self.queues: dict[str, Queue] = {}
        self.team = ""
        self.other = ""
        self.groups = GroupCommit(engine, SystemClock(), Random(0), publish=self.hints.extend)  # noqa: S311

    async def begin(self) -> None:
        """Make two teams, or find those that are there."""
        self.team = await self.engine.write(lambda t: teams.ensure(t, "ours", self.ids.new("tea")))
        self.other = await self.engine.write(lambda t: teams.ensure(t, "theirs", self.ids.new("tea")))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Rig"]:
        """Commit while the block runs."""
        await self.begin()
        turns = [asyncio.create_task(self.groups.run()) for _ in range(getattr(self.engine, "writers", 1))]
        try:
            yield self
        finally:
            self.groups.close()
            await asyncio.gather(*turns)

    async def __call__(self, op: Op) -> Any:
        """The outcome of one write; its error is raised."""
        return await self.groups.submit(op.kind, op.item)

    async def all(self, *ops: Op) -> list[Any]:
        """The outcomes of writes that are asked for at once, so they form one group; an error stands for itself."""
        return await asyncio.gather(*(self.groups.submit(*op) for op in ops), return_exceptions=True)

    # -- what can be asked for -----------------------------------------------------------------------------------------

    def create(self, *, team: str = "", key: str | None = None, principal: str = "ann", **spec: Any) -> Op:
        """A submission; `true` unless the spec says something else."""
        wanted = TaskSpec(**({"command": ["true"]} | spec))
        queue = queue_of(team or self.team, wanted)
        self.queues[queue.id] = queue
        body = repr(wanted)
        return Op(
            admission.CREATE,
            admission.NewTask(
                self.ids.new("tsk"), team or self.team, wanted, queue, principal, key, body if key else ""
            ),
        )

    def claim(
        self,
        node: str = "a",
        workers: int = 1,
        *,
        queues: Iterable[Queue] | None = None,
        lease: float = LEASE,
        boot: str = "",
        after_team: str = "",
        **room: Any,
    ) -> Op:
        """A round for one node; its boot is its name unless it says another."""
        free = self.free(node, workers, boot, **room)
        return self.round([free], queues=queues, lease=lease, after_team=after_team)

    def free(self, node: str, workers: int, boot: str = "", **room: Any) -> store.Free:
        """Room on a node."""
        attempts = tuple(self.ids.new("att") for _ in range(workers))
        return store.Free(node, node, boot or node, attempts, Resources(**room))

    def round(
        self,
        free: Sequence[store.Free],
        *,
        queues: Iterable[Queue] | None = None,
        lease: float = LEASE,
        after_team: str = "",
    ) -> Op:
        """A round for several nodes at once."""
        lines = tuple(self.queues.values() if queues is None else queues)
        return Op(store.CLAIM, store.Round(tuple(free), lines, after_team, int(lease * rows.SECOND)))

    def start(self, claim: Claim) -> Op:
        return Op(store.START_KIND, (claim.task, claim.fence))

    def renew(self, node: str, *claims: Claim, boot: str = "", lease: float = LEASE) -> Op:
        """A node's renewal of what it holds."""
        holds = tuple((claim.task, claim.fence) for claim in claims)
        return Op(store.RENEW_KIND, store.Renewal(node, boot or node, holds, int(lease * rows.SECOND)))

    def finish(self, claim: Claim, *, chance: float = 0.0, **ending: Any) -> Op:
        """A report; a good one unless it says `ok=False`."""
        said = Ending(**({"ok": True} | ending))
        return Op(store.FINISH, store.Finish(claim.task, claim.fence, said, said.digest(), chance))

    def fail(self, claim: Claim, **ending: Any) -> Op:
        said: dict[str, Any] = {"ok": False, "exit_code": 1, "error": "no"} | ending
        return self.finish(claim, **said)

    def release(self, claim: Claim) -> Op:
        return Op(losses.RELEASE, (claim.task, claim.fence))

    def progress(self, claim: Claim, stage: str = "half") -> Op:
        return Op(progress.PROGRESS, (claim.task, claim.fence, Progress(stage=stage)))

    def log(self, claim: Claim, start: int = 0, data: bytes = b"line\n", digest: str | None = None) -> Op:
        kept = None if digest else data
        return Op(
            logs.KEEP_LOG,
            logs.Segment(claim.task, claim.fence, claim.attempt, "stdout", start, len(data), digest, kept),
        )

    def reap(self, most: int = 500) -> Op:
        return Op(losses.REAP_KIND, most)

    def hello(self, node: str, *claims: Claim, boot: str = "") -> Op:
        """A node says what it holds; the rest of that boot's is given back."""
        holds = tuple((claim.task, claim.fence) for claim in claims)
        return Op(losses.HELLO, losses.Presence(node, boot or node, holds))

    def cancel(self, task: str, team: str = "") -> Op:
        return Op(steer.CANCEL, steer.Steer(task, team or self.team, "ann"))

    def retry(self, task: str, team: str = "") -> Op:
        return Op(steer.RETRY, steer.Steer(task, team or self.team, "ann"))

    def due(self, most: int = 500) -> Op:
        """What is due, at most so much."""
        return Op(steer.DUE_KIND, most)

    def open_session(self, session: str, boot: str = "c1", lease: float = LEASE) -> Op:
        return Op(steer.OPEN_SESSION, steer.Session(session, self.team, boot, int(lease * rows.SECOND)))

    def keep_session(self, session: str, lease: float = LEASE) -> Op:
        return Op(steer.KEEP_SESSION, (session, self.team, int(lease * rows.SECOND)))

    def close_session(self, session: str) -> Op:
        return Op(steer.CLOSE_SESSION, (session, self.team, "it said good-bye"))

    def lapse(self, boot: str | None = None) -> Op:
        """Sessions that were not kept; with a boot, those of other boots too."""
        return Op(steer.LAPSE_SESSIONS, boot)

    def prune(self, **keep: float) -> Op:
        """What is past its retention, in seconds."""
        return Op(prune.PRUNE, prune.Retention(**keep))

    # -- what happens often --------------------------------------------------------------------------------------------

    async def created(self, **spec: Any) -> str:
        """The id of a new task."""
        task: str = await self(self.create(**spec))
        return task

    async def claimed(self, node: str = "a", workers: int = 1, **more: Any) -> list[Claim]:
        """What one round gives a node."""
        dealt: store.Dealt = await self(self.claim(node, workers, **more))
        return dealt.claims

    async def held(self, node: str = "a", lease: float = LEASE, **spec: Any) -> Claim:
        """A new task that runs on the node."""
        claim = await self.claimed_alone(node, lease=lease, **spec)
        await self(self.start(claim))
        return claim

    async def claimed_alone(self, node: str = "a", lease: float = LEASE, **spec: Any) -> Claim:
        """A new task that is claimed for the node and not started."""
        alone = {"labels": {"alone": self.ids.new("tsk")}} | spec
        op = self.create(**alone)
        await self(op)
        [claim] = await self.claimed(node, queues=[op.item.queue], lease=lease)
        return claim

    async def ended(self, **spec: Any) -> str:
        """A new task that has completed."""
        claim = await self.held(**spec)
        await self(self.finish(claim))
        return claim.task

    async def again(self, claim: Claim, node: str = "a", **more: Any) -> Claim:
        """The next claim of a task that somebody held before."""
        [next_one] = await self.claimed(node, queues=[self.queues[claim.queue]], **more)
        assert next_one.task == claim.task  # noqa: S101 - a claim about the test
        return next_one

    # -- what there is -------------------------------------------------------------------------------------------------

    async def read(self, look: Callable[[Connection], Any]) -> Any:
        return await self.engine.read(look)

    async def kept(self, task: str) -> Kept:
        """A task's row."""
        rows: list[Row] = await self.read(lambda connection: connection.rows(ROW, task))
        return Kept(*rows[0])

    async def task(self, task: str) -> Task:
        """A task's document."""
        document: Task = await self.read(lambda connection: read.task(connection, self.team, task))
        return document

    async def status(self, task: str) -> TaskStatus:
        """Where a task is, as its document says it."""
        return (await self.task(task)).status

    async def statuses(self, *tasks: str) -> list[TaskStatus]:
        """Where tasks are."""
        return [await self.status(task) for task in tasks]

    async def feed(self, *tasks: str) -> list[Event]:
        """The team's events, of these tasks if any are named."""
        found: list[Event] = await self.read(lambda c: events.page(c, self.team, events.start(c, self.team), 100_000))
        return [event for event in found if not tasks or event.correlation_id in tasks]

    async def story(self, *tasks: str) -> list[str]:
        """The types of these tasks' events."""
        return [event.type.removeprefix("task.") for event in await self.feed(*tasks)]

    async def denials(self) -> int:
        """How many stale writes were refused so far."""
        rows: list[Row] = await self.read(lambda connection: connection.rows(DENIALS, self.team))
        return int(rows[0][0])

    async def disorder(self) -> list[str]:
        """What must hold and does not."""
        found: list[str] = await self.read(disorder)
        return found

    async def pass_time(self, seconds: float) -> None:
        """Let the store's time pass at once, by moving everything that is in it back."""
        by = int(seconds * rows.SECOND)

        def shift(transaction: Any) -> None:
            for statement, (_, columns) in zip(SHIFTS, TIMES, strict=True):
                transaction.run(statement, *[by] * len(columns))

        await self.engine.write(shift)


# -- what must hold in every committed state ---------------------------------------------------------------------------

PLACES: Final = Statement(
    "SELECT tasks.id, tasks.team, tasks.status, tasks.queue, tasks.rank, tasks.fence, tasks.waiting_on,"
    " tasks.ready_at, tasks.finished_at, ready.queue, ready.rank, ready.fence, running.fence, running.team,"
    " running.status, running.started_at FROM tasks LEFT JOIN ready ON ready.id = tasks.id"
    " LEFT JOIN running ON running.id = tasks.id ORDER BY tasks.id"
)
STRAYS: Final = {
    "a ready row has no task": Statement(
        "SELECT id FROM ready WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = ready.id)"
    ),
    "a running row has no task": Statement(
        "SELECT id FROM running WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = running.id)"
    ),
    "a ready row's queue is not known": Statement(
        "SELECT id FROM ready WHERE NOT EXISTS (SELECT 1 FROM queues WHERE queues.id = ready.queue)"
    ),
    "an attempt has no task": Statement(
        "SELECT task FROM attempts WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = attempts.task)"
    ),
    "an attempt is ahead of its task's fence": Statement(
        "SELECT attempts.id FROM attempts JOIN tasks ON tasks.id = attempts.task WHERE attempts.fence > tasks.fence"
    ),
    "progress has no task": Statement(
        "SELECT task FROM progress WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = progress.task)"
    ),
    "a task is in two places of the ready table": Statement("SELECT id FROM ready GROUP BY id HAVING COUNT(*) > 1"),
}
UNFINISHED: Final = Statement(
    "SELECT edges.child, COUNT(*) FROM edges JOIN tasks ON tasks.id = edges.parent"
    " WHERE tasks.finished_at IS NULL GROUP BY edges.child"
)
TIMERS: Final = Statement("SELECT task, due_at FROM timers WHERE kind = 'ready'")
COUNTS: Final = Statement("SELECT team, status, tasks FROM counts WHERE tasks <> 0 ORDER BY team, status")
RECOUNT: Final = Statement(
    "SELECT tasks.team, COALESCE(running.status, tasks.status) AS place, COUNT(*) FROM tasks"
    " LEFT JOIN running ON running.id = tasks.id GROUP BY 1, 2 ORDER BY 1, 2"
)


def disorder(
    connection: Connection, histories: dict[str, history.History] | None = None, *, links: bool = True
) -> list[str]:
    """What must hold of tasks, events and counts and does not, a sentence each; none when all is well.

    With `histories`, which are kept from call to call, only what is new in the feeds is replayed.
    """
    unfinished: dict[str, int] = dict(connection.rows(UNFINISHED))
    timers = set(connection.rows(TIMERS))
    wrong = [f"{what}: {row[0]}" for what, query in STRAYS.items() for row in connection.rows(query)]
    for row in connection.rows(PLACES):
        wrong += [f"{row[0]} is {row[2]} and {what}" for what in _misplaced(row, unfinished.get(row[0], 0), timers)]
    counted, recounted = connection.rows(COUNTS), connection.rows(RECOUNT)
    if counted != recounted:
        wrong.append(f"counted {counted}, but there are {recounted}")
    kept = {} if histories is None else histories
    for team in teams.names(connection):
        if links:
            wrong += [f"the link at {at} of {team} is broken" for at in events.broken_links(connection, team)]
        try:
            if team not in kept:
                kept[team] = history.replay(connection, team)
            wrong += history.compare(connection, team, kept[team])
        except history.IllegalMove as error:
            wrong.append(str(error))
    return wrong


def _misplaced(row: Row, unfinished: int, timers: set[Row]) -> list[str]:
    (task, team, status, queue, rank, fence, waiting_on, ready_at, finished_at,
     ready_queue, ready_rank, ready_fence, held_fence, held_team, held_status, started_at) = row  # fmt: skip
    wrong = []
    held, ready = held_fence is not None, ready_queue is not None
    if held and (status != "pending" or ready):
        wrong.append("held, which only a task that waited and waits no more may be")
    if held and (held_team != team or held_fence <= fence):
        wrong.append(f"held for {held_team} under fence {held_fence}, its own being {fence}")
    if held and (held_status == "running") != (started_at is not None):
        wrong.append(f"held as {held_status}, started at {started_at}")
    if not held and ready != (status == "pending"):
        wrong.append(f"{'in' if ready else 'not in'} the line")
    if ready and (ready_queue, ready_rank, ready_fence) != (queue, rank, fence):
        wrong.append(f"in the line at {(ready_queue, ready_rank, ready_fence)}, not at {(queue, rank, fence)}")
    if status == "scheduled" and (task, ready_at) not in timers:
        wrong.append("no timer will wake it")
    if status == "blocked" and not waiting_on == unfinished > 0:
        wrong.append(f"waits for {waiting_on} of {unfinished} unfinished parents")
    if (finished_at is None) != (status not in ("completed", "failed", "cancelled")):
        wrong.append(f"finished at {finished_at}")
    return wrong
