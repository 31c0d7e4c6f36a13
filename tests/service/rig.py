"""A fleet for service tests: a real coordinator on a store in memory, time that tests move, nodes real or by hand."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from retinue.bus.memory import MemoryBus
from retinue.client.frames import (
    VERSION,
    Assign,
    Assignment,
    Bye,
    Credit,
    Done,
    Frame,
    Hello,
    Log,
    Release,
    Renew,
    Report,
    Started,
    Welcome,
)
from retinue.client.link import Link
from retinue.coordinator.app import Coordinator, Ports, Settings, Timing
from retinue.coordinator.interface import Interface
from retinue.errors import LinkClosed, OutcomeUnknown, Unavailable
from retinue.node.daemon import Node, NodeSettings
from retinue.node.processes import Launch
from retinue.node.runners.process import ProcessRunner
from retinue.node.runners.runner import NodeFacts
from retinue.routes import Caller
from retinue.storage.blobs import MemoryBlobs
from retinue.storage.database import Connection, Transaction
from retinue.storage.sqlite import InlineSqlite
from retinue.tasks.model import Ending, Hold, Task, TaskSpec
from retinue.testing.clock import ManualClock

T = TypeVar("T")
FrameT = TypeVar("FrameT", bound=Frame)
LEASE, SWEEP, LOG_FLUSH = 15.0, 5.0, 1.0
TIMING = Timing(lease=LEASE, sweep=SWEEP, heartbeat=30.0, log_flush=LOG_FLUSH)
OK = Ending(ok=True, exit_code=0)


async def settle() -> None:
    """Let everything that can go on without time go on, until all of it waits."""
    loop = asyncio.get_running_loop()
    while True:
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn
        if not loop._ready:  # type: ignore[attr-defined]
            return


class Wavering:
    """A store that can be away for a while, when every call is refused, or slow to begin single writes."""

    name = "sqlite, in memory, wavering"

    def __init__(self, clock: ManualClock) -> None:
        self.store = InlineSqlite(clock)
        self.away = False
        self.lose_answers = 0  # so many of the next commits happen, and nobody is told
        self.gates: list[asyncio.Event] = []  # each holds up one of the next writes

    async def write(self, work: Callable[[Transaction], T]) -> T:
        self._check()
        if self.gates:
            await self.gates.pop(0).wait()
        done = await self.store.write(work)
        if self.lose_answers:
            self.lose_answers -= 1
            raise OutcomeUnknown
        return done

    async def read(self, work: Callable[[Connection], T]) -> T:
        self._check()
        return await self.store.read(work)

    async def close(self) -> None:
        await self.store.close()

    def _check(self) -> None:
        if self.away:
            raise Unavailable


class Fleet:
    """A coordinator and whatever nodes a test connects to it."""

    def __init__(self, timing: Timing = TIMING, writers: int = 1) -> None:
        self._writers = writers
        self.clock = ManualClock()
        self.store = Wavering(self.clock)
        self.blobs = MemoryBlobs()
        self._starts = 0
        self.coordinator = self._new(timing)
        self._tasks: list[asyncio.Task[Any]] = []

    def _new(self, timing: Timing) -> Coordinator:
        self._starts += 1  # another process has other chances
        ports = Ports(self.clock, Random(self._starts), self.store, MemoryBus(), self.blobs)
        return Coordinator(ports, Settings(key=b"the key of these tests", timing=timing, writers=self._writers))

    async def start(self) -> None:
        await self.coordinator.start()
        await settle()

    async def restart(self) -> None:
        """The coordinator is killed, and another one starts on the same store."""
        for task in list(self.coordinator._background):
            task.cancel()
        await settle()
        self.coordinator = self._new(self.coordinator.settings.timing)
        await self.start()

    async def stop(self) -> None:
        self.store.away = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.coordinator.stop()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run something beside the test, until its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task

    async def passes(self, seconds: float, step: float = 0.5) -> None:
        """Time goes by while everybody is awake."""
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            await settle()

    async def jumps(self, seconds: float) -> None:
        """The whole machine sleeps for so long."""
        self.clock.advance(seconds)
        await settle()

    # -- people --------------------------------------------------------------------------------------------------------

    async def submit(self, spec: TaskSpec | None = None, **fields: Any) -> str:
        spec = spec or TaskSpec(**{"command": ["do"], **fields})
        return await self.coordinator.tasks.submit(self.coordinator.team, "me", spec)

    async def task(self, task_id: str) -> Task:
        return await self.coordinator.tasks.get(self.coordinator.team, task_id)

    async def status(self, task_id: str) -> str:
        return str((await self.task(task_id)).status)

    async def attempts(self, task_id: str) -> list[str]:
        """How its attempts stand, in the order in which they were made."""
        return [str(attempt.status) for attempt in (await self.task(task_id)).attempts]

    async def cancel(self, task_id: str) -> None:
        await self.coordinator.tasks.cancel(self.coordinator.team, "me", task_id)
        await settle()

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """What the interface answers."""
        caller = Caller(self.coordinator.team, "me")
        return (await Interface(self.coordinator).call(caller, method, path, query, body)).document

    async def events(self, task_id: str) -> list[str]:
        """The types of a task's events, in order."""
        found, _ = await self.coordinator.events.page(self.coordinator.team, after=0, limit=500)
        return [event.type for event in found if event.correlation_id == task_id]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self.store.store.raw.execute(sql).fetchall()

    @property
    def commits(self) -> int:
        return self.coordinator.database.commits

    async def output(self, attempt: str, stream: str = "stdout") -> bytes:
        """What is known of a stream: kept or on its way."""
        found = b""
        while piece := await self.coordinator.logs.read(attempt, stream, len(found)):
            found += piece
        return found

    def kept(self, attempt: str, stream: str = "stdout") -> int:
        """How much of a stream is durable."""
        sql = f"SELECT COALESCE(SUM(size), 0) FROM logs WHERE attempt = '{attempt}' AND stream = '{stream}'"
        return int(self.rows(sql)[0][0])

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def hand(self, name: str = "hand", boot: str = "boot_hand") -> "Hand":
        """A node that the test plays by hand."""
        return Hand(self, name, boot)

    async def node(self, workers: int = 2, name: str = "lab", boot: str = "boot_lab", **more: Any) -> "RealNode":
        """A real node, connected, with scripted programs."""
        made = RealNode(self, boot, NodeSettings(name, workers, **more))
        await settle()
        return made


