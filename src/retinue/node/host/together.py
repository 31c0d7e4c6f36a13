"""The host of `async def` functions: many calls at once in one event loop; their output is told apart by context."""

import asyncio
import io
import sys
import threading  # noqa: TID251 - a host process is outside of what is simulated
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from socket import socket  # noqa: TID251 - a host process is outside of what is simulated
from typing import Any

from retinue.agent import function
from retinue.node.host import guard, outcome
from retinue.node.host.alone import PROGRESS_SECONDS
from retinue.node.runners import wire
from retinue.tasks.model import Progress


class Together:
    """Serves calls as tasks of one loop, and answers pings from it: no answer means that a function blocks it."""

    def __init__(self, control: socket) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_owned_task)
        self._thread = threading.get_ident()
        self._calls: dict[int, _Call] = {}
        self._control = control
        self._channel: wire.Channel
        for name, descriptor in (("stdout", 1), ("stderr", 2)):  # before apps are loaded: their log handlers keep them
            attributed = _Attributed(name, descriptor)
            setattr(sys, name, io.TextIOWrapper(attributed, "utf-8", "backslashreplace", write_through=True))

    def serve(self, ready: wire.Ready) -> None:
        """Serve until the node ends."""
        asyncio.set_event_loop(self._loop)
        self._channel = wire.Channel(self._loop, self._control, wire.TO_HOST, self._heard, lambda reason: guard.end())
        self._channel.send(ready)
        self._loop.run_forever()
        guard.end()  # a function stopped the loop

    def _heard(self, message: wire.ToHost) -> None:
        if isinstance(message, wire.Call):
            call = self._calls[message.call] = _Call(message.call, self._send)
            call.task = self._loop.create_task(self._run(message, call))
        elif isinstance(message, wire.Ping):
            self._channel.send(wire.Pong())
        elif message.call in self._calls:
            if isinstance(message, wire.Taken):
                self._calls[message.call].taken(message.size)
            else:
                self._stop(self._calls[message.call])

    async def _run(self, message: wire.Call, call: "_Call") -> None:
        _owner.set(call)
        try:
            said: wire.Message
            prepared = outcome.prepare(message)
            if isinstance(prepared, wire.Raised):
                said = prepared
            else:
                known, arguments = prepared
                context = function.Context(message.task, message.attempt, message.fence, message.env, call.tell)
                function.running.set(context)
                said = outcome.returned(message.call, known, await known.function(*arguments))
        except BaseException as problem:  # noqa: BLE001 - sys.exit() in a function ends the call, not the host
            said = outcome.raised(message.call, problem)
        if not call.stopped:
            self._end(call, said)

    def _end(self, call: "_Call", said: wire.Message) -> None:
        if self._calls.pop(call.number, None) is not None:
            call.end()
            self._channel.send(said)

    def _stop(self, call: "_Call") -> None:
        """Cancel the call and the tasks it made; only when the last of them has ended is it over."""
        call.stopped = True
        running = {call.task, *call.tasks}

        def ended(task: "asyncio.Task[Any]") -> None:
            running.discard(task)
            if not running:
                self._end(call, wire.Raised(call.number, "It was stopped."))

        for task in running:
            task.add_done_callback(ended)
            task.cancel()

    def _send(self, message: wire.Message) -> None:
        if threading.get_ident() == self._thread:
            self._channel.send(message)
        else:
            self._loop.call_soon_threadsafe(self._channel.send, message)


class _Call:
    """One call under way: its output, within its credit, and its progress, at most ten a second."""

    task: "asyncio.Task[None]"

    def __init__(self, number: int, send: Callable[[wire.Message], None]) -> None:
        self.number = number
        self.stopped = False
        self.tasks: set[asyncio.Task[Any]] = set()  # that the function made and that still run
        self._send = send
        self._over = False
        self._lock = threading.RLock()  # threads and finalizers of functions may print and tell too
        self._stream = ""
        self._text = bytearray()
        self._credit = wire.OUTPUT_CREDIT
        self._dropped = 0
        self._told_at = 0.0
        self._untold: Progress | None = None

    def write(self, stream: str, data: bytes) -> bool:
        """Take output of this call; what the node has no room for is dropped and counted. False when it has ended."""
        with self._lock:
            if self._over:
                return False
            if len(data) > self._credit:
                self._dropped += len(data)
                return True
            self._credit -= len(data)
            if stream != self._stream:
                self._flush()
            if not self._text:
                self.task.get_loop().call_soon_threadsafe(self.flush)
            self._stream = stream
            self._text += data
            return True

    def flush(self) -> None:
        """Send what was written."""
        with self._lock:
            self._flush()

    def taken(self, size: int) -> None:
        """The node handed on so many bytes."""
        with self._lock:
            self._credit += size
            self._own_up()

    def tell(self, progress: Progress) -> None:
        """Send how far it is, now or soon."""
        now = self.task.get_loop().time()
        with self._lock:
            if self._over:
                return
            late = self._untold is not None
            self._untold = progress
        if not late:
            wait = max(0.0, self._told_at + PROGRESS_SECONDS - now)
            self.task.get_loop().call_soon_threadsafe(self._tell_in, wait)

    def end(self) -> None:
        """Send what is left; what tasks that live on print from here on is the host's."""
        with self._lock:
            self._over = True
            self._flush()
            self._own_up()
        self._tell_now()

    def _flush(self) -> None:
        if self._text:
            self._send(wire.Wrote(self.number, self._stream, bytes(self._text)))
            self._text = bytearray()

    def _own_up(self) -> None:
        if self._dropped and (self._over or self._credit >= wire.OUTPUT_CREDIT // 2):
            text = f"\n[{self._dropped:,} bytes left out: printed faster than they could be sent]\n"
            self._flush()
            self._send(wire.Wrote(self.number, "stderr", text.encode()))
            self._dropped = 0

    def _tell_in(self, seconds: float) -> None:
        if seconds:
            self.task.get_loop().call_later(seconds, self._tell_now)
        else:
            self._tell_now()

    def _tell_now(self) -> None:
        with self._lock:
            progress, self._untold = self._untold, None
            self._told_at = self.task.get_loop().time()
        if progress is not None:
            self._send(wire.Told(self.number, progress))


_owner: ContextVar[_Call | None] = ContextVar("owner", default=None)


def _owned_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
) -> "asyncio.Task[Any]":
    """A task which, made by a call, is cancelled with it."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    owner = _owner.get()
    if owner is not None:
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task


class _Attributed(io.RawIOBase):
    """`sys.stdout` or `sys.stderr` below its text: what a call writes goes to that call, the rest to the host's own."""

    def __init__(self, stream: str, descriptor: int) -> None:
        self._stream = stream
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int:
        piece = bytes(data)
        owner = _owner.get()
        if owner is None or not owner.write(self._stream, piece):
            wire.write_all(self._descriptor, piece)
        return len(piece)
