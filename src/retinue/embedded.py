"""Everything in this process: a coordinator and a node on a data directory, with nothing to set up or to start."""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom  # noqa: TID251 - the production end of the port
from typing import Any, Literal, TypeVar

import psutil
from platformdirs import user_state_path

from retinue.client.client import Fleet
from retinue.client.link import Link
from retinue.clock import SystemClock
from retinue.coordinator.app import Coordinator, Timing
from retinue.coordinator.datadir import DataDir
from retinue.coordinator.door import LocalTransport
from retinue.coordinator.interface import Interface
from retinue.coordinator.looking import Looking, open_looking
from retinue.coordinator.opening import abandon_boot, abandon_nodes, open_coordinator
from retinue.errors import DataDirHeld, StoreBroken
from retinue.node.daemon import Node, NodeSettings
from retinue.node.runners.function import FunctionRunner
from retinue.node.runners.process import ProcessRunner
from retinue.node.runners.runner import NodeFacts, Runner
from retinue.node.runners.system import SystemProcesses
from retinue.nodes.model import RESERVED
from retinue.nodes.resources import Resources
from retinue.routes import Caller
from retinue.tasks.prune import Retention

T = TypeVar("T")
LOCAL = "local"  # the principal of whoever may use the data directory
PATIENCE = 5.0  # seconds to wait for a process that holds the data directory only for a moment
Serve = Literal["all", "own", "nothing"]


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """Where it keeps its data and what its node offers."""

    data_dir: Path = field(default_factory=lambda: user_state_path("retinue"))
    store_url: str | None = None  # None: SQLite in the data directory
    node: str = field(default_factory=lambda: platform.node().split(".")[0] or "local")
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    labels: dict[str, str] = field(default_factory=dict)
    apps: Sequence[str] = ()
    retention: Retention = field(default_factory=Retention)
    timing: Timing = field(default_factory=Timing)
    serve: Serve = "all"


