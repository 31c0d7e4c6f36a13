"""The process runner: an attempt as a command of its own, with its output, input, environment, folder and limits."""

import asyncio
import signal
from collections import deque
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from retinue.client.frames import Assignment
from retinue.clock import Clock
from retinue.errors import CommandNotFound
from retinue.node.processes import Launch, Processes, Running
from retinue.node.runners.finish import finish
from retinue.node.runners.runner import AttemptIO, NodeFacts
from retinue.tasks.model import Ending, FailureCode, TaskSpec

# What a command gets of its node's environment: what a person's own shell would give it to find programs, libraries,
# its home and its way out. Everything else has to be named (`pass_env`), or may be a secret of the node's.
# fmt: off
PASSED: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "COLORTERM", "TMPDIR", "TMP", "TEMP",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR",
})
# fmt: on
PASSED_PREFIX: Final = "LC_"
OURS: Final = "RETINUE_"

GRACE_SECONDS: Final = 5.0  # from asking a program to end to ending it
PIECE: Final = 64 * 1024

TIMED_OUT: Final = 124
COULD_NOT_RUN: Final = 125
SIGNALLED: Final = 128


class ProcessRunner:
    """Runs `spec.command` on this node (`Runner`).

    The command gets an empty folder, gone afterwards, and the environment of `environment`. Everything it started is
    ended with it: a job it leaves in the background does not outlive it.
    """

    def __init__(self, processes: Processes, clock: Clock, facts: NodeFacts) -> None:
        self._processes = processes
        self._clock = clock
        self._facts = facts

    async def run(self, assignment: Assignment, io: AttemptIO) -> Ending:
        spec, attempt = assignment.spec, assignment.attempt
        if Path(attempt).name != attempt or attempt in ("", ".", ".."):  # it names a folder that will be removed
            return Ending(ok=False, code=FailureCode.POLICY, error="The attempt's id is not one.", retryable=False)
        if not spec.command:
            return _not_started("The task names no command.")
        folder = self._facts.folder / attempt
        launch = Launch(spec.command, environment(assignment, self._facts), folder, stdin=spec.stdin)
        try:
            try:
                running = await self._processes.start(launch)
            except CommandNotFound as error:
                return _not_started(error.message)
            except OSError as error:
                return _exhausted(error)
            return await self._follow(running, spec, io)
        finally:
            await finish(self._processes.discard(folder))

    async def _follow(self, running: Running, spec: TaskSpec, io: AttemptIO) -> Ending:
        broken: list[Exception] = []
        copy = asyncio.create_task(_carry(running, _copy(running, io, spec.output_limit_bytes), broken))
        carriers = [copy]
        if spec.stdin:
            carriers.append(asyncio.create_task(_carry(running, _pump(running, io), broken)))
        try:
            io.started()
            code = await self._exit_code(running, spec.timeout_seconds)
            await finish(running.kill())
            await copy
        except asyncio.CancelledError:
            await self._ask_to_end(running)
            raise
        finally:
            try:
                await finish(running.kill())
            finally:
                for carrier in carriers:
                    carrier.cancel()
                await asyncio.gather(*carriers, return_exceptions=True)
        if broken:
            raise broken[0]
        return _ending(code, spec.timeout_seconds)

    async def _exit_code(self, running: Running, timeout: float | None) -> int | None:
        """How it ended by itself; None when its time ran out and it had to be ended."""
        try:
            async with self._clock.timeout(timeout):
                return await running.wait()
        except TimeoutError:
            await self._ask_to_end(running)
            return None

    async def _ask_to_end(self, running: Running) -> None:
        running.terminate()
        try:
            async with self._clock.timeout(GRACE_SECONDS):
                await running.wait()
        except TimeoutError:
            pass  # it is killed next


def environment(assignment: Assignment, facts: NodeFacts) -> dict[str, str]:
    """A command's whole environment: `PASSED`, `pass_env`, `env`, and who it is.

    No `RETINUE_…` of the node reaches it, named or not: they hold its address and tokens.
    `RETINUE_IDEMPOTENCY_KEY` is the same for every attempt of the task, `RETINUE_FENCE` grows with each.
    """
    spec, hold = assignment.spec, assignment.hold
    wanted = PASSED.union(spec.pass_env)
    passed = {
        name: value
        for name, value in facts.environment.items()
        if (name in wanted or name.startswith(PASSED_PREFIX)) and not name.startswith(OURS)
    }
    return {
        **passed,
        **spec.env,
        "RETINUE_TASK": hold.task,
        "RETINUE_ATTEMPT": assignment.attempt,
        "RETINUE_FENCE": str(hold.fence),
        "RETINUE_IDEMPOTENCY_KEY": hold.task,
        "RETINUE_NODE": facts.name,
    }