class Hand:
    """A node written by hand: frames out when the test says so, frames in as they came."""

    def __init__(self, fleet: Fleet, name: str, boot: str) -> None:
        self.name = name
        self.boot = boot
        self.closed = False
        self.frames: list[Frame] = []
        self._fleet = fleet
        self._link = fleet.coordinator.connect()
        self._reader = fleet.spawn(self._read())

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._link.receive()
                self.frames.append(frame)
        except LinkClosed:
            self.closed = True

    async def says(self, *frames: Frame) -> None:
        """Send frames, and let everybody act on them."""
        for frame in frames:
            self._link.send(frame)
        await settle()

    def heard(self, kind: type[FrameT]) -> list[FrameT]:
        """The frames of one kind that came since this was last asked."""
        found = [frame for frame in self.frames if isinstance(frame, kind)]
        self.frames = [frame for frame in self.frames if not isinstance(frame, kind)]
        return found

    async def hello(self, *holds: Hold, workers: int = 2, versions: tuple[int, ...] = (VERSION,), **more: Any) -> None:
        await self.says(
            Hello(versions=list(versions), node=self.name, boot_id=self.boot, nonce="n", holds=list(holds),
                  workers=workers, **more)
        )  # fmt: skip

    async def joins(self, *holds: Hold, free: int = 2, **more: Any) -> Welcome:
        """Say hello, be welcomed, offer free workers."""
        await self.hello(*holds, **{"workers": max(free, 2), **more})
        (welcome,) = self.heard(Welcome)
        if free:
            await self.says(Credit(free, 0))
        return welcome

    def given(self) -> list[Assignment]:
        """The tasks that were assigned since this was last asked."""
        return [task for frame in self.heard(Assign) for task in frame.tasks]

    async def starts(self, task: Assignment) -> None:
        await self.says(Started([task.hold]))

    async def writes(self, task: Assignment, data: bytes, offset: int = 0, stream: str = "stdout") -> None:
        await self.says(Log(task.hold, task.attempt, stream, offset, data))

    async def ends(self, task: Assignment, ending: Ending = OK) -> None:
        await self.says(Done([Report(task.hold, task.attempt, ending)]))

    async def stopped(self, task: Assignment) -> None:
        """An attempt that was cancelled, or lost, has ended."""
        await self.says(Release([task.hold], "stopped"))

    async def renews(self, *holds: Hold) -> None:
        await self.says(Renew(list(holds)))

    async def leaves(self) -> None:
        await self.says(Bye())

    async def drops(self) -> None:
        """The connection breaks."""
        self._link.close()
        await settle()


