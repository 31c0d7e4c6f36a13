"""The dispatcher: one claimer for all nodes of this coordinator. It claims exactly what free workers can take.

Nothing polls: a claim is made when a task arrives for a queue that a free worker serves, in the same commit as the
task; and when a worker becomes free, in the commit of the result that freed it. A slow sweep catches lost hints.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable

import msgspec

from retinue.client.frames import Assignment
from retinue.coordinator.session import NodeSession
from retinue.errors import OutcomeUnknown, RetinueError, Unavailable
from retinue.ids import Ids
from retinue.storage.group import GroupCommit
from retinue.tasks import read
from retinue.tasks.losses import RELEASE, UNCLAIM
from retinue.tasks.model import Claim, Hold, Queue, TaskSpec
from retinue.tasks.store import CLAIM, Dealt, Free, Round

log = logging.getLogger(__name__)

LARGEST_ROUND = 200  # tasks claimed at once
_spec = msgspec.json.Decoder(TaskSpec).decode


class Dispatcher:
    """Knows the sessions with free workers and the queues in which somebody may wait."""

    def __init__(
        self,
        database: GroupCommit,
        ids: Ids,
        lease: float,
        token: Callable[[str, int, str], str],
        spawn: Callable[[Coroutine[None, None, None]], object],
    ) -> None:
        """`lease` in seconds; `token` makes claim tokens; `spawn` runs a coroutine in the background."""
        self._database = database
        self._ids = ids
        self._lease = int(lease * 1_000_000)
        self._token = token
        self._spawn = spawn
        self._sessions: dict[str, NodeSession] = {}
        self._queues: dict[str, Queue] = {}
        self._live: dict[str, int] = {}  # queues in which somebody may wait -> when that was last said
        self._said = 0
        self._turn = ""
        self.paused = False  # take nothing new; what runs goes on
        self._unsent: dict[str, set[str]] = {}  # attempts that may be claimed by now and were not sent, by node
        self._doubtful: dict[str, set[str]] = {}  # those of them of which we shall not be told

    @property
    def sessions(self) -> Iterable[NodeSession]:
        """Every connected node."""
        return self._sessions.values()

    def session(self, node: str) -> NodeSession | None:
        """The connection of a node."""
        return self._sessions.get(node)

    def attach(self, session: NodeSession) -> None:
        """A node is connected; it is given work as soon as it says that a worker is free."""
        self._sessions[session.offer.node] = session

    def detach(self, session: NodeSession) -> None:
        """A connection is gone; claims that are on their way to it are handed back."""
        session.open = False
        if self._sessions.get(session.offer.node) is session:
            del self._sessions[session.offer.node]

    def unsent(self, node: str) -> tuple[str, ...]:
        """Attempts that may be claimed for a node by now and that it was never told of."""
        return tuple(sorted(self._unsent.get(node, ())))

    def arriving(self, queue: Queue) -> None:
        """A task for this queue is being written, or was put back into it."""
        self._queues[queue.id] = queue
        self._said += 1
        self._live[queue.id] = self._said
        free = sorted((s for s in self._sessions.values() if s.free and s.serves(queue)), key=lambda s: -s.free)
        if free:
            self._claim(free, [queue])

    def freed(self, session: NodeSession) -> None:
        """A node has free workers."""
        if session.free and self._live:
            queues = [self._queues[queue] for queue in self._live if session.serves(self._queues[queue])]
            if queues:
                self._claim([session], queues)

    async def hinted(self, queue_id: str) -> None:
        """Somebody said that a task waits in this queue."""
        queue = self._queues.get(queue_id) or await self._database.read(lambda c: read.queue(c, queue_id))
        if queue is not None:
            self.arriving(queue)

    async def sweep(self) -> None:
        """Look for waiting tasks that no hint announced: after a start, and as a safety net.

        First what is in doubt: a claim whose answer was lost was never sent, so its tasks wait again at once.
        """
        for node, known in list(self._doubtful.items()):
            attempts = set(known)
            await self._database.submit(UNCLAIM, (node, tuple(sorted(attempts))))
            _less(self._doubtful, node, attempts)
            _less(self._unsent, node, attempts)
        for queue in await self._database.read(read.live_queues):
            self.arriving(queue)

    def _claim(self, sessions: list[NodeSession], queues: list[Queue]) -> None:
        if self.paused:
            return
        taken: list[tuple[NodeSession, int]] = []
        left = LARGEST_ROUND
        for session in sessions:
            workers = min(session.free, left)
            if workers:
                session.reserve(workers)
                taken.append((session, workers))
                left -= workers
        said = {queue.id: self._live.get(queue.id, 0) for queue in queues}
        wanted = Round(
            free=tuple(
                Free(
                    session.offer.node,
                    session.offer.name,
                    session.offer.boot,
                    tuple(self._ids.new("att") for _ in range(workers)),
                    session.room,
                )
                for session, workers in taken
            ),
            queues=tuple(queues),
            after_team=self._turn,
            lease=self._lease,
        )
        for free in wanted.free:
            self._unsent.setdefault(free.node, set()).update(free.attempts)
        # Submitted here and now: it rides in the commit of what was submitted just before it.
        self._spawn(self._deal(self._database.submit(CLAIM, wanted), wanted, taken, said))

    async def _deal(
        self,
        answer: "asyncio.Future[Dealt]",
        wanted: Round,
        taken: list[tuple[NodeSession, int]],
        said: dict[str, int],
    ) -> None:
        """Send every claimed task to the node it was claimed for."""
        try:
            dealt = await answer
        except OutcomeUnknown:
            for free in wanted.free:
                self._doubtful.setdefault(free.node, set()).update(free.attempts)
            return
        except Unavailable:
            self._settled(wanted)
            return  # the sweep claims again when the store is back
        except RetinueError:
            self._settled(wanted)
            log.exception("a claim failed")
            return
        finally:
            for session, workers in taken:
                session.unreserve(workers)
        for queue in dealt.emptied:
            if self._live.get(queue) == said[queue]:
                del self._live[queue]
        self._send(dealt, taken)
        self._settled(wanted)
        if dealt.claims:
            self._turn = dealt.claims[-1].team
            for session, _ in taken:
                self.freed(session)

    def _settled(self, wanted: Round) -> None:
        """What became of a round is known, and what was claimed in it is sent or on its way back."""
        for free in wanted.free:
            _less(self._unsent, free.node, set(free.attempts))

    def _send(self, dealt: Dealt, taken: list[tuple[NodeSession, int]]) -> None:
        by_node: dict[str, list[Claim]] = {}
        for claim in dealt.claims:
            by_node.setdefault(claim.node, []).append(claim)
        for session, _ in taken:
            claims = by_node.get(session.offer.node, [])
            if not session.open:
                for claim in claims:  # the link broke while we claimed for it
                    self._spawn(self._give_back(claim))
            elif claims:
                session.assign([(self._assignment(claim), self._queues[claim.queue].resources) for claim in claims])

    def _assignment(self, claim: Claim) -> Assignment:
        hold = Hold(claim.task, claim.fence, self._token(claim.task, claim.fence, claim.boot))
        return Assignment(hold, claim.attempt, _spec(claim.spec))

    async def _give_back(self, claim: Claim) -> None:
        try:
            await self._database.submit(RELEASE, (claim.task, claim.fence))
        except Unavailable:
            self._doubtful.setdefault(claim.node, set()).add(claim.attempt)
        except RetinueError:
            pass  # it is not ours any more


def _less(attempts: dict[str, set[str]], node: str, gone: set[str]) -> None:
    """Take attempts out of a node's."""
    left = attempts.pop(node, set()) - gone
    if left:
        attempts[node] = left