class HeadAndTail:
    """Output within a limit: the first half passes at once, of the rest the last half is kept until the end.

    One limit for both streams. When they compete for the tail, the longer one gives way, so that a few lines of
    errors outlive any flood.
    """

    def __init__(self, limit: int) -> None:
        self._head = limit - limit // 2
        self._tail = limit // 2
        self._kept: dict[str, deque[bytearray]] = {}
        self._sizes: dict[str, int] = {}
        self._lost: dict[str, int] = {}

    def take(self, stream: str, data: bytes) -> bytes:
        """The part that passes now."""
        passing = data[: self._head]
        self._head -= len(passing)
        if len(passing) < len(data):
            self._keep(stream, data[len(passing) :])
        return passing

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """At the end: what was kept, after a line that says how much was not."""
        for stream, pieces in self._kept.items():
            if lost := self._lost.get(stream):
                yield stream, f"\n[… {lost:,} bytes left out …]\n".encode()
            while pieces:
                yield stream, bytes(pieces.popleft())

    def _keep(self, stream: str, data: bytes) -> None:
        pieces = self._kept.setdefault(stream, deque())
        # Byte by byte written output must not cost an object per byte.
        if pieces and len(pieces[-1]) + len(data) <= PIECE:
            pieces[-1] += data
        else:
            pieces.append(bytearray(data))
        self._sizes[stream] = self._sizes.get(stream, 0) + len(data)
        while (over := sum(self._sizes.values()) - self._tail) > 0:
            longer = max(self._sizes, key=self._sizes.__getitem__)
            first = self._kept[longer][0]
            gone = min(over, len(first))
            del first[:gone]
            if not first:
                self._kept[longer].popleft()
            self._sizes[longer] -= gone
            self._lost[longer] = self._lost.get(longer, 0) + gone


async def _copy(running: Running, io: AttemptIO, limit: int) -> None:
    window = HeadAndTail(limit)
    while (read := await running.read()) is not None:
        stream, data = read
        if passing := window.take(stream, data):
            await io.output(stream, passing)
    for stream, data in window.rest():
        await io.output(stream, data)


async def _pump(running: Running, io: AttemptIO) -> None:
    while data := await io.input():
        if not await running.write(data):
            return  # it wants no more, which is its right
    await running.end_input()


async def _carry(running: Running, work: Coroutine[Any, Any, None], broken: list[Exception]) -> None:
    """Carry output or input. When that breaks, the program is ended: unheard or on half its input it is no use."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - raised again by whoever awaits the program
        broken.append(error)
        await running.kill()


def _not_started(error: str) -> Ending:
    code = FailureCode.COMMAND_NOT_FOUND
    return Ending(ok=False, exit_code=COULD_NOT_RUN, error=error, code=code, retryable=False)


def _exhausted(problem: OSError) -> Ending:
    error = f"This node cannot start any command just now: {problem.strerror}."
    return Ending(ok=False, exit_code=COULD_NOT_RUN, error=error, code=FailureCode.NODE_EXHAUSTED)


def _ending(code: int | None, timeout: float | None) -> Ending:
    if code is None:
        error = f"The command ran longer than its timeout of {timeout:g} s and was ended."
        return Ending(ok=False, exit_code=TIMED_OUT, error=error, code=FailureCode.TIMEOUT)
    if code == 0:
        return Ending(ok=True, exit_code=0)
    if code > 0:
        return Ending(
            ok=False, exit_code=code, error=f"The command ended with exit code {code}.", code=FailureCode.EXIT
        )
    error = f"The command was ended by signal {-code} ({_signal_name(-code)})."
    return Ending(ok=False, exit_code=SIGNALLED - code, error=error, code=FailureCode.EXIT)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number >= signal.SIGRTMIN else "unknown"
