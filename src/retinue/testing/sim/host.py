"""A simulated machine: its clock, the process that runs on it, pauses, and crashes that clean up nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from random import Random  # noqa: TID251 - the type of the port
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from retinue.testing.sim.chance import Chance, Dice
from retinue.testing.sim.loop import OWNER, Gate, SimLoop

T = TypeVar("T")
R = TypeVar("R")

START: Final = datetime(2026, 11, 21, tzinfo=UTC)
PORT_DELAY: Final = 0.005  # seconds: what a call of a port takes at most, when nothing is slow
SLOW_PORT: Final = 0.001  # how often a call of a port takes up to SLOWEST seconds
SLOWEST: Final = 3.0


class Machine:
    """What the clocks of a machine show. A wall step moves only `now`; the rate moves both clocks."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._since = 0.0
        self._elapsed = 0.0
        self.rate = 1.0
        self.wall_offset = 0.0

    def elapsed(self) -> float:
        """Seconds this machine counted since the run began."""
        return self._elapsed + (self._loop.time() - self._since) * self.rate

    def set_rate(self, rate: float) -> None:
        """From now on count faster or slower than the world."""
        self._elapsed = self.elapsed()
        self._since = self._loop.time()
        self.rate = rate


class Incarnation(Gate):
    """One process on a host, from start to death. Every port of a dead one ignores effects and never resolves."""

    __slots__ = (
        "_delay",
        "_fatal",
        "_pauses",
        "_slow",
        "_tasks",
        "alive",
        "clock",
        "context",
        "ends",
        "host",
        "loop",
        "number",
    )

    def __init__(self, host: "Host", number: int) -> None:
        super().__init__()
        self.host = host
        self.number = number
        self.loop = host.loop
        self.alive = True
        self.clock = SimClock(self)
        self.context = copy_context()
        self.context.run(OWNER.set, self)
        self.ends: list[Callable[[bool], None]] = []  # told of the death: True when the power was cut
        self._delay = host.delay
        self._slow = host.slow
        self._fatal = host.fatal
        self._pauses = 0
        self._tasks: list[asyncio.Task[Any]] = []

    def __repr__(self) -> str:
        return f"{self.host.name}/{self.number}"

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as this process."""
        return self.run(self.loop.create_task, coroutine)

    def run(self, call: Callable[..., R], *arguments: Any) -> R:
        """Call something as this process: the tasks it makes are this process's."""
        return self.context.copy().run(call, *arguments)

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """A task of this process was made; it ends with it."""
        self._tasks.append(task)
        if len(self._tasks) % 256 == 0:
            self.forget()

    def forget(self) -> None:
        """Let go of tasks that are done."""
        self._tasks[:] = [task for task in self._tasks if not task.done()]

    def call(self, slowness: float = 1.0) -> "asyncio.Future[None]":
        """What every port awaits first: it takes a moment, sometimes seconds, and for ever in a dead process."""
        future = self.loop.create_future()
        if self._fatal():
            self.host.crash_point(self)
        if self.alive:
            delay = self._delay() * PORT_DELAY * slowness
            if self._slow():
                delay += self._delay() * SLOWEST
            self.loop.after(delay, self, resolve, future)
        return future

    def never(self) -> "asyncio.Future[Any]":
        """What a port of a dead process awaits."""
        return self.loop.create_future()

    def pause(self) -> None:
        """Stop: timers and deliveries are held until as many `resume`."""
        if self.alive:
            self._pauses += 1
            self.open = False
            self.held = [] if self.held is None else self.held

    def resume(self) -> None:
        """Go on: all that was held happens now, in its order."""
        if not self.alive or not self._pauses:
            return
        self._pauses -= 1
        if not self._pauses:
            self.open = True
            held, self.held = self.held or [], None
            for call, argument in held:
                self.loop.after(0.0, self, call, argument)

    def die(self, *, power_cut: bool) -> None:
        """Be dead first, then have the tasks cancelled: no `finally` cleans up the world outside."""
        if not self.alive:
            return
        self.alive = False
        self.open = False
        self.held = None
        for told in self.ends:
            told(power_cut)
        self.ends.clear()
        for task in self._tasks:
            if not task.done():
                task.cancel()
        self._tasks.clear()


def resolve(future: "asyncio.Future[None]") -> None:
    """Let whoever awaits it go on."""
    if not future.done():
        future.set_result(None)


