"""The coordinator's assembly: ports come in, and this is how its parts are wired. No other file wires."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - the type of the port
from typing import Any

from retinue.bus.bus import Bus
from retinue.client.link import Link, queue_pair
from retinue.clock import Clock
from retinue.coordinator.dispatcher import Dispatcher
from retinue.coordinator.gateway import Gateway
from retinue.coordinator.logs import LogHub
from retinue.coordinator.loops.loop import Loop
from retinue.coordinator.loops.pruner import BETWEEN, Pruner
from retinue.coordinator.loops.reaper import Reaper
from retinue.coordinator.loops.timers import Timers
from retinue.coordinator.stdin import StdinHub
from retinue.errors import StoreBehind, StoreBroken, Unavailable
from retinue.events.service import EventService
from retinue.events.store import highest
from retinue.ids import Ids
from retinue.nodes.model import HEARTBEAT, Offer
from retinue.storage.blobs import Blobs
from retinue.storage.database import Engine
from retinue.storage.group import GroupCommit
from retinue.tasks.model import Queue
from retinue.tasks.prune import Retention
from retinue.tasks.service import TaskService
from retinue.tasks.steer import LAPSE_SESSIONS, Stopped
from retinue.teams import store as teams

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything a coordinator reaches the outside by."""

    clock: Clock
    random: Random
    engine: Engine
    bus: Bus
    blobs: Blobs


