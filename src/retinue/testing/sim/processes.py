"""Scripted programs: they run, hang, flood, die, ignore TERM or say nothing, and each real start is on record."""

import asyncio
from collections import deque
from pathlib import Path
from signal import SIGKILL, SIGTERM

from retinue.errors import CommandNotFound
from retinue.node.processes import Launch
from retinue.testing.sim.history import History
from retinue.testing.sim.host import Incarnation, resolve
from retinue.testing.sim.loop import WORLD

PROGRAMS = ("run", "fail", "hang", "deaf", "flood", "quiet", "die", "echo")


def command(kind: str, seconds: float, label: str) -> list[str]:
    """The argv of a scripted program: `run` prints and exits 0, `fail` exits 3, `hang` never ends, `deaf` also ignores
    TERM, `flood` prints a lot, `quiet` exits 0 with nothing, `die` is killed,
    `echo` gives back its input."""
    return ["sim", kind, f"{seconds:g}", label]


class Outside:
    """All programs that really run, on every machine: what the fleet did to the world and cannot take back."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.live: dict[int, Program] = {}
        self.started = 0

    def of(self, own: Incarnation) -> "SimProcesses":
        """The processes port of one node process."""
        return SimProcesses(self, own)


class SimProcesses:
    """The `Processes` port of one node process. When the node dies its programs die, as with a death signal."""

    def __init__(self, outside: Outside, own: Incarnation) -> None:
        self._outside = outside
        self._own = own

    async def start(self, launch: Launch) -> "Program":
        """Start a scripted program, for real as far as the simulated world goes."""
        await self._own.call()
        if not self._own.alive:
            await self._own.never()
        argv = list(launch.argv)
        if len(argv) != 4 or argv[0] != "sim" or argv[1] not in PROGRAMS:
            raise CommandNotFound(command=argv[0])
        return Program(self._outside, self._own, launch, argv[1], float(argv[2]), argv[3])

    async def discard(self, folder: Path) -> None:
        """Nothing is on a disk."""
        await self._own.call()

    async def close(self) -> None:
        """What runs is ended by its runner, or dies with the node."""


class Program:
    """One scripted program that runs."""

    def __init__(
        self, outside: Outside, own: Incarnation, launch: Launch, kind: str, seconds: float, label: str
    ) -> None:
        outside.started += 1
        self.pid = outside.started
        self.kind = kind
        self.label = label
        self.code: int | None = None
        self._outside = outside
        self._own = own
        self._output: deque[tuple[str, bytes]] = deque()
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._reader: asyncio.Future[None] | None = None
        self._seconds = seconds
        outside.live[self.pid] = self
        outside.history.note(
            "program", own.host.name, own.number, pid=self.pid, label=label, program=kind,
            task=launch.env.get("RETINUE_TASK"), fence=launch.env.get("RETINUE_FENCE"),
        )  # fmt: skip
        own.ends.append(self._orphaned)
        loop = own.loop
        if kind in ("run", "fail"):
            self._output.append(("stdout", f"{label} begins\n".encode()))
        if kind == "flood":
            self._output.extend([("stdout", b"x" * 4096)] * 20)
        if kind not in ("hang", "deaf", "echo"):
            code = {"fail": 3, "die": -SIGKILL}.get(kind, 0)
            loop.after(seconds, WORLD, self._end, code)

    def _end(self, code: int) -> None:
        """It ends in the world; its node hears of it when it can."""
        if self.code is not None:
            return
        self.code = code
        del self._outside.live[self.pid]
        self._outside.history.note("program-ended", self._own.host.name, self._own.number, pid=self.pid, code=code)
        if self.kind == "run":
            self._output.append(("stdout", f"{self.label} ends\n".encode()))
        self._own.loop.after(0.0, self._own, self._heard)

    def _heard(self, _: object) -> None:
        self._closed = True
        if self._reader is not None:
            resolve(self._reader)
        for waiter in self._waiters:
            resolve(waiter)
        self._waiters.clear()

    def shoot(self) -> None:
        """Somebody on that machine kills it."""
        self._end(-SIGKILL)

    def _orphaned(self, power_cut: bool) -> None:
        self._end(-SIGKILL)

    async def read(self) -> tuple[str, bytes] | None:
        """The next output; None at its end."""
        await self._own.call()
        while not self._output:
            if self._closed and self._own.alive:
                return None
            self._reader = self._own.loop.create_future()
            await self._reader
        return self._output.popleft()

    async def write(self, data: bytes) -> bool:
        """Only `echo` reads its input."""
        await self._own.call()
        if self.code is not None:
            return False
        if self.kind == "echo":
            self._output.append(("stdout", data))
            if self._reader is not None:
                resolve(self._reader)
        return True

    async def end_input(self) -> None:
        """`echo` ends at the end of its input."""
        await self._own.call()
        if self.kind == "echo" and self._own.alive:
            self._own.loop.after(self._seconds, WORLD, self._end, 0)

    async def wait(self) -> int:
        """Its exit code, once it has ended and the node heard of it."""
        while not self._closed or not self._own.alive:
            waiter = self._own.loop.create_future()
            self._waiters.append(waiter)
            await waiter
        return self.code or 0

    def terminate(self) -> None:
        """TERM: a deaf one does not hear it."""
        if self._own.alive and self.kind != "deaf":
            self._own.loop.after(0.01, WORLD, self._end, -SIGTERM)

    async def kill(self) -> None:
        """KILL: nothing escapes it."""
        await self._own.call()
        if not self._own.alive:
            await self._own.never()
        self._end(-SIGKILL)
