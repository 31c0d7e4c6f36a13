"""Virtual time: an event loop without selector and threads that jumps to whatever is due next."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context, ContextVar
from heapq import heappop, heappush
from math import inf
from random import Random  # noqa: TID251 - the type of the port
from typing import Any, Final, NoReturn

STEPS: Final = 200_000


class Deadlock(Exception):
    """Nothing will ever happen again: everybody waits, and no timer is left."""


class Runaway(Exception):
    """The fleet took more steps than any honest run needs: something spins."""


class EscapedSimulation(BaseException):
    """The code reached for a thread, a socket or a process behind the back of its ports."""


class Gate:
    """What a due call belongs to. An open gate lets it run, a closed one holds it; without a `held` list it is lost."""

    __slots__ = ("held", "open")

    def __init__(self) -> None:
        self.open = True
        self.held: list[tuple[Callable[[Any], None], Any]] | None = None


class World(Gate):
    """The gate of what belongs to no machine: it never closes."""

    __slots__ = ()
    alive: Final = True

    def adopt(self, task: "asyncio.Task[Any]") -> None:
        """Nobody cancels the world's tasks."""


WORLD: Final = World()
OWNER: ContextVar[Any] = ContextVar("owner", default=WORLD)  # whose code runs: an incarnation, or the world


class SimLoop(asyncio.BaseEventLoop):
    """Runs callbacks and timers as asyncio does, in its order, on a clock that is only a number.

    Three private names of asyncio are touched, and a fourth for the shuffle; a test guards them on each Python version.
    """

    _scheduled: list[asyncio.TimerHandle]
    _ready: Any

    def __init__(self, *, steps: int = STEPS, shuffle: Random | None = None) -> None:
        super().__init__()
        self._selector = self
        self._now = 0.0
        self._due: list[tuple[float, int, Gate, Callable[[Any], None], Any]] = []
        self._number = 0
        self._most = steps
        self._shuffle = shuffle
        self.steps = 0
        self.failures: list[str] = []
        self.set_task_factory(_owned_task)
        self.set_exception_handler(_note)

    def time(self) -> float:
        """Simulated seconds since the run began."""
        return self._now

    def at(self, when: float, gate: Gate, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call once at `when`, unless the gate is closed then. Much cheaper than `call_at`; not to be cancelled."""
        self._number += 1
        heappush(self._due, (when, self._number, gate, call, argument))

    def after(self, delay: float, gate: Gate, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call once in `delay` seconds, unless the gate is closed then."""
        self._number += 1
        heappush(self._due, (self._now + delay, self._number, gate, call, argument))

    def create_future(self) -> "asyncio.Future[Any]":
        """A future that knows whose it is: those of a dead incarnation end unread, and that is no failure."""
        future: asyncio.Future[Any] = asyncio.Future(loop=self)
        future.owner = OWNER.get()  # type: ignore[attr-defined]
        return future

    def call_soon(  # type: ignore[override]  # asyncio's is generic over the arguments
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's, without the checks for threads and closed loops: it is called for every step of every task."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def select(self, timeout: float | None) -> Iterable[Any]:
        """What asyncio asks of its selector: here time passes, and only here."""
        ready, due, scheduled = self._ready, self._due, self._scheduled
        self.steps += 1 + len(ready)
        if timeout is None and not due:
            raise Deadlock(f"nothing left to happen at {self._now:.3f} s")
        while True:
            now = self._now
            while due and due[0][0] <= now:
                _, _, gate, call, argument = heappop(due)
                self.steps += 1
                if gate.open:
                    call(argument)
                elif gate.held is not None:
                    gate.held.append((call, argument))
                if self.steps > self._most:
                    break
            if self.steps > self._most:
                raise Runaway(f"more than {self._most} steps at {now:.3f} s")
            # What became due may have been nothing to any task; then time passes at once.
            if timeout == 0 or ready or (scheduled and scheduled[0].when() <= now) or not (due or scheduled):
                break
            self._now = min(due[0][0] if due else inf, scheduled[0].when() if scheduled else inf)
        if self._shuffle is not None and len(ready) > 1:
            order = list(ready)
            self._shuffle.shuffle(order)
            ready.clear()
            ready.extend(order)
        return ()

    def __del__(self) -> None:
        """Nothing of the machine is held, so nothing has to be closed."""

    def _process_events(self, events: Iterable[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> NoReturn:
        raise EscapedSimulation("another thread called into the simulation")


def _escaped(name: str) -> Callable[..., NoReturn]:
    def escape(self: SimLoop, *_: Any, **__: Any) -> NoReturn:
        raise EscapedSimulation(f"{name}: a simulated program reaches the outside through its ports only")

    return escape


OUTSIDE: Final = (
    *(
        "run_in_executor",
        "call_soon_threadsafe",
        "getaddrinfo",
        "getnameinfo",
        "subprocess_exec",
        "subprocess_shell",
        "sendfile",
    ),
    *("create_connection", "create_server", "create_unix_connection", "create_unix_server", "create_datagram_endpoint"),
    *("add_reader", "remove_reader", "add_writer", "remove_writer", "add_signal_handler", "remove_signal_handler"),
    *("connect_read_pipe", "connect_write_pipe", "start_tls", "connect_accepted_socket"),
    *("sock_recv", "sock_recv_into", "sock_sendall", "sock_connect", "sock_accept", "sock_sendfile"),
)
for _name in OUTSIDE:
    setattr(SimLoop, _name, _escaped(_name))


def _owned_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Any, **options: Any
) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    owner = OWNER.get()
    task.owner = owner  # type: ignore[attr-defined]
    owner.adopt(task)
    return task


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception that nobody took is a failure of the seed, unless its machine is dead."""
    error = context.get("exception")
    source = context.get("task") or context.get("future")
    if error is None or not getattr(source, "owner", WORLD).alive:
        return  # without an exception it is a task dropped with its machine
    text = f"{context['message']}: {error!r} in {_place(source, error)}"
    loop.failures.append(text)  # type: ignore[attr-defined]  # it is a SimLoop


def _place(source: Any, error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = source.get_name() if isinstance(source, asyncio.Task) else type(source).__name__
    return name if trace is None else f"{name}, {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}"
