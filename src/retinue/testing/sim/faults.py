"""Faults: what goes wrong in a seed, planned before it begins, so that each can be left out when it is run again."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random  # noqa: TID251 - the type of the port
from typing import TYPE_CHECKING, Any, Final

from retinue.testing.sim.bus import BUS
from retinue.testing.sim.chance import Chance
from retinue.testing.sim.loop import WORLD
from retinue.testing.sim.net import Weather

if TYPE_CHECKING:
    from retinue.testing.sim.world import World

CRASH: Final = ("coordinator-kill", "node-kill", "node-gone", "program-kill")
NET: Final = ("weather", "block", "clog", "bus-wiped", "frame-lost", "frame-repeated", "hint-lost", "hint-repeated")
TIME: Final = ("pause", "wall-step", "rate", "slow-port")
DISK: Final = (
    *("slow-write", "slow-disk", "store-outage", "store-unavailable", "store-conflict", "store-full"),
    *("commit-lost", "answer-lost", "crash-before-commit", "crash-after-commit"),
)
PROFILES: Final = {"P1": CRASH, "P2": NET, "P3": TIME, "P4": DISK, "P5": (*CRASH, *NET, *TIME, *DISK), "calm": ()}
EVERY: Final = frozenset(PROFILES["P5"])
SKIPPED: Final = 0.3  # how often a seed does without a kind of fault


@dataclass(frozen=True, slots=True)
class Fault:
    """One planned fault: its name for the mask, what, to whom, when and how long."""

    name: str
    kind: str
    at: float
    target: str
    lasts: float
    detail: Any = None

    def __str__(self) -> str:
        detail = "" if self.detail is None else f" {self.detail}"
        lasts = f" for {self.lasts:.2f} s" if self.lasts else ""
        return f"{self.name:<22} {self.target}{detail}{lasts}"


def kinds_off(chance: Chance, profile: str) -> frozenset[str]:
    """The kinds of fault this seed does without: those of other profiles, and a random part of its own."""
    draw = chance.fork("kinds")
    skipped = {kind for kind in PROFILES["P5"] if draw.random() < SKIPPED}
    return EVERY - frozenset(PROFILES[profile]) | skipped


def weather(chance: Chance) -> Weather:
    """The network of this seed, and whether its frames are encoded."""
    draw = chance.fork("weather")
    delay, loss, duplicates, wire = (
        draw.choices((0.002, 0.02, 0.2, 1.0), (6, 5, 3, 1))[0],
        draw.choices((0.0, 0.01, 0.1), (3, 2, 1))[0],
        draw.choices((0.0, 0.02, 0.1), (2, 2, 1))[0],
        draw.random() < 0.1,
    )
    return Weather(0.002 if "weather" in chance.off else delay, loss, duplicates, wire)


class Faults:
    """Plans the faults of a run and makes them happen."""

    def __init__(self, world: "World", coordinator: str, nodes: list[str], *, lasts: float, lease: float) -> None:
        self._world = world
        self._coordinator = coordinator
        self._nodes = nodes
        self._lasts = lasts
        self._lease = lease
        self._gone = False

    def plan(self) -> list[Fault]:
        """Every planned fault in order of time, the masked ones and those of kinds that are off left out."""
        chance = self._world.chance
        faults = [
            Fault(f"{kind}#{number}", kind, round(at, 3), target, round(lasts, 3), detail)
            for kind, draws in self._kinds()
            if kind not in chance.off
            for number, (at, target, lasts, detail) in enumerate(draws, 1)
        ]
        kept = [fault for fault in faults if fault.name not in chance.mask and fault.at < self._lasts]
        return sorted(kept, key=lambda fault: (fault.at, fault.name))

    def _kinds(self) -> Iterator[tuple[str, Iterator[tuple[float, str, float, Any]]]]:
        for kind, every, draw_one in (
            ("coordinator-kill", 30.0, self._coordinator_kill),
            ("node-kill", 15.0, self._node_kill),
            ("program-kill", 20.0, self._program_kill),
            ("block", 20.0, self._block),
            ("clog", 30.0, self._clog),
            ("bus-wiped", 30.0, self._wipe),
            ("pause", 15.0, self._pause),
            ("wall-step", 30.0, self._wall_step),
            ("rate", 60.0, self._rate),
            ("store-outage", 60.0, self._outage),
            ("slow-disk", 60.0, self._outage),
        ):
            yield kind, self._series(kind, every, draw_one)
        yield "node-gone", self._node_gone()

    def _series(self, kind: str, every: float, draw_one: Any) -> Iterator[tuple[float, str, float, Any]]:
        draw = self._world.chance.fork(f"plan/{kind}")
        at = 0.0
        while (at := at + draw.expovariate(1 / every)) < self._lasts:
            target, lasts, detail = draw_one(draw)
            yield at, target, lasts, detail

    def _coordinator_kill(self, draw: Random) -> tuple[str, float, Any]:
        return self._coordinator, draw.uniform(0.1, 6.0), _death(draw)

    def _node_kill(self, draw: Random) -> tuple[str, float, Any]:
        return draw.choice(self._nodes), draw.uniform(0.05, 20.0), _death(draw)

    def _node_gone(self) -> Iterator[tuple[float, str, float, Any]]:
        draw = self._world.chance.fork("plan/node-gone")
        if draw.random() < 0.6 and len(self._nodes) > 1:
            yield draw.uniform(3.0, self._lasts), draw.choice(self._nodes), 0.0, _death(draw)

    def _program_kill(self, draw: Random) -> tuple[str, float, Any]:
        return "a program", 0.0, draw.random()

    def _block(self, draw: Random) -> tuple[str, float, Any]:
        ways = draw.choice(("to coordinator", "from coordinator", "both", "bus"))
        return draw.choice(self._nodes) if ways != "bus" else self._coordinator, draw.uniform(1.0, 25.0), ways

    def _clog(self, draw: Random) -> tuple[str, float, Any]:
        return draw.choice(self._nodes), draw.uniform(0.5, 8.0), None

    def _wipe(self, draw: Random) -> tuple[str, float, Any]:
        return BUS, 0.0, None

    def _pause(self, draw: Random) -> tuple[str, float, Any]:
        return draw.choice([self._coordinator, *self._nodes]), draw.choice((1.0, 5.0, self._lease + 3.0, 30.0)), None

    def _wall_step(self, draw: Random) -> tuple[str, float, Any]:
        step = draw.choice((1.0, 300.0, 86400.0)) * draw.choice((-1, 1))
        return draw.choice([self._coordinator, *self._nodes]), 0.0, step

    def _rate(self, draw: Random) -> tuple[str, float, Any]:
        return draw.choice([self._coordinator, *self._nodes]), draw.uniform(5.0, 40.0), draw.choice((0.5, 2.0))

    def _outage(self, draw: Random) -> tuple[str, float, Any]:
        return self._coordinator, draw.choice((0.5, 2.0, 6.0, self._lease + 3.0)), None

    def unleash(self, plan: list[Fault]) -> None:
        """Set every planned fault to its time."""
        for fault in plan:
            self._world.loop.at(fault.at, WORLD, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        world = self._world
        if not world.chance.note(fault.name, str(fault)):
            return
        for state in world.states():
            world.seen(f"{fault.kind} while {state}")
        getattr(self, f"_do_{fault.kind.replace('-', '_')}")(fault)

    def _until(self, fault: Fault, undo: Any) -> None:
        """Take it back after its time; nothing to do when all was healed meanwhile."""
        world = self._world
        world.loop.after(fault.lasts, WORLD, lambda _: None if world.chance.calm else undo())

    def _do_coordinator_kill(self, fault: Fault) -> None:
        self._world.kill(self._world.host(fault.target), fault.lasts, power_cut=fault.detail == "power cut")

    _do_node_kill = _do_coordinator_kill

    def _do_node_gone(self, fault: Fault) -> None:
        host = self._world.host(fault.target)
        host.gone = True
        host.crash(power_cut=fault.detail == "power cut")

    def _do_program_kill(self, fault: Fault) -> None:
        live = sorted(self._world.outside.live)
        if live:
            self._world.outside.live[live[int(fault.detail * len(live))]].shoot()

    def _do_block(self, fault: Fault) -> None:
        net, node, coordinator = self._world.net, fault.target, self._coordinator
        blocks = {
            "to coordinator": [(node, coordinator)],
            "from coordinator": [(coordinator, node)],
            "both": [(node, coordinator), (coordinator, node)],
            "bus": [(coordinator, BUS), (BUS, coordinator)],
        }[fault.detail]
        for source, target in blocks:
            net.block(source, target)
            self._until(fault, lambda source=source, target=target: net.unblock(source, target))

    def _do_clog(self, fault: Fault) -> None:
        self._world.net.clog(fault.target)
        self._until(fault, lambda: self._world.net.unclog(fault.target))

    def _do_bus_wiped(self, fault: Fault) -> None:
        self._world.bus.wipe()

    def _do_pause(self, fault: Fault) -> None:
        incarnation = self._world.host(fault.target).incarnation
        if incarnation is not None and incarnation.alive:
            incarnation.pause()
            self._until(fault, incarnation.resume)

    def _do_wall_step(self, fault: Fault) -> None:
        self._world.host(fault.target).machine.wall_offset += fault.detail

    def _do_rate(self, fault: Fault) -> None:
        machine = self._world.host(fault.target).machine
        machine.set_rate(fault.detail)
        self._until(fault, lambda: machine.set_rate(1.0))

    def _do_store_outage(self, fault: Fault) -> None:
        database = self._world.database
        database.outages += 1

        def over() -> None:
            database.outages -= 1

        self._until(fault, over)

    def _do_slow_disk(self, fault: Fault) -> None:
        database = self._world.database
        database.slowness = 100.0

        def over() -> None:
            database.slowness = 1.0

        self._until(fault, over)

    def heal(self) -> None:
        """End every fault: all is up, connected, and at its normal speed; only a machine that is gone stays away."""
        world = self._world
        world.chance.calm = True
        world.net.heal()
        world.database.outages = 0
        world.database.slowness = 1.0
        for host in world.hosts.values():
            host.machine.set_rate(1.0)
            if host.incarnation is not None:
                while host.incarnation.alive and not host.incarnation.open:
                    host.incarnation.resume()
            host.start()


def _death(draw: Random) -> str:
    return draw.choice(("power cut", "kill -9"))
