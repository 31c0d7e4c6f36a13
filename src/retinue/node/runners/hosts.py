"""One host process as its node sees it: started, given calls, watched, and ended with all that grew out of it."""

import asyncio
import itertools
import logging
import os
import signal
import socket  # noqa: TID251 - this is the port
import subprocess  # noqa: TID251 - this is the port
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from retinue.client.frames import Assignment
from retinue.clock import Clock
from retinue.errors import ConfigInvalid
from retinue.node import guardian
from retinue.node.runners import wire
from retinue.node.runners.calls import HostCall, Lost
from retinue.node.runners.child import Child
from retinue.node.runners.children import CHILDREN
from retinue.node.runners.finish import finish
from retinue.node.runners.runner import AttemptIO

log = logging.getLogger(__name__)

START_SECONDS: Final = 60.0  # to import its apps
STOP_SECONDS: Final = 5.0  # for an async call to end when it is cancelled
HANG_UP_SECONDS: Final = 0.5  # for a host to end that has closed its connection
PING_SECONDS: Final = 1.0
MOST_UNANSWERED: Final = 5
PIECE: Final = 64 * 1024
MOST_WAITING: Final = 4 * PIECE  # output of a call not handed on yet; then its host is read no further
TAIL: Final = 4096
LOGGED: Final = 256 * 1024  # of a host's own output; then it is read slowly and dropped
MARK: Final = "RETINUE_HOST"

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class HostState:
    """A host process as `/status` shows it. One with calls that is silent for long computes, or is stuck."""

    pid: int
    together: bool  # async functions, many at once
    calls: int
    silent_seconds: float


