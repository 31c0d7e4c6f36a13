"""The verbs of tasks: what people do (submit, look, cancel, retry) and what holders do (start, renew, log, finish).

Every verb is one write in a group, answered after its commit, and may be asked again without harm.
"""

import asyncio
import builtins
import hashlib
import hmac
from collections.abc import Callable, Sequence
from random import Random  # noqa: TID251 - the type of the port
from typing import Any, Final

import msgspec

from retinue.errors import Invalid, NotFound, RetinueError, StaleClaim
from retinue.ids import Ids
from retinue.nodes.model import Offer
from retinue.storage.database import Connection
from retinue.storage.group import GroupCommit
from retinue.tasks import admission, logs, losses, progress, read, rows, steer, store
from retinue.tasks.model import (
    WAITING,
    Ending,
    Hold,
    Progress,
    Queue,
    Reason,
    Task,
    TaskSpec,
    TaskStatus,
    check,
    claim_token,
    queue_of,
    storable,
    waiting_because,
)

BEFORE_ALL: Final = "tsk_~"  # sorts after every task's id


class TaskService:
    """Tasks of all teams; every verb names the team it acts for."""

    def __init__(
        self,
        database: GroupCommit,
        ids: Ids,
        random: Random,
        key: bytes,
        *,
        arriving: Callable[[Queue], None] = lambda queue: None,
        offers: Callable[[], Sequence[Offer]] = tuple,
        stopped: Callable[[Sequence[steer.Stopped]], None] = lambda stopped: None,
    ) -> None:
        """`arriving` is told of a queue as a task for it is written, so that a free worker's claim rides in the same
        commit; `offers` says which nodes are connected; `stopped` passes on which attempts have to end."""
        self._database = database
        self._ids = ids
        self._random = random
        self._key = key
        self._arriving = arriving
        self._offers = offers
        self._stopped = stopped

    # -- people --------------------------------------------------------------------------------------------------------

    async def submit(self, team: str, principal: str, spec: TaskSpec, *, key: str | None = None) -> str:
        """The id of the new task, or of the one that the same key and body made before.

        Raises:
            Invalid, NotSupported: the spec cannot be taken. NotFound: a parent or the session does not exist.
            IdempotencyConflict: the key was used with another body. ParentCancelled, TooManyQueues.
        """
        return await self._create(team, principal, spec, key)

    async def submit_many(self, team: str, principal: str, specs: Sequence[TaskSpec]) -> list[str | BaseException]:
        """An id or an error for each, in order; all that can be are made in as few commits as possible."""
        writes = [self._create(team, principal, spec, None) for spec in specs]
        return list(await asyncio.gather(*writes, return_exceptions=True))

    def _create(self, team: str, principal: str, spec: TaskSpec, key: str | None) -> "asyncio.Future[str]":
        try:
            queue = queue_of(team, check(spec))
            if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
                raise Invalid.field("Idempotency-Key", "1 to 255 printable characters")
        except RetinueError as error:
            return _refused(error)
        body = hashlib.blake2b(msgspec.json.encode(spec), digest_size=16).hexdigest() if key is not None else ""
        new = admission.NewTask(self._ids.new("tsk"), team, spec, queue, principal, key, body)
        written = self._database.submit(admission.CREATE, new)
        self._arriving(queue)
        return written

    async def get(self, team: str, task_id: str) -> Task:
        """The task's document, with its attempts and, while it waits, why.

        Raises:
            NotFound: there is none in this team.
        """

        def look(connection: Connection) -> tuple[Task | None, list[str], dict[str, int]]:
            found = read.task(connection, team, task_id)
            parents = (
                read.unfinished_parents(connection, task_id) if found and found.status == TaskStatus.BLOCKED else []
            )
            return found, parents, read.busy(connection) if found and found.status == TaskStatus.PENDING else {}

        task, parents, busy = await self._database.read(look)
        if task is None:
            raise NotFound(id=task_id)
        if task.status not in WAITING:
            return task
        return msgspec.structs.replace(task, waiting_because=self._why(team, task, parents, busy))

    def _why(self, team: str, task: Task, parents: list[str], busy: dict[str, int]) -> Reason | None:
        spec = TaskSpec(
            command=task.command,
            function=task.function,
            labels=task.labels,
            requires=task.requires,
            node=task.node,
            resources=task.resources,
        )
        queue = queue_of(team, spec)
        offers = list(self._offers())
        able = {offer.node for offer in offers if queue.served_by(offer)}
        return waiting_because(
            task.status,
            queue,
            offers,
            unfinished=parents,
            ready_at=task.ready_at,
            backing_off=bool(task.attempts),
            busy=sum(held for node, held in busy.items() if node in able),
        )

    async def get_many(self, team: str, task_ids: Sequence[str]) -> "builtins.list[Task]":
        """The documents of those of these tasks that exist in this team, in no order, without why they wait."""
        return await self._database.read(lambda connection: read.many(connection, team, task_ids))

    async def list(
        self, team: str, *, status: TaskStatus | None = None, before: str | None = None, limit: int = 50
    ) -> "builtins.list[Task]":
        """A page of tasks, newest first, from before this id on."""
        return await self._database.read(
            lambda connection: read.tasks(connection, team, status=status, before=before or BEFORE_ALL, limit=limit)
        )

    async def counts(self, team: str) -> dict[str, int]:
        """How many tasks are in each status."""
        return await self._database.read(lambda connection: read.counts(connection, team))

    async def cancel(self, team: str, actor: str, task_id: str, reason: str = "cancelled by request") -> None:
        """Cancel a task and all below it; once this returns no result of theirs is accepted. Repeating it is fine.

        Raises:
            NotFound: there is none in this team. TaskFinal: it has completed or failed.
        """
        stopped = await self._database.submit(steer.CANCEL, steer.Steer(task_id, team, actor, reason))
        self._stopped(stopped)

    async def retry(self, team: str, actor: str, task_id: str) -> None:
        """Run a task that has ended once more, with fresh allowances.

        Raises:
            NotFound: there is none in this team. TaskNotFinal: it has not ended.
        """
        await self._database.submit(steer.RETRY, steer.Steer(task_id, team, actor))

    # -- sessions of foreground clients --------------------------------------------------------------------------------

    async def open_session(self, team: str, boot: str, lease: float) -> str:
        """The id of a new session; tasks tied to it are cancelled when it ends or is not kept for `lease` seconds."""
        session = self._ids.new("ses")
        await self._database.submit(steer.OPEN_SESSION, steer.Session(session, team, boot, int(lease * rows.SECOND)))
        return session

    async def keep_session(self, team: str, session: str, lease: float) -> bool:
        """Renew it; False when it had ended."""
        return await self._database.submit(steer.KEEP_SESSION, (session, team, int(lease * rows.SECOND)))

    async def close_session(self, team: str, session: str, reason: str) -> None:
        """End it; what is still open of its tasks is cancelled."""
        stopped = await self._database.submit(steer.CLOSE_SESSION, (session, team, reason))
        self._stopped(stopped)

    # -- holders -------------------------------------------------------------------------------------------------------

    def token(self, task: str, fence: int, boot: str) -> str:
        """The claim token that goes with a fence."""
        return claim_token(self._key, task, fence, boot)

    def verify(self, hold: Hold, boot: str) -> None:
        """Check the unguessable half of a hold.

        Raises:
            StaleClaim: this boot was never given this fence.
        """
        if not hmac.compare_digest(hold.claim_token, claim_token(self._key, hold.task, hold.fence, boot)):
            raise StaleClaim(task=hold.task, fence=hold.fence)

    async def start(self, hold: Hold, boot: str) -> None:
        """The attempt runs from now on, and counts.

        Raises:
            StaleClaim: the claim is lost; stop the attempt.
        """
        self.verify(hold, boot)
        await self._database.submit(store.START_KIND, (hold.task, hold.fence))

    def finish(self, hold: Hold, boot: str, ending: Ending) -> "asyncio.Future[TaskStatus]":
        """Report at once how the attempt ended; the future answers after the commit. The same report again gets the
        same answer.

        Raises:
            StaleClaim: (in the future) the claim was lost before; the report has no effect.
        """
        try:
            self.verify(hold, boot)
        except StaleClaim as error:
            return _refused(error)
        if ending.error is not None:
            ending = msgspec.structs.replace(ending, error=storable(ending.error))
        report = store.Finish(hold.task, hold.fence, ending, ending.digest(), self._random.random())
        return self._database.submit(store.FINISH, report)

    async def release(self, hold: Hold, boot: str) -> None:
        """Hand a claim back.

        Raises:
            StaleClaim: it was lost before.
        """
        self.verify(hold, boot)
        await self._database.submit(losses.RELEASE, (hold.task, hold.fence))

    async def progress(self, hold: Hold, boot: str, value: Progress) -> None:
        """Note how far the attempt is; a change of stage is an event.

        Raises:
            StaleClaim: the claim is lost; stop the attempt.
        """
        self.verify(hold, boot)
        await self._database.submit(progress.PROGRESS, (hold.task, hold.fence, value))

    async def keep_log(self, segment: logs.Segment) -> int:
        """Keep a segment of output; how far its stream is kept now.

        Raises:
            StaleClaim: the claim is lost.
        """
        return await self._database.submit(logs.KEEP_LOG, segment)


def _refused(error: RetinueError) -> "asyncio.Future[Any]":
    refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    refused.set_exception(error)
    return refused