def forged(hold: Hold) -> Hold:
    """The same right with another token."""
    return Hold(hold.task, hold.fence, "0" * len(hold.claim_token))


def at_fence(hold: Hold, fence: int) -> Hold:
    """The same token with another fence."""
    return Hold(hold.task, fence, hold.claim_token)


class Cable:
    """A link that a test can cut, or let die without a word, in one direction or in both."""

    def __init__(self, link: Link, *, silent: bool) -> None:
        self.link = link
        self.mute = self.deaf = silent
        self.sent: list[Frame] = []

    @property
    def silent(self) -> bool:
        """Whether nothing arrives any more, in either direction."""
        return self.mute and self.deaf

    @silent.setter
    def silent(self, value: bool) -> None:
        self.mute = self.deaf = value

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)
        if not self.mute:
            self.link.send(frame)

    async def receive(self) -> Frame:
        while True:
            frame = await self.link.receive()
            if not self.deaf:
                return frame

    def close(self) -> None:
        self.link.close()

    def said(self, kind: type[FrameT]) -> list[FrameT]:
        """The frames of one kind that the node sent on this connection."""
        return [frame for frame in self.sent if isinstance(frame, kind)]


class RealNode:
    """A real node over links that tests can break, with programs that tests play."""

    def __init__(self, fleet: Fleet, boot: str, settings: NodeSettings) -> None:
        self.cables: list[Cable] = []
        self.cut_off = False  # then dialling fails too
        self.born_silent = False  # then a new connection is dead from its first frame on
        self.dialled = 0
        self.slow_to_start = asyncio.Event()
        self.slow_to_start.set()
        self.breaks: Exception | None = None  # what starting a program raises
        self.programs: list[Program] = []
        self._fleet = fleet
        runner = ProcessRunner(Programs(self), fleet.clock, NodeFacts(settings.name, Path("work"), {}))
        self.node = Node(settings, boot, fleet.clock, Random(3), self._dial, {"process": runner})
        self.life = fleet.spawn(self.node.run())

    async def _dial(self) -> Link:
        self.dialled += 1
        if self.cut_off:
            raise LinkClosed
        cable = Cable(self._fleet.coordinator.connect(), silent=self.born_silent)
        self.cables.append(cable)
        return cable

    @property
    def cable(self) -> Cable:
        """The newest connection."""
        return self.cables[-1]

    @property
    def live(self) -> "list[Program]":
        """The programs that run, in the order of their start."""
        return [program for program in self.programs if program.live]


class Programs:
    """`Processes` whose programs do what tests say."""

    def __init__(self, node: RealNode) -> None:
        self._node = node

    async def start(self, launch: Launch) -> "Program":
        if self._node.breaks is not None:
            raise self._node.breaks
        await self._node.slow_to_start.wait()
        program = Program(launch)
        self._node.programs.append(program)
        return program

    async def discard(self, folder: Path) -> None:
        """Nothing is on a disk."""

    async def close(self) -> None:
        """Nothing is kept beside the programs."""


class Program:
    """A program that a test plays."""

    def __init__(self, launch: Launch) -> None:
        self.pid = 1
        self.launch = launch
        self.stdin = b""
        self.stdin_ended = False
        self.asked_to_end = False
        self.deaf = False  # to being asked
        self.killed = False
        self.reads = True  # its standard input, as it comes
        self._output: deque[tuple[str, bytes]] = deque()
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    @property
    def live(self) -> bool:
        return not self._exit.done()

    def writes(self, data: bytes, stream: str = "stdout") -> None:
        for begin in range(0, len(data), 65536):
            self._output.append((stream, data[begin : begin + 65536]))
        self._changed.set()

    def exits(self, code: int = 0) -> None:
        if self.live:
            self._exit.set_result(code)
        self._changed.set()

    async def read(self) -> tuple[str, bytes] | None:
        while not self._output:
            if not self.live:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._output.popleft()

    async def write(self, data: bytes) -> bool:
        while not self.reads and self.live:
            self._changed.clear()
            await self._changed.wait()
        self.stdin += data
        return self.live

    async def end_input(self) -> None:
        self.stdin_ended = True

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    def terminate(self) -> None:
        self.asked_to_end = True
        if not self.deaf:
            self.exits(-15)

    async def kill(self) -> None:
        self.killed = True
        self.exits(-9)
