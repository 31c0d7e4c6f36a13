"""The simulated world of one seed: loop, chance, machines, network, bus, store, programs and the record of it all."""

import gc
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

from retinue.testing.sim.bus import BusServer
from retinue.testing.sim.chance import Chance
from retinue.testing.sim.engine import BAD_DISK, Database
from retinue.testing.sim.faults import kinds_off, weather
from retinue.testing.sim.history import History
from retinue.testing.sim.host import Host, Incarnation
from retinue.testing.sim.loop import STEPS, WORLD, SimLoop
from retinue.testing.sim.net import Net
from retinue.testing.sim.processes import Outside

SHUFFLED = 0.1  # of the seeds
RESTART = 1.0  # seconds until a process that ended by itself is started again


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is, besides its seed. A failing seed is made smaller by changing these."""

    profile: str = "P5"
    nodes: int = 3
    tasks: int = 20
    faults_for: float = 120.0
    calm_for: float = 60.0
    off: frozenset[str] = frozenset()
    mask: frozenset[str] = frozenset()
    force: frozenset[str] = frozenset()
    steps: int = STEPS

    def without(self, **changes: Any) -> "Settings":
        """The same run with something changed."""
        return replace(self, **changes)


class World:
    """Everything outside the code under test. A scenario puts hosts into it and plays."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed = seed
        self.settings = settings
        drawn = Chance(seed)
        off = kinds_off(drawn, settings.profile) | settings.off
        self.chance = Chance(seed, off=off, mask=settings.mask, force=settings.force)
        draw = drawn.fork("loop")
        self.loop = SimLoop(steps=settings.steps, shuffle=draw if draw.random() < SHUFFLED else None)
        self.chance.now = self.loop.time
        self.history = History(self.loop.time)
        self.hosts: dict[str, Host] = {}
        sky = weather(self.chance)
        self.net = Net(self.loop, self.chance, sky, self.host)
        self.bus = BusServer(self.net, self.chance, loss=sky.loss, duplicates=sky.duplicates)
        self.database = Database(self.chance, BAD_DISK, self._crash_point)
        self.outside = Outside(self.history)
        self.failures = self.loop.failures
        self.labels: dict[str, int] = {}
        self.states: Callable[[], Iterable[str]] = tuple  # what the protocols are doing, as the scenario sees it
        self._downtime = self.chance.fork("downtime").random

    def add(self, name: str, program: Callable[[Incarnation], Coroutine[Any, Any, None]]) -> Host:
        """A machine on which `program` runs; it is started by whoever adds it."""
        host = self.hosts[name] = Host(self.loop, self.chance, name, program, self._exited, self._crash_point)
        return host

    def host(self, name: str) -> Host:
        """A machine by its name."""
        return self.hosts[name]

    def kill(self, host: Host, down: float, *, power_cut: bool) -> None:
        """Crash a machine and start it again after `down` seconds."""
        if host.up:
            self.history.note("crash", host.name, host.incarnations)
            host.crash(power_cut=power_cut)
            self.loop.after(down, WORLD, host.start)

    def _crash_point(self, incarnation: Incarnation) -> None:
        self.kill(incarnation.host, 0.1 + 5.9 * self._downtime(), power_cut=self._downtime() < 0.5)

    def _exited(self, incarnation: Incarnation, error: BaseException | None) -> None:
        """A process ended by itself; whoever watches over it starts it again."""
        self.history.note("exit", incarnation.host.name, incarnation.number, error=repr(error) if error else None)
        if error is not None:
            self.failures.append(f"{incarnation} ended: {error!r}")
        self.loop.after(RESTART, WORLD, incarnation.host.start)

    def run(self, play: Coroutine[Any, Any, Any]) -> Any:
        """Let time pass until `play` is over."""
        return self.loop.run_until_complete(play)

    def seen(self, label: str) -> None:
        """Count that a run got here: a place no seed reaches is not tested."""
        self.labels[label] = self.labels.get(label, 0) + 1

    def end(self) -> None:
        """Note what the living left unread, then switch everything off."""
        for host in self.hosts.values():
            if host.incarnation is not None:
                host.incarnation.forget()
        gc.collect()
        for host in self.hosts.values():
            host.gone = True
            host.crash(power_cut=True)
        self.loop.close()
        self.database.close()
