"""The function runner: an attempt as a call of a Python function in a host process, never in the node's own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from retinue.client.frames import Assignment
from retinue.clock import Clock
from retinue.errors import ConfigInvalid
from retinue.node.guardian import BOOT
from retinue.node.runners import wire
from retinue.node.runners.calls import HostCall, Outcome
from retinue.node.runners.finish import finish
from retinue.node.runners.hosts import Host, HostState
from retinue.node.runners.process import OURS, PASSED, PASSED_PREFIX, TIMED_OUT
from retinue.node.runners.runner import AttemptIO, NodeFacts
from retinue.tasks.model import Ending, FailureCode, TaskSpec


class FunctionRunner:
    """Runs `spec.function` (`Runner`). Call `close` at the end.

    `apps` are modules and paths of scripts; only functions that they register can be called. An `async def` runs beside
    others in one host process, a `def` alone in one of up to `workers`. Hosts start when they are needed and stay warm;
    one that ends, or has to be ended, takes its calls with it (`HOST_LOST`) and is replaced at the next call.
    """

    def __init__(self, clock: Clock, facts: NodeFacts, apps: Sequence[str], *, workers: int, boot: str) -> None:
        self._clock = clock
        self._facts = facts
        self._apps = list(apps)
        self._functions: Mapping[str, bool] | None = None  # name, and whether it is an `async def`
        self._hosts: set[Host] = set()
        self._idle: list[Host] = []
        self._free = asyncio.Semaphore(workers)
        self._together: Host | None = None
        self._starting = asyncio.Lock()
        self._environment = {
            **{name: value for name, value in facts.environment.items() if _passes(name)},
            "RETINUE_NODE": facts.name,
            BOOT: boot,  # by which the guardian finds what a host leaves behind when the node dies
        }

    async def capabilities(self) -> list[str]:
        """`function:NAME` of each function of the apps. Starts a host process, which stays.

        Raises:
            ConfigInvalid: an app cannot be loaded.
            OSError: the node cannot start a process just now.
        """
        return sorted(f"function:{name}" for name in await self._known())

    async def run(self, assignment: Assignment, io: AttemptIO) -> Ending:
        name = assignment.spec.function or ""
        try:
            is_async = (await self._known()).get(name)
        except (ConfigInvalid, OSError) as problem:
            return _no_host(problem)
        if is_async is None:
            error = f"No app of this node has a function {name}."
            return Ending(ok=False, error=error, code=FailureCode.FUNCTION_ERROR, retryable=False)
        if is_async:
            return await self._call_in(self._shared, assignment, io)
        async with self._free:
            return await self._call_in(self._alone, assignment, io)

    def hosts(self) -> list[HostState]:
        """The host processes that run, oldest first."""
        return sorted((host.state() for host in self._hosts if host.alive), key=lambda state: state.pid)

    async def close(self) -> None:
        """End all host processes and the calls in them."""
        hosts = [host for host in self._hosts if not host.gone]
        await asyncio.gather(*(finish(host.kill("The node was stopped.")) for host in hosts))

    async def _call_in(self, host_for: Callable[[], Awaitable[Host]], assignment: Assignment, io: AttemptIO) -> Ending:
        try:
            host = await host_for()
        except (ConfigInvalid, OSError) as problem:
            return _no_host(problem)
        try:
            return await self._call(host, assignment, io)
        finally:
            if host.alive and host is not self._together:
                self._idle.append(host)

    async def _call(self, host: Host, assignment: Assignment, io: AttemptIO) -> Ending:
        spec = assignment.spec
        call = host.call(assignment, self._variables(spec), io)
        io.started()
        try:
            outcome = await self._outcome(host, call, spec.timeout_seconds)
            await call.handed_on()
        except BaseException:
            call.drop()
            await finish(host.end(call))
            raise
        if outcome is None:
            error = f"The function ran longer than its timeout of {spec.timeout_seconds:g} s and was ended."
            return Ending(ok=False, exit_code=TIMED_OUT, error=error, code=FailureCode.TIMEOUT)
        return _ending(outcome)

    async def _outcome(self, host: Host, call: HostCall, timeout: float | None) -> Outcome | None:
        """What it came to; None when its time ran out and it had to be ended."""
        if timeout is None:
            return await call.ended
        try:
            async with self._clock.timeout(timeout):
                return await call.ended
        except TimeoutError:
            await finish(host.end(call))
            return None

    async def _known(self) -> Mapping[str, bool]:
        if self._functions is None:
            async with self._starting:
                if self._functions is None:
                    host = await self._start(together=False)
                    if all(host.functions.values()):
                        await finish(host.kill("It was not needed."))
                    else:
                        self._idle.append(host)
        functions = self._functions
        return functions if functions is not None else {}

    async def _alone(self) -> Host:
        while self._idle:
            host = self._idle.pop()
            if host.alive:
                return host
        return await self._start(together=False)

    async def _shared(self) -> Host:
        if self._together is None or not self._together.alive:
            async with self._starting:
                if self._together is None or not self._together.alive:
                    self._together = await self._start(together=True)
        return self._together

    async def _start(self, *, together: bool) -> Host:
        self._hosts = {host for host in self._hosts if not host.gone}
        host = await Host.start(self._clock, self._apps, self._environment, together=together)
        self._hosts.add(host)
        self._functions = host.functions  # an app may have been edited since the last start
        return host

    def _variables(self, spec: TaskSpec) -> dict[str, str]:
        """The task's own variables: those of the node that it names, and those that it sets."""
        node = self._facts.environment
        return {
            **{name: node[name] for name in spec.pass_env if name in node and not name.startswith(OURS)},
            **spec.env,
        }


def _passes(name: str) -> bool:
    return (name in PASSED or name.startswith(PASSED_PREFIX)) and not name.startswith(OURS)


def _no_host(problem: ConfigInvalid | OSError) -> Ending:
    if isinstance(problem, ConfigInvalid):
        return Ending(ok=False, error=problem.message, code=FailureCode.HOST_LOST)
    error = f"This node cannot start a host process just now: {problem.strerror}."
    return Ending(ok=False, error=error, code=FailureCode.NODE_EXHAUSTED)


def _ending(outcome: Outcome) -> Ending:
    if isinstance(outcome, wire.Returned):
        return Ending(ok=True, result=msgspec.msgpack.decode(outcome.result))
    if isinstance(outcome, wire.Raised):
        return Ending(ok=False, error=outcome.error, code=FailureCode.FUNCTION_ERROR, retryable=outcome.retryable)
    return Ending(ok=False, error=outcome.error, code=FailureCode.HOST_LOST)