class Host:
    """A host process, from `start` until it has ended, by itself or by `kill`."""

    def __init__(self, clock: Clock, *, together: bool) -> None:
        self._clock = clock
        self._together = together
        self._loop = asyncio.get_running_loop()
        self._mark = f"{os.getpid()}.{next(_numbers)}"
        self._calls: dict[int, HostCall] = {}
        self._ready: asyncio.Future[Mapping[str, bool]] = self._loop.create_future()
        self._reason: str | None = None
        self._tail = b""
        self._logged = 0
        self._chores: set[asyncio.Task[None]] = set()
        self._paused = False
        self._unanswered = 0
        self._heard_at = clock.monotonic()
        self.alive = True
        self.functions: Mapping[str, bool] = {}

    @classmethod
    async def start(
        cls, clock: Clock, apps: Sequence[str], environment: Mapping[str, str], *, together: bool
    ) -> "Host":
        """Start one, and wait until it has imported the apps.

        Raises:
            ConfigInvalid: an app cannot be loaded.
            OSError: the node cannot start a process just now.
        """
        host = cls(clock, together=together)
        await host._spawn(apps, environment)
        try:
            async with clock.timeout(START_SECONDS):
                host.functions = await host._ready
        except TimeoutError:
            await finish(host.kill("It was ended."))
            raise ConfigInvalid(f"The apps were not loaded after {START_SECONDS:g} s: {', '.join(apps)}.") from None
        except BaseException:
            await finish(host.kill("It was ended."))
            raise
        return host

    def call(self, assignment: Assignment, env: Mapping[str, str], io: AttemptIO) -> HostCall:
        """Begin a call. `end` has to follow."""
        if not self._together:
            self._drain()  # what was written before is not this call's
            self._resume()
        spec, hold = assignment.spec, assignment.hold
        call = HostCall(next(_numbers), io, spec.output_limit_bytes, self._taken)
        self._calls[call.number] = call
        arguments = msgspec.json.encode(spec.arguments)
        said = wire.Call(call.number, spec.function or "", arguments, hold.task, assignment.attempt, hold.fence, env)
        self._channel.send(said)
        if not self.alive:
            self._lose(call)
        return call

    async def end(self, call: HostCall) -> None:
        """Return when no code of the call runs any more; where it does not end by itself, that takes the host."""
        if call.number not in self._calls:
            return
        if not self._together:
            await self.kill("It was stopped.")
            return
        call.ended = self._loop.create_future()
        self._channel.send(wire.Stop(call.number))
        try:
            async with self._clock.timeout(STOP_SECONDS):
                await call.ended
        except TimeoutError:
            await self.kill(f"Another call in this host process did not stop within {STOP_SECONDS:g} s.")

    async def kill(self, reason: str) -> None:
        """End it and all that grew out of it; returns when nothing is left. Its calls end as `Lost` for this reason."""
        self.alive = False
        self._reason = self._reason or reason
        await self._end_family()
        await asyncio.shield(self._exit)

    async def _end_family(self) -> None:
        """Kill it and all that grew out of it, in a thread."""
        killed, left = await self._loop.run_in_executor(None, guardian.end, self._family)
        if left:
            log.warning("processes of host process %d could not be ended: %s", self.pid, sorted(left))
        for pid in killed - CHILDREN.own:
            CHILDREN.reap(pid)

    def _family(self) -> set[int]:
        table = guardian.processes()
        table.pop(os.getpid(), None)
        found = guardian.marked(f"{MARK}={self._mark}", table) | self._child.orphans(table)
        if not self._child.reaped:  # afterwards the number may be a stranger's
            found |= {pid for pid, (_, group, session) in table.items() if self.pid in (group, session)}
        return guardian.grown(table, found)

    @property
    def gone(self) -> bool:
        """Whether nothing of it is left."""
        return self._exit.done()

    def state(self) -> HostState:
        """How it is."""
        silent = self._clock.monotonic() - self._heard_at
        return HostState(self.pid, self._together, len(self._calls), silent)

    # ------------------------------------------------------------------ its life

    async def _spawn(self, apps: Sequence[str], environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        life, self._life = os.pipe()
        outputs = {"stdout": os.pipe(), "stderr": os.pipe()}
        folders = dict.fromkeys([*(folder or os.getcwd() for folder in sys.path), os.getcwd()])
        argv = [sys.executable, "-P", "-m", "retinue.node.host", f"--control={theirs.fileno()}", f"--life={life}"]
        argv += [f"--path={folder}" for folder in folders] + [f"--app={app}" for app in apps]
        argv += ["--together"] if self._together else []
        self._pipes = {stream: mine for stream, (mine, _) in outputs.items()}
        try:
            self._child = Child(
                self._loop,
                argv,
                stdin=subprocess.DEVNULL,
                stdout=outputs["stdout"][1],
                stderr=outputs["stderr"][1],
                pass_fds=(theirs.fileno(), life),
                env={**environment, MARK: self._mark},
            )
        except BaseException:
            ours.close()
            self._close_pipes()
            raise
        finally:
            theirs.close()
            for descriptor in (life, outputs["stdout"][1], outputs["stderr"][1]):
                os.close(descriptor)
        self.pid = self._child.pid
        self._channel = wire.Channel(self._loop, ours, wire.TO_NODE, self._heard, self._control_ended)
        for stream, descriptor in self._pipes.items():
            os.set_blocking(descriptor, False)
            self._listen(stream, descriptor)
        self._exit = self._loop.create_task(self._until_exit())
        if self._together:
            self._chore(self._watched())

    async def _until_exit(self) -> None:
        code = await self._child.exit
        self.alive = False
        for task in list(self._chores):
            task.cancel()
        await self._end_family()
        self._child.reap()
        self._child.forget()
        self._channel.drain()
        self._channel.close()
        self._drain()
        self._close_pipes()
        self._reason = self._reason or _how(code)
        if not self._ready.done():
            self._ready.set_exception(ConfigInvalid(f"The apps cannot be loaded: {self._reason} {self._last_words()}"))
            self._ready.exception()  # it may be that nobody waits any more
        for call in list(self._calls.values()):
            self._lose(call)

    async def _watched(self) -> None:
        """While it has calls, ask each second whether its loop turns."""
        while True:
            await self._clock.sleep(PING_SECONDS)
            if not self.alive:
                return
            if not self._calls:
                self._unanswered = 0
            elif self._unanswered < MOST_UNANSWERED:
                self._unanswered += 1
                self._channel.send(wire.Ping())
            else:
                self.alive = False
                self._signal(signal.SIGUSR2)  # it writes to stderr where it is stuck
                await self._clock.sleep(0.2)
                self._exit_soon("A function kept the event loop of its host process busy for more than 5 s; use `def`.")
                return

    def _exit_soon(self, reason: str) -> None:
        """Kill it from a callback; `_exit` ends soon."""
        self.alive = False
        self._reason = self._reason or reason
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def _control_ended(self, reason: str) -> None:
        if self.alive:
            self.alive = False
            self._chore(self._hang_up(reason))

    async def _hang_up(self, reason: str) -> None:
        if not reason:  # most likely it has ended, and how is about to be told
            await self._clock.sleep(HANG_UP_SECONDS)
        self._exit_soon(f"The host process was ended, as {reason or 'it had closed its connection'}.")

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside, for as long as the process lives."""
        task = self._loop.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # ------------------------------------------------------------------ what it says

    def _heard(self, message: wire.ToNode) -> None:
        self._heard_at = self._clock.monotonic()
        if isinstance(message, wire.Ready):
            self._settle(message.functions)
        elif isinstance(message, wire.Unready):
            self._settle(ConfigInvalid(message.error))
        elif isinstance(message, wire.Pong):
            self._unanswered = 0
        elif (call := self._calls.get(message.call)) is not None:
            if isinstance(message, wire.Wrote):
                call.wrote(message.stream if message.stream == "stderr" else "stdout", message.data)
                if call.waiting > 2 * wire.OUTPUT_CREDIT:
                    self._control_ended("it did not keep to its credit")
            elif isinstance(message, wire.Told):
                call.io.progress(message.progress)
            else:
                self._ended(call, message)

    def _settle(self, ready: Mapping[str, bool] | ConfigInvalid) -> None:
        if self._ready.done():
            return
        if isinstance(ready, ConfigInvalid):
            self._ready.set_exception(ready)
        else:
            self._ready.set_result(ready)

    def _ended(self, call: HostCall, outcome: wire.Returned | wire.Raised) -> None:
        if not self._together:
            self._drain()  # it flushed before it said so
        del self._calls[call.number]
        if isinstance(outcome, wire.Raised):
            if outcome.traceback:
                call.wrote("stderr", outcome.traceback.encode(errors="backslashreplace"))
            if outcome.last:
                self.alive = False
        call.end(outcome)

    def _lose(self, call: HostCall) -> None:
        if self._calls.pop(call.number, None) is not None:
            if self._together and self._tail:
                call.wrote("stderr", b"The last that the host process wrote itself:\n" + self._tail)
            call.end(Lost(self._reason or "The host process ended."))

    def _taken(self, call: HostCall, size: int) -> None:
        if self._together:
            if call.number in self._calls:
                self._channel.send(wire.Taken(call.number, size))
        elif call.waiting <= MOST_WAITING:
            self._resume()

    # ------------------------------------------------------------------ its raw output

    def _listen(self, stream: str, descriptor: int) -> None:
        self._loop.add_reader(descriptor, self._readable, stream)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            for stream, descriptor in self._pipes.items():
                self._listen(stream, descriptor)

    def _readable(self, stream: str) -> bool:
        """Read once; whether there may be more."""
        descriptor = self._pipes.get(stream)
        if descriptor is None:
            return False
        try:
            data = os.read(descriptor, PIECE)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            del self._pipes[stream]
            return False
        call = None if self._together else next(iter(self._calls.values()), None)
        if call is not None:
            call.wrote(stream, data)
            if call.waiting > MOST_WAITING:
                self._paused = True
                for one in self._pipes.values():
                    self._loop.remove_reader(one)
        else:
            self._note(stream, descriptor, data)
        return True

    def _note(self, stream: str, descriptor: int, data: bytes) -> None:
        """Output that is no call's: the node's log has it, up to a limit."""
        self._tail = (self._tail + data)[-TAIL:]
        if self._logged < LOGGED:
            self._logged += len(data)
            more = "" if self._logged < LOGGED else " (no more of it is logged)"
            log.info("host process %d wrote to %s: %s%s", self.pid, stream, data.decode(errors="replace"), more)
        elif self.alive:
            self._loop.remove_reader(descriptor)
            self._chore(self._listen_later(stream, descriptor))

    async def _listen_later(self, stream: str, descriptor: int) -> None:
        await self._clock.sleep(0.05)
        if self._pipes.get(stream) == descriptor:
            self._listen(stream, descriptor)

    def _drain(self) -> None:
        """Take what stands in the pipes: at most what fits into them, as others may go on writing."""
        for stream in list(self._pipes):
            for _ in range(16):
                if not self._readable(stream):
                    break

    def _close_pipes(self) -> None:
        for descriptor in self._pipes.values():
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._pipes = {}
        os.close(self._life)

    def _last_words(self) -> str:
        return self._tail.decode(errors="replace").strip()[-500:]


def _how(code: int) -> str:
    if code >= 0:
        return f"The host process ended with exit code {code} during the call."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = "; perhaps memory ran out" if -code == signal.SIGKILL else ""
    return f"The host process was ended by {name} during the call{hint}."