@dataclass(frozen=True, slots=True)
class Timing:
    """The periods of a coordinator, in seconds."""

    lease: float = 15.0
    sweep: float = 5.0
    heartbeat: float = HEARTBEAT.total_seconds()
    log_flush: float = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a coordinator is told at its start."""

    key: bytes  # makes claim tokens; all coordinators of a store share it
    team: str = "default"
    writers: int = 1
    alone: bool = True  # no other coordinator can be using this store, so sessions and nodes of earlier boots are gone
    timing: Timing = field(default_factory=Timing)
    retention: Retention = field(default_factory=Retention)
    remembered: tuple[int, int] = (0, 0)  # the highest (epoch, position) of this store seen before
    remember: Callable[[int, int], None] = lambda epoch, position: None  # kept outside the store


class Coordinator:
    """One coordinator. `start` it, `connect` nodes and clients to it, `stop` it."""

    def __init__(self, ports: Ports, settings: Settings) -> None:
        self.ports = ports
        self.settings = settings
        self.ids = Ids(ports.clock, ports.random)
        self.boot = self.ids.new("boot")
        self.team = ""  # the id of the default team, known after `start`
        self.broken: StoreBroken | None = None
        self._remembered = settings.remembered
        self._unsubscribe: list[Callable[[], None]] = []
        self._background: set[asyncio.Task[Any]] = set()
        timing = settings.timing
        self.database = GroupCommit(
            ports.engine, ports.clock, ports.random, publish=self._publish, on_broken=self._on_broken
        )
        self.tasks = TaskService(
            self.database,
            self.ids,
            ports.random,
            settings.key,
            arriving=self._arriving,
            offers=self.offers,
            stopped=self._stopped,
        )
        self.events = EventService(self.database, ports.bus, ports.clock)
        self.dispatcher = Dispatcher(self.database, self.ids, timing.lease, self.tasks.token, self.spawn)
        self.logs = LogHub(self.tasks, self.database, ports.blobs, ports.bus, ports.clock)
        self.stdin = StdinHub()
        self.gateway = Gateway(
            self.tasks, self.database, self.dispatcher, self.logs, self.stdin, self.ids,
            lease=timing.lease, heartbeat=timing.heartbeat, ordered=settings.writers == 1, spawn=self.spawn,
        )  # fmt: skip
        self.reaper = Reaper(
            self.database, ports.clock, lease=timing.lease, sweep=timing.sweep, stopped=self.gateway.stop
        )
        self.pruner = Pruner(self.database, ports.blobs, settings.retention)
        self.timers = Loop("timers", ports.clock, 5.0, Timers(self.database, self.gateway.stop).turn)
        self.loops = [
            Loop("reaper", ports.clock, timing.sweep, self.reaper.turn),
            self.timers,
            Loop("pruner", ports.clock, BETWEEN, self.pruner.turn),
            Loop("dispatcher", ports.clock, timing.sweep, self.dispatcher.sweep),
            Loop("memory", ports.clock, 5.0, self._remember),
            Loop("logs", ports.clock, timing.log_flush, self.logs.settle_all),
            Loop("streams", ports.clock, BETWEEN, self.gateway.tidy),
        ]

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serve. What an earlier boot left is settled first: foreground sessions of dead clients are cancelled."""
        for number in range(self.settings.writers):
            self.spawn(self.database.run(), name=f"writer {number}")
        self._unsubscribe = [
            self.ports.bus.subscribe("ready.*", lambda topic, payload: self._hinted(topic)),
            self.ports.bus.subscribe("timers", lambda topic, payload: self.timers.wake()),
        ]
        await self._check_not_restored()
        self.team = await self.database.submit(teams.ENSURE, (self.settings.team, self.ids.new("tea")))
        if self.settings.alone:
            await self.database.submit(LAPSE_SESSIONS, self.boot)
        await self.dispatcher.sweep()
        for loop in self.loops:
            self.spawn(loop.run(), name=loop.name)

    async def stop(self) -> None:
        """End in order: nodes first, then what still waits to be committed, then everything else."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        for session in list(self.dispatcher.sessions):
            session.link.close()
        await self.logs.settle_all()
        try:
            await self._remember()
        except Unavailable:
            pass  # what was seen before still holds
        self.database.close()
        current = asyncio.current_task()
        writers = [task for task in self._background if task.get_name().startswith("writer")]
        await asyncio.gather(*writers, return_exceptions=True)
        rest = [task for task in self._background if task is not current]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self.ports.engine.close()

    async def _check_not_restored(self) -> None:
        """A store behind what was seen of it was put back: its old claims must not be trusted again.

        Raises:
            StoreBehind: it is; nothing was changed.
        """
        epoch, position = await self.database.read(lambda connection: (connection.epoch, highest(connection)))
        if (epoch, position) < self.settings.remembered:
            raise StoreBehind(found=[epoch, position], remembered=list(self.settings.remembered))

    async def _remember(self) -> None:
        """Note outside the store how far it has come."""
        seen = await self.database.read(lambda connection: (connection.epoch, highest(connection)))
        if seen > self._remembered:  # never back: a store that is refused must still be refused the next time
            self.settings.remember(*seen)
            self._remembered = seen

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Run something in the background for as long as this coordinator lives; a failure is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background work failed: %s", task.get_name(), exc_info=task.exception())

    def _on_broken(self, error: StoreBroken) -> None:
        """A commit may have been lost by the disk: never go on after that."""
        self.broken = error
        log.critical("%s", error)
        for task in self._background:
            task.cancel()

    # -- doors ---------------------------------------------------------------------------------------------------------

    def connect(self) -> Link:
        """The node's end of a new link inside this process."""
        node, ours = queue_pair()
        self.spawn(self.gateway.serve(ours, self.team), name="link")
        return node

    def offers(self) -> Sequence[Offer]:
        """What the connected nodes offer."""
        return [session.offer for session in self.dispatcher.sessions]

    # -- wiring --------------------------------------------------------------------------------------------------------

    def _arriving(self, queue: Queue) -> None:
        self.dispatcher.arriving(queue)

    def _stopped(self, stopped: Sequence[Stopped]) -> None:
        self.gateway.stop(stopped)

    def _publish(self, hints: Iterable[str]) -> None:
        for hint in hints:
            self.ports.bus.publish(hint)

    def _hinted(self, topic: str) -> None:
        self.spawn(self.dispatcher.hinted(topic.removeprefix("ready.")))
