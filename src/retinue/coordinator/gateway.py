"""The gateway: admits nodes and serves their links. What a frame changes is committed first, then answered."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial

from retinue.client.frames import (
    VERSION,
    Bye,
    Credit,
    Done,
    DoneAck,
    Frame,
    Hello,
    Input,
    Log,
    Ping,
    ProgressFrame,
    Refused,
    Release,
    Renew,
    Renewed,
    Report,
    Started,
    WantInput,
    Welcome,
)
from retinue.client.link import Link
from retinue.coordinator.dispatcher import Dispatcher
from retinue.coordinator.logs import LogHub
from retinue.coordinator.session import NodeSession
from retinue.coordinator.stdin import StdinHub
from retinue.errors import LinkClosed, RetinueError, StaleClaim, Unavailable
from retinue.ids import Ids
from retinue.nodes.model import Offer, Registration
from retinue.nodes.resources import Resources
from retinue.nodes.store import LEAVES, REGISTER
from retinue.storage.group import GroupCommit
from retinue.tasks import read
from retinue.tasks.logs import KEEP_LOG
from retinue.tasks.losses import HELLO, Presence
from retinue.tasks.model import Hold
from retinue.tasks.service import TaskService
from retinue.tasks.steer import Stopped
from retinue.tasks.store import RENEW_KIND, Renewal

log = logging.getLogger(__name__)


class Gateway:
    """Admits nodes and does what their frames ask."""

    def __init__(
        self,
        tasks: TaskService,
        database: GroupCommit,
        dispatcher: Dispatcher,
        logs: LogHub,
        stdin: StdinHub,
        ids: Ids,
        *,
        lease: float,
        heartbeat: float,
        ordered: bool,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        """`lease` and `heartbeat` in seconds; `ordered` says whether what is submitted first is committed first, which
        several writers do not keep; `spawn` runs a coroutine in the background."""
        self._tasks = tasks
        self._database = database
        self._dispatcher = dispatcher
        self._logs = logs
        self._stdin = stdin
        self._ids = ids
        self._lease = lease
        self._heartbeat = heartbeat
        self._ordered = ordered
        self._spawn = spawn

    async def serve(self, link: Link, team: str) -> None:
        """Serve a node of this team until its link closes."""
        session: NodeSession | None = None
        try:
            hello = await link.receive()
            if not isinstance(hello, Hello):
                link.send(Refused("INVALID", "The first frame of a link is hello."))
                return
            session = await self._admit(link, team, hello)
            if session is None:
                return
            while True:
                self._take(session, await link.receive())
        except LinkClosed:
            pass
        except Unavailable as error:  # the store is away: the node dials again
            link.send(Refused(error.code, error.message))
        finally:
            if session is not None:
                self._dispatcher.detach(session)
            link.close()

    async def _admit(self, link: Link, team: str, hello: Hello) -> NodeSession | None:
        """Register the node, settle what it holds, welcome it; None when it is refused."""
        if VERSION not in hello.versions:
            link.send(Refused("VERSION", f"This coordinator speaks link version {VERSION}; update the older side."))
            return None
        new = Registration(
            self._ids.new("nod"), team, hello.node, hello.boot_id, hello.workers, hello.labels,
            tuple(hello.capabilities), hello.resources,
        )  # fmt: skip
        try:
            node = await self._database.submit(REGISTER, (new, int(self._lease * 1_000_000)))
        except Unavailable:
            raise
        except RetinueError as error:
            link.send(Refused(error.code, error.message))
            return None
        old = self._dispatcher.session(node)
        if old is not None:  # the same boot on a new connection
            self._dispatcher.detach(old)
            old.link.close()
        proven, forged = self._proven(hello.holds, hello.boot_id)
        holds = tuple((hold.task, hold.fence) for hold in proven)
        gone = await self._database.submit(HELLO, Presence(node, hello.boot_id, holds, self._dispatcher.unsent(node)))
        lost = [*forged, *(hold for hold in proven if (hold.task, hold.fence) in gone)]
        offer = Offer(
            node,
            hello.node,
            team,
            hello.boot_id,
            hello.workers,
            hello.labels,
            frozenset(hello.capabilities),
            hello.resources,
        )
        session = NodeSession(link, offer)
        # What it holds takes of its resources: lost attempts too, until the node says that they ended.
        held = sorted({hold.task for hold in hello.holds})
        known = await self._database.read(lambda connection: read.many(connection, team, held)) if held else []
        costs = {task.id: task.resources for task in known}
        for hold in hello.holds:
            session.took(hold, costs.get(hold.task, Resources()))
        for hold in lost:
            session.lost(hold)
        self._dispatcher.attach(session)
        link.send(Welcome(VERSION, self._lease, self._heartbeat, node, lost))
        return session

    def _proven(self, holds: Sequence[Hold], boot: str) -> tuple[list[Hold], list[Hold]]:
        """The holds whose tokens are right, and those whose are not."""
        proven: list[Hold] = []
        forged: list[Hold] = []
        for hold in holds:
            try:
                self._tasks.verify(hold, boot)
                proven.append(hold)
            except StaleClaim:
                forged.append(hold)
        return proven, forged

    def _take(self, session: NodeSession, frame: Frame) -> None:
        """Act on a frame at once; whatever has to be waited for goes on in the background, in order of submission."""
        boot = session.offer.boot
        if isinstance(frame, Credit):
            session.credit(frame.slots, frame.seen)
            self._dispatcher.freed(session)
        elif isinstance(frame, Started):
            for hold in frame.holds:
                self._start(session, hold)
        elif isinstance(frame, Done):
            self._spawn(self._done(session, frame.reports))
        elif isinstance(frame, Renew):
            self._spawn(self._renew(session, frame.holds))
        elif isinstance(frame, Log):
            self._log(session, frame)
        elif isinstance(frame, ProgressFrame):
            self._spawn(self._or_cancel(session, frame.hold, self._tasks.progress(frame.hold, boot, frame.progress)))
        elif isinstance(frame, Release):
            for hold in frame.holds:
                session.gave_back(hold)
                if not session.was_stopped(hold):
                    self._spawn(self._quietly(self._tasks.release(hold, boot)))
        elif isinstance(frame, WantInput):
            self._want_input(session, frame)
        elif isinstance(frame, Bye):
            self._spawn(self._bye(session))
        elif isinstance(frame, Ping):
            session.link.send(Ping())

    def _start(self, session: NodeSession, hold: Hold) -> None:
        task = self._spawn(self._or_cancel(session, hold, self._started(session, hold)))
        session.starting[hold.task, hold.fence] = task
        task.add_done_callback(lambda _: session.starting.pop((hold.task, hold.fence), None))

    async def _started(self, session: NodeSession, hold: Hold) -> None:
        """An attempt counts from its start, so that is not said once only: again with the next renewal, or its end."""
        session.unstarted.pop((hold.task, hold.fence), None)
        try:
            await self._tasks.start(hold, session.offer.boot)
        except Unavailable:
            session.unstarted[hold.task, hold.fence] = hold
            raise

    def _start_again(self, session: NodeSession, holds: Iterable[Hold]) -> None:
        for hold in holds:
            if (hold.task, hold.fence) in session.unstarted:
                self._start(session, hold)

    async def _or_cancel(self, session: NodeSession, hold: Hold, verb: Coroutine[None, None, None]) -> None:
        """Do what a holder asks; a stale one is told to stop."""
        try:
            await verb
        except StaleClaim:
            session.stop([hold])
        except RetinueError as error:
            log.info("a frame of node %s was not taken: %s", session.offer.name, error)

    async def _quietly(self, verb: Coroutine[None, None, None]) -> None:
        try:
            await verb
        except RetinueError:
            pass  # stale, or the store is away: the lease ends by itself

    async def _done(self, session: NodeSession, reports: Sequence[Report]) -> None:
        """Accept results. What the store cannot take now is not answered: the node sends it again."""
        for report in reports:
            session.gave_back(report.hold)
        self._start_again(session, [report.hold for report in reports])
        finished = await asyncio.gather(*(self._finish(session, r) for r in reports), return_exceptions=True)
        accepted: list[str] = []
        stale: list[str] = []
        for report, outcome in zip(reports, finished, strict=True):
            if isinstance(outcome, StaleClaim):
                stale.append(report.attempt)
            elif isinstance(outcome, RetinueError):
                log.info("a result of node %s waits: %s", session.offer.name, outcome)
                continue
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                accepted.append(report.attempt)
            self._logs.forget(report.attempt)
        if accepted or stale:
            session.link.send(DoneAck(accepted, stale))
        ended = {report.hold.task for report in reports if report.attempt in accepted}
        await self._drop_input(ended & self._stdin.tasks)

    async def tidy(self) -> None:
        """Let go of the input and output of whatever is over, however it ended."""
        await self._drop_input(self._stdin.tasks)
        await self._logs.tidy()

    async def _drop_input(self, tasks: Iterable[str]) -> None:
        """Another attempt of a task that is not over may still read it from its beginning."""
        for task in tasks:
            if await self._database.read(partial(read.is_over, task_id=task)):
                self._stdin.drop(task)

    def _finish(self, session: NodeSession, report: Report) -> Awaitable[object]:
        """Keep the rest of the output, then accept the result: in one commit where the rest is small. Once accepted, a
        result ends the right to keep output, and to have started."""
        boot = session.offer.boot
        if self._ordered and not self._logs.pending(report.attempt):
            return self._tasks.finish(report.hold, boot, report.ending)
        if self._ordered and (rest := self._logs.rest(report.attempt)) is not None:
            return self._with_rest(
                self._database.submit(KEEP_LOG, rest), self._tasks.finish(report.hold, boot, report.ending)
            )
        return self._one_after_the_other(session, report)

    async def _with_rest(self, kept: Awaitable[int], finished: Awaitable[object]) -> None:
        """Wait for both; what the result's commit says, counts."""
        keeping, finishing = await asyncio.gather(kept, finished, return_exceptions=True)
        if isinstance(finishing, BaseException):
            raise finishing
        if isinstance(keeping, Unavailable):
            log.warning("the last output of an attempt was not kept: %s", keeping)

    async def _one_after_the_other(self, session: NodeSession, report: Report) -> None:
        starting = session.starting.get((report.hold.task, report.hold.fence))
        if starting is not None:
            await asyncio.wait([starting])
        await self._logs.flush(report.attempt)
        await self._tasks.finish(report.hold, session.offer.boot, report.ending)

    async def _renew(self, session: NodeSession, holds: Sequence[Hold]) -> None:
        proven, forged = self._proven(holds, session.offer.boot)
        offer = session.offer
        renewal = Renewal(
            offer.node, offer.boot, tuple((hold.task, hold.fence) for hold in proven), int(self._lease * 1_000_000)
        )
        try:
            gone = await self._database.submit(RENEW_KIND, renewal)
        except RetinueError as error:
            log.info("node %s could not be renewed: %s", offer.name, error)
            session.link.send(Ping())  # the link is alive, it is the store that is away
            return
        lost = [*forged, *(hold for hold in proven if (hold.task, hold.fence) in gone)]
        for hold in lost:
            session.lost(hold)
        session.link.send(Renewed(lost))
        self._start_again(session, proven)

    def _log(self, session: NodeSession, frame: Log) -> None:
        try:
            self._tasks.verify(frame.hold, session.offer.boot)
        except StaleClaim:
            session.stop([frame.hold])
            return
        if self._logs.add(frame, session.link.send):
            self._spawn(self._logs.settle(frame.attempt))

    def _want_input(self, session: NodeSession, frame: WantInput) -> None:
        def deliver(piece: Input) -> None:
            session.link.send(piece)

        try:
            self._tasks.verify(frame.hold, session.offer.boot)
            self._stdin.want(frame, deliver)
        except RetinueError:
            session.stop([frame.hold])

    async def _bye(self, session: NodeSession) -> None:
        self._dispatcher.detach(session)  # first, or what it hands back would be given to it again
        self._start_again(
            session, [*session.unstarted.values()]
        )  # what was started is not handed back as if it was not
        if session.starting:
            await asyncio.wait(session.starting.values())
        await self._quietly(self._leave(session))
        session.link.close()

    async def _leave(self, session: NodeSession) -> None:
        await self._database.submit(HELLO, Presence(session.offer.node, session.offer.boot, ()))
        await self._database.submit(LEAVES, (session.offer.node, session.offer.boot))

    def stop(self, stopped: Sequence[Stopped]) -> None:
        """Tell nodes that these claims of theirs ended from above."""
        for claim in stopped:
            self._stdin.drop(claim.task)
            session = self._dispatcher.session(claim.node)
            if session is not None and session.offer.boot == claim.boot:
                token = self._tasks.token(claim.task, claim.fence, claim.boot)
                session.stop([Hold(claim.task, claim.fence, token)])