class SimClock:
    """The clock port of one process: its machine's clocks, read and waited on under virtual time."""

    def __init__(self, incarnation: Incarnation) -> None:
        self._own = incarnation
        self._loop = incarnation.loop
        self._machine = incarnation.host.machine
        # A machine that was switched off counts anew: no two incarnations share a monotonic clock.
        self._zero = self._machine.elapsed() - 100.0 * incarnation.number

    def now(self) -> datetime:
        """The wall clock of the machine, steps included."""
        return START + timedelta(seconds=self._machine.elapsed() + self._machine.wall_offset)

    def monotonic(self) -> float:
        """Seconds of the machine, at its rate."""
        return self._machine.elapsed() - self._zero

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this machine, or a little later."""
        future = self._loop.create_future()
        if self._own.alive:
            self._wait((self.monotonic() + max(seconds, 0.0), future))
        await future

    def _wait(self, waiting: tuple[float, "asyncio.Future[None]"]) -> None:
        left = waiting[0] - self.monotonic()
        if left > 1e-9:  # also when the rate fell meanwhile
            self._loop.after(left / self._machine.rate, self._own, self._wait, waiting)
        else:
            resolve(waiting[1])

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """As `asyncio.timeout`, in seconds of this machine."""
        return nullcontext() if seconds is None else _Timeout(self._own, seconds / self._machine.rate)


class _Timeout:
    """`asyncio.Timeout` on a gate: a paused process meets its timeouts when it goes on."""

    def __init__(self, own: Incarnation, seconds: float) -> None:
        self._own = own
        self._seconds = seconds
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._expired = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        if self._own.alive:
            self._own.loop.after(max(self._seconds, 0.0), self._own, self._expire)
        return self

    def _expire(self, _: object) -> None:
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if (
            self._expired
            and task is not None
            and task.uncancel() <= self._cancelling
            and kind is asyncio.CancelledError
        ):
            raise TimeoutError from error


class Host:
    """A machine with a name on which one program is started again and again."""

    def __init__(
        self,
        loop: SimLoop,
        chance: Chance,
        name: str,
        program: Callable[[Incarnation], Coroutine[Any, Any, None]],
        on_exit: Callable[[Incarnation, BaseException | None], None] = lambda incarnation, error: None,
        crash: Callable[[Incarnation], None] = lambda incarnation: None,
    ) -> None:
        self.loop = loop
        self.name = name
        self.machine = Machine(loop)
        self.random = chance.fork(f"host/{name}")
        self.delay = chance.fork(f"delay/{name}").random
        self.slow: Dice = chance.dice("slow-port", SLOW_PORT, name)
        self.fatal: Dice = chance.dice("crash-at-call", 0.0, name)  # only ever forced: one run a call (`run.sweep`)
        self.fatal_frame: Dice = chance.dice("crash-at-frame", 0.0, name)
        self.crash_point = crash
        self.incarnations = 0
        self.incarnation: Incarnation | None = None
        self.gone = False  # it never returns
        self._program = program
        self._on_exit = on_exit

    @property
    def up(self) -> bool:
        """Whether a process runs here, be it paused."""
        return self.incarnation is not None and self.incarnation.alive

    def start(self, _: object = None) -> None:
        """Start the program, unless it runs or the machine is gone for good."""
        if self.up or self.gone:
            return
        self.incarnations += 1
        incarnation = self.incarnation = Incarnation(self, self.incarnations)
        task = incarnation.start(self._program(incarnation))
        task.add_done_callback(lambda task: self._exited(incarnation, task))

    def _exited(self, incarnation: Incarnation, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if not incarnation.alive:
            return
        incarnation.die(power_cut=False)
        self._on_exit(incarnation, error)

    def crash(self, *, power_cut: bool) -> None:
        """End the process: with the power (nobody is told) or by `kill -9` (the system closes what it had open)."""
        if self.incarnation is not None:
            self.incarnation.die(power_cut=power_cut)

    def rng(self, purpose: str) -> Random:
        """A generator of chance for a port of the program, another one for each incarnation."""
        return Random(f"{self.random.random()}/{purpose}")  # noqa: S311 - a text seeds the same in every process


async def port(incarnation: Incarnation, effect: Callable[[], Awaitable[T]]) -> T:
    """Do an effect behind a port: after its delay, and never in a process that died meanwhile."""
    await incarnation.call()
    if not incarnation.alive:
        await incarnation.never()
    return await effect()
