"""The executor: takes assignments to their end, one a worker, and keeps what the coordinator has not got yet."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping

from retinue.client.frames import (
    Assignment,
    Frame,
    Input,
    Log,
    LogKept,
    ProgressFrame,
    Release,
    Report,
    Started,
    WantInput,
)
from retinue.node.runners.runner import Runner
from retinue.tasks.model import Ending, FailureCode, Hold, Progress

log = logging.getLogger(__name__)

PIECE = 60 * 1024  # of output in one frame
UNKEPT = 4 << 20  # bytes of output an attempt may be ahead of the coordinator
INPUT_CREDIT = 1 << 20


class Attempt:
    """One running or finished attempt and everything of it that is not acknowledged. Implements `AttemptIO`."""

    def __init__(self, assignment: Assignment, send: Callable[[Frame], None]) -> None:
        self.assignment = assignment
        self.hold: Hold = assignment.hold
        self.work: asyncio.Task[None] | None = None
        self.began = False
        self.lost = False  # the claim is gone: whatever it still says is of no use
        self.report: Report | None = None
        self._send = send
        self._unkept: dict[str, deque[tuple[int, bytes]]] = {}
        self._written: dict[str, int] = {}
        self._ahead = 0
        self._room = asyncio.Event()
        self._input: deque[bytes] = deque()
        self._input_at = 0
        self._input_end = False
        self._input_here = asyncio.Event()

    # -- for the runner ------------------------------------------------------------------------------------------------

    def started(self) -> None:
        self.began = True
        self._send(Started([self.hold]))

    async def output(self, stream: str, data: bytes) -> None:
        for begin in range(0, len(data), PIECE):
            while self._ahead > UNKEPT and not self.lost:
                self._room.clear()
                await self._room.wait()
            piece = data[begin : begin + PIECE]
            at = self._written.get(stream, 0)
            self._written[stream] = at + len(piece)
            if self.lost:
                continue
            self._unkept.setdefault(stream, deque()).append((at, piece))
            self._ahead += len(piece)
            self._send(Log(self.hold, self.assignment.attempt, stream, at, piece))

    async def input(self) -> bytes:
        if not self._input and not self._input_end:
            self._send(WantInput(self.hold, self.assignment.attempt, self._input_at, INPUT_CREDIT))
        while not self._input:
            if self._input_end:
                return b""
            self._input_here.clear()
            await self._input_here.wait()
        return self._input.popleft()

    def progress(self, progress: Progress) -> None:
        self._send(ProgressFrame(self.hold, progress))

    # -- for the daemon ------------------------------------------------------------------------------------------------

    def kept(self, frame: LogKept) -> None:
        """The coordinator has this stream up to an offset."""
        pieces = self._unkept.get(frame.stream, deque())
        while pieces and pieces[0][0] + len(pieces[0][1]) <= frame.offset:
            self._ahead -= len(pieces.popleft()[1])
        self._room.set()

    def take_input(self, frame: Input) -> None:
        """Standard input arrived."""
        if frame.offset == self._input_at:
            self._input_at += len(frame.data)
            if frame.data:
                self._input.append(frame.data)
            self._input_end = self._input_end or frame.end
            self._input_here.set()

    def lose(self) -> None:
        """The claim is gone: stop, and say nothing more."""
        self.lost = True
        self._room.set()
        if self.work is not None:
            self.work.cancel()

    def repeat(self) -> None:
        """Say again, on a new connection, what may not have arrived."""
        if self.began:
            self._send(Started([self.hold]))
        for stream, pieces in self._unkept.items():
            for at, piece in pieces:
                self._send(Log(self.hold, self.assignment.attempt, stream, at, piece))
        if self.report is None and self.assignment.spec.stdin and not self._input_end:
            self._send(WantInput(self.hold, self.assignment.attempt, self._input_at, INPUT_CREDIT))


class Executor:
    """All attempts of a node: those that run, and finished ones until their report is acknowledged."""

    def __init__(
        self,
        runners: Mapping[str, Runner],
        workers: int,
        *,
        send: Callable[[Frame], None],
        ended: Callable[[Report | None], None],
    ) -> None:
        """`send` puts a frame on the link if there is one; `ended` is told of a report, or of None when a worker is
        free again without one."""
        self._runners = runners
        self._workers = workers
        self._send = send
        self._ended = ended
        self.attempts: dict[str, Attempt] = {}

    @property
    def free(self) -> int:
        """How many workers have nothing to do."""
        return max(0, self._workers - sum(1 for attempt in self.attempts.values() if attempt.report is None))

    @property
    def holds(self) -> list[Hold]:
        """Every claim that is ours as far as we know."""
        return [attempt.hold for attempt in self.attempts.values() if not attempt.lost]

    @property
    def reports(self) -> list[Report]:
        """What is not acknowledged yet."""
        return [attempt.report for attempt in self.attempts.values() if attempt.report is not None]

    def take(self, assignment: Assignment) -> None:
        """Run it. The same one again changes nothing."""
        if assignment.attempt in self.attempts:
            return
        attempt = self.attempts[assignment.attempt] = Attempt(assignment, self._send)
        attempt.work = asyncio.get_running_loop().create_task(self._run(attempt), name=assignment.attempt)

    async def _run(self, attempt: Attempt) -> None:
        kind = "function" if attempt.assignment.spec.function is not None else "process"
        runner = self._runners.get(kind)
        try:
            if runner is None:
                ending = Ending(False, error=f"This node runs no task of the kind {kind}.", code=FailureCode.POLICY)
            else:
                ending = await runner.run(attempt.assignment, attempt)
        except asyncio.CancelledError:
            self._over(attempt)
            raise
        except Exception:
            log.exception("the runner of attempt %s failed", attempt.assignment.attempt)
            ending = Ending(False, error="The node failed to run it; its log says why.", code=FailureCode.HOST_LOST)
        if attempt.lost:
            self._over(attempt)
        else:
            attempt.report = Report(attempt.hold, attempt.assignment.attempt, ending)
            self._ended(attempt.report)

    def _over(self, attempt: Attempt) -> None:
        """It ended without a report; of a lost one nothing runs any more, so what it took is free."""
        self.attempts.pop(attempt.assignment.attempt, None)
        if attempt.lost:
            self._send(Release([attempt.hold], "stopped"))
        self._ended(None)

    def acknowledged(self, attempt_id: str) -> None:
        """The coordinator has the report, or refused it for good."""
        attempt = self.attempts.get(attempt_id)
        if attempt is not None and attempt.report is not None:
            del self.attempts[attempt_id]

    def lose(self, hold: Hold) -> None:
        """This claim is gone: end its attempt and say nothing of it."""
        for attempt in list(self.attempts.values()):
            if (attempt.hold.task, attempt.hold.fence) == (hold.task, hold.fence):
                attempt.lose()
                if attempt.report is not None:
                    self._over(attempt)

    async def stop(self) -> None:
        """End every attempt; returns when nothing of theirs runs any more."""
        works = [attempt.work for attempt in self.attempts.values() if attempt.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
