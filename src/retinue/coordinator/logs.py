"""Output on its way: live to followers over the bus, in segments to the store, then acknowledged to its node."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from retinue.bus.bus import Bus
from retinue.client.frames import Cancel, Frame, Log, LogKept
from retinue.clock import Clock
from retinue.errors import RetinueError, StaleClaim, Unavailable
from retinue.storage.blobs import Blobs
from retinue.storage.group import GroupCommit
from retinue.tasks.logs import INLINE, SEGMENT, Segment, segments, sizes
from retinue.tasks.service import TaskService
from retinue.tasks.store import HELD

log = logging.getLogger(__name__)

SWEEP = 2.0  # seconds after which a follower looks though no hint came


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A piece of live output on the bus."""

    attempt: str
    stream: str
    offset: int
    data: bytes


class _Stream:
    """The part of one stream that is not durable yet."""

    def __init__(self, first: Log, reply: Callable[[Frame], None]) -> None:
        self.hold = first.hold
        self.reply = reply
        # A node that reconnects goes on from what was acknowledged: that much is in the store.
        self.kept = first.offset  # durable up to here
        self.tail = bytearray()  # from `kept` on
        self.flushing = asyncio.Lock()


class LogHub:
    """Takes `log` frames of this coordinator's nodes."""

    def __init__(self, tasks: TaskService, database: GroupCommit, blobs: Blobs, bus: Bus, clock: Clock) -> None:
        self._tasks = tasks
        self._database = database
        self._blobs = blobs
        self._bus = bus
        self._clock = clock
        self._streams: dict[tuple[str, str], _Stream] = {}

    def add(self, frame: Log, reply: Callable[[Frame], None]) -> bool:
        """Take output; whether a segment is full and should be settled. What is known already is passed over."""
        key = (frame.attempt, frame.stream)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(frame, reply)
        stream.reply = reply
        end = stream.kept + len(stream.tail)
        if frame.offset > end:
            return False  # a gap: the node sends again from what was acknowledged
        if frame.offset + len(frame.data) <= stream.kept:
            reply(LogKept(frame.attempt, frame.stream, stream.kept))  # that was said on a connection that broke
            return False
        fresh = frame.data[end - frame.offset :]
        stream.tail += fresh
        if fresh:
            piece = Piece(frame.attempt, frame.stream, end, bytes(fresh))
            self._bus.publish(f"log.{frame.attempt}", msgspec.msgpack.encode(piece))
        return len(stream.tail) >= SEGMENT

    async def flush(self, attempt: str) -> list[LogKept]:
        """Make what came so far durable; what to acknowledge.

        Raises:
            StaleClaim: the claim is lost, the output is dropped.
        """
        kept = []
        for (of, name), stream in list(self._streams.items()):
            if of == attempt and stream.tail:
                async with stream.flushing:
                    await self._keep(attempt, name, stream)
                if self._streams.get((attempt, name)) is stream:
                    kept.append(LogKept(attempt, name, stream.kept))
        return kept

    async def settle(self, attempt: str) -> None:
        """Make an attempt's output durable and tell its node how far, or that its claim is lost."""
        replies = {stream.reply: stream.hold for (of, _), stream in self._streams.items() if of == attempt}
        try:
            for kept in await self.flush(attempt):
                for reply in replies:
                    reply(kept)
        except StaleClaim:
            for reply, hold in replies.items():
                reply(Cancel([hold]))
        except RetinueError as error:
            log.info("output of %s waits: %s", attempt, error)

    async def settle_all(self) -> None:
        """Settle whatever waits."""
        for attempt in sorted({attempt for (attempt, _), stream in self._streams.items() if stream.tail}):
            await self.settle(attempt)

    async def tidy(self) -> None:
        """Forget attempts that ended without a report, such as cancelled ones and those of lost nodes."""
        idle = {(of, stream.hold.task, stream.hold.fence) for (of, _), stream in self._streams.items()}
        holds = sorted({(task, fence) for _, task, fence in idle})
        rows = await self._database.read(lambda connection: connection.rows(HELD, holds)) if holds else []
        held = {(row[0], row[1]) for row in rows}
        for attempt, task, fence in idle:
            if (task, fence) not in held:
                self.forget(attempt)

    async def _keep(self, attempt: str, name: str, stream: _Stream) -> None:
        while stream.tail:
            data = bytes(stream.tail[:SEGMENT])
            digest = await self._blobs.put(data) if len(data) > INLINE else None
            segment = Segment(
                stream.hold.task, stream.hold.fence, attempt, name, stream.kept, len(data), digest,
                None if digest else data,
            )  # fmt: skip
            try:
                upto = await self._tasks.keep_log(segment)
            except StaleClaim:
                self.forget(attempt)
                raise
            if upto < stream.kept:  # the store lacks what was acknowledged: it was restored
                self.forget(attempt)
                return
            del stream.tail[: upto - stream.kept]
            stream.kept = upto

    def pending(self, attempt: str) -> bool:
        """Whether some of its output is not durable yet."""
        return any(stream.tail for (of, _), stream in self._streams.items() if of == attempt)

    def rest(self, attempt: str) -> Segment | None:
        """All that is not durable, when that is one small segment which nobody is keeping just now, for who keeps it
        in the commit that ends the attempt; if that fails it is still here."""
        streams = [(name, stream) for (of, name), stream in self._streams.items() if of == attempt and stream.tail]
        if len(streams) != 1:
            return None
        ((name, stream),) = streams
        if len(stream.tail) > INLINE or stream.flushing.locked():
            return None
        hold, data = stream.hold, bytes(stream.tail)
        return Segment(hold.task, hold.fence, attempt, name, stream.kept, len(data), None, data)

    def forget(self, attempt: str) -> None:
        """The attempt ended."""
        for key in [key for key in self._streams if key[0] == attempt]:
            del self._streams[key]

    async def read(self, attempt: str, stream: str, offset: int) -> bytes:
        """What is known of a stream from `offset` on, up to 16 segments; empty when there is no more now."""
        found = bytearray()
        rows = await self._database.read(lambda connection: segments(connection, attempt, stream, offset))
        for start, _, digest, data in rows:
            whole = data if data is not None else await self._blobs.get(digest or "")
            found += whole[max(0, offset + len(found) - start) :]
        live = self._streams.get((attempt, stream))
        if live is not None and len(rows) < 16:
            at = offset + len(found)
            if live.kept <= at < live.kept + len(live.tail):
                found += live.tail[at - live.kept :]
        return bytes(found)

    async def streams(self, attempt: str) -> list[str]:
        """The streams an attempt has written to."""
        kept = await self._database.read(lambda connection: sizes(connection, attempt))
        return sorted({*kept, *(name for of, name in self._streams if of == attempt)})

    async def follow(self, task: str, attempt: str, ended: Callable[[], Awaitable[bool]]) -> AsyncIterator[Piece]:
        """All output of an attempt from its beginning, as it comes, until it has ended and nothing is left.

        `ended` is asked only when a hint or the sweep says so.
        """
        wake = asyncio.Event()
        arrived: list[Piece] = []
        ask = True

        def take(topic: str, payload: bytes) -> None:
            arrived.append(msgspec.msgpack.decode(payload, type=Piece))
            wake.set()

        def end(topic: str, payload: bytes) -> None:
            nonlocal ask
            ask = True
            wake.set()

        at: dict[str, int] = {}
        look = True  # in the store and in what is not kept yet; later pieces are taken as they come
        unsubscribe = [self._bus.subscribe(f"log.{attempt}", take), self._bus.subscribe(f"ended.{task}", end)]
        try:
            while True:
                wake.clear()
                last, asked, looked, ask, look = False, ask, look, False, False
                try:
                    last = asked and await ended()
                    if looked or last:
                        async for piece in self._catch_up(attempt, at):
                            yield piece
                except Unavailable:  # the store is away: once more after the sweep
                    last, ask, look = False, True, True
                    await self._clock.sleep(SWEEP)
                    continue
                while arrived:
                    piece = arrived.pop(0)
                    known = at.get(piece.stream, 0)
                    look = look or piece.offset > known  # one was lost on the way
                    if piece.offset <= known < piece.offset + len(piece.data):
                        at[piece.stream] = piece.offset + len(piece.data)
                        yield Piece(attempt, piece.stream, known, piece.data[known - piece.offset :])
                if last:
                    return
                if not (look or ask):
                    try:
                        async with self._clock.timeout(SWEEP):
                            await wake.wait()
                    except TimeoutError:
                        look = ask = True
        finally:
            for one in unsubscribe:
                one()

    async def _catch_up(self, attempt: str, at: dict[str, int]) -> AsyncIterator[Piece]:
        """What is known beyond what was handed out, in every stream."""
        for name in await self.streams(attempt):
            while data := await self.read(attempt, name, at.get(name, 0)):
                begin = at.get(name, 0)
                at[name] = begin + len(data)
                yield Piece(attempt, name, begin, data)