class Embedded:
    """A running coordinator and, unless it serves nothing, a node. `stop` ends every attempt first and leaves nothing
    behind. One that serves its `own` runs only tasks that require what `requires` says."""

    def __init__(self, data_dir: DataDir, coordinator: Coordinator, settings: EmbeddedSettings) -> None:
        self._data_dir = data_dir
        self.coordinator = coordinator
        clock = coordinator.ports.clock
        folder = data_dir.node(settings.node)
        boot = coordinator.ids.new("boot")
        facts = NodeFacts(settings.node, folder / "work", dict(os.environ))
        self.processes = SystemProcesses(boot)
        runners: dict[str, Runner] = {"process": ProcessRunner(self.processes, clock, facts)}
        self.functions = (
            FunctionRunner(clock, facts, settings.apps, workers=settings.workers, boot=boot) if settings.apps else None
        )
        if self.functions is not None:
            runners["function"] = self.functions
        self._settings = settings
        self._runners = runners
        self._boot = boot
        self.requires = [f"{RESERVED}{boot}"] if settings.serve == "own" else []
        self.node: Node | None = None
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, settings: EmbeddedSettings) -> "Embedded":
        """Open the data directory and serve.

        Raises:
            DataDirHeld: another process uses it. ConfigInvalid, StoreNewer, StoreBehind, StoreNotDurable, Unavailable.
        """
        data_dir = DataDir(settings.data_dir)
        await _hold(data_dir, brief=settings.serve == "nothing")
        try:
            coordinator = open_coordinator(
                data_dir,
                settings.store_url,
                SystemClock(),
                SystemRandom(),
                timing=settings.timing,
                retention=settings.retention,
            )
            embedded = cls(data_dir, coordinator, settings)
            try:
                await coordinator.start()
                if coordinator.settings.alone:
                    await abandon_nodes(coordinator)
                if settings.serve != "nothing":
                    await embedded._start_node()
            except BaseException:
                await embedded.stop()
                raise
        except BaseException:
            data_dir.release()
            raise
        return embedded

    async def _start_node(self) -> None:
        s, coordinator = self._settings, self.coordinator
        if self.functions is not None:
            self.processes.guard()  # before the first host process, and also if no command ever runs
        functions = await self.functions.capabilities() if self.functions is not None else []
        memory = psutil.virtual_memory().total // (1024 * 1024)
        node = NodeSettings(
            name=s.node,
            workers=s.workers,
            labels=s.labels,
            capabilities=("local_filesystem", f"os:{platform.system().lower()}", *functions, *self.requires),
            resources=Resources(cpu=float(os.cpu_count() or 1), memory_mb=memory),
        )

        async def dial() -> Link:
            return coordinator.connect()

        if not coordinator.settings.alone:
            await self._replace_boot(s.node)
        self.node = Node(node, self._boot, coordinator.ports.clock, coordinator.ports.random, dial, self._runners)
        self._running = asyncio.get_running_loop().create_task(self.node.run(), name="node")
        connected = asyncio.get_running_loop().create_task(self.node.connected.wait())
        await asyncio.wait([connected, self._running], return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            connected.cancel()
            self._running.result()

    async def _replace_boot(self, name: str) -> None:
        """Give back at once what the last process of this node held if it was killed: we hold its data directory, so it
        is gone, which others that use the same server can only tell by its lease."""
        note = self._data_dir.node(name) / "boot"
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if note.exists():
            await abandon_boot(self.coordinator, name, note.read_text().strip())
        beside = note.with_name(".boot")
        beside.write_text(self._boot)
        beside.replace(note)

    def transport(self) -> LocalTransport:
        """How a client inside this process speaks to it."""
        return LocalTransport(Interface(self.coordinator), Caller(self.coordinator.team, LOCAL))

    async def idle(self) -> None:
        """Return when no attempt runs any more: the cancelled ones have had their time to end by themselves."""
        if self.node is not None:
            works = [attempt.work for attempt in self.node.executor.attempts.values() if attempt.work is not None]
            await asyncio.gather(*works, return_exceptions=True)

    async def stop(self) -> None:
        """End every attempt and its processes, commit what waits, give the data directory back.

        Raises:
            StoreBroken: the disk had refused to make a commit durable.
        """
        if self.node is not None:
            await self.node.stop()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self.functions is not None:
            await self.functions.close()
        await self.processes.close()
        await self.coordinator.stop()
        self._data_dir.release()
        if self.coordinator.broken is not None:
            raise StoreBroken(**self.coordinator.broken.details)


async def _hold(data_dir: DataDir, *, brief: bool) -> None:
    """Hold it; when who holds it will soon be done, wait for that."""
    clock = SystemClock()
    until = clock.monotonic() + PATIENCE
    while True:
        try:
            data_dir.hold(brief=brief)
        except DataDirHeld as error:
            if not error.details.get("brief", True) or clock.monotonic() > until:
                raise
            await clock.sleep(0.02)
        else:
            return


class LookingTransport(LocalTransport):
    """`Transport` that only reads, whoever holds the data directory; `note` says what it looks at."""

    def __init__(self, looking: Looking, note: str | None) -> None:
        super().__init__(Interface(looking), Caller(looking.team, LOCAL))
        self._looking = looking
        self.note = note

    @classmethod
    async def start(cls, settings: EmbeddedSettings) -> "LookingTransport":
        """Open the store for reading. No node is started and nothing that waits is run.

        Raises:
            StoreNewer, Unavailable: it cannot be read.
        """
        return cls(*await open_looking(settings.data_dir, settings.store_url, SystemClock(), SystemRandom()))

    async def close(self) -> None:
        await self._looking.stop()


class EmbeddedTransport:
    """`Transport` to a coordinator that starts with the client and ends with it."""

    def __init__(self, settings: EmbeddedSettings) -> None:
        self._settings = settings
        self._embedded: Embedded | None = None
        self._inner: LocalTransport | None = None

    async def open(self) -> None:
        self._embedded = await Embedded.start(self._settings)
        self._inner = self._embedded.transport()

    async def call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        key: str | None = None,
    ) -> T:
        return await self._opened().call(method, path, kind, query=query, body=body, key=key)

    def stream(self, path: str, kind: type[T], *, query: Mapping[str, str] | None = None) -> AsyncIterator[T]:
        return self._opened().stream(path, kind, query=query)

    async def close(self) -> None:
        if self._embedded is not None:
            await self._embedded.stop()

    def _opened(self) -> LocalTransport:
        if self._inner is None:
            raise RuntimeError("enter the fleet first: async with retinue.connect() as fleet: …")
        return self._inner


def connect(
    *,
    data_dir: Path | str | None = None,
    store_url: str | None = None,
    apps: Sequence[str] | None = None,
    workers: int | None = None,
) -> Fleet:
    """A fleet of this machine: a coordinator and a node inside this process, on a data directory.

    `apps` are modules whose `@retinue.task` functions its node runs; None takes those registered so far.
    """
    from retinue.agent.function import app_modules

    registered = app_modules()  # also refuses a script that a host process is importing just now
    settings = EmbeddedSettings(apps=registered if apps is None else apps)
    if data_dir is not None:
        settings = replace(settings, data_dir=Path(data_dir))
    if store_url is not None:
        settings = replace(settings, store_url=store_url)
    if workers is not None:
        settings = replace(settings, workers=workers)
    return Fleet(EmbeddedTransport(settings))
