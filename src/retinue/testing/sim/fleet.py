"""The whole fleet in the simulator: real coordinator, real nodes, scripted programs, clients that never give up."""

from collections.abc import Awaitable, Iterator
from pathlib import Path
from random import Random  # noqa: TID251 - the type of the port
from typing import Any, Final

import msgspec

from retinue.client.frames import Done, DoneAck, Frame, Renew, Started
from retinue.coordinator.app import Coordinator, Ports, Timing
from retinue.coordinator.app import Settings as CoordinatorSettings
from retinue.coordinator.interface import Interface
from retinue.errors import LinkClosed, NodeDuplicate, RetinueError, Unavailable
from retinue.events.model import link
from retinue.ids import Ids
from retinue.node.daemon import Node, NodeSettings
from retinue.node.runners.process import ProcessRunner
from retinue.node.runners.runner import NodeFacts
from retinue.routes import Caller
from retinue.storage.blobs import MemoryBlobs
from retinue.storage.database import StoreConflict
from retinue.tasks.model import TERMINAL
from retinue.tasks.prune import Retention
from retinue.testing.sim.bus import SimBus
from retinue.testing.sim.check import Evidence, Fact, Row
from retinue.testing.sim.faults import Faults
from retinue.testing.sim.host import Incarnation
from retinue.testing.sim.loop import WORLD
from retinue.testing.sim.net import SimLink
from retinue.testing.sim.processes import command
from retinue.testing.sim.world import World

LEASE: Final = 9.0
SWEEP: Final = 3.0
WORKERS: Final = 2
MONTH: Final = 30 * 86400.0
KEY: Final = b"the key of a simulated fleet"
PATIENCE: Final = 4.0  # seconds a client waits for an answer
COORDINATOR: Final = "coordinator"

# What the store itself saw of each claim's end, whatever the code says of it.
WITNESS: Final = """
CREATE TEMP TABLE witness (task, fence, node, boot, reap_at, at, seen_at);
CREATE TEMP TRIGGER witness_end AFTER DELETE ON main.running BEGIN
  INSERT INTO witness
  VALUES (old.id, old.fence, old.node, old.boot, old.reap_at, retinue_now(), simulated_now());
END;
CREATE TEMP TABLE begun (task, fence, seen_at);
CREATE TEMP TRIGGER begun_seen AFTER UPDATE OF started_at ON main.running BEGIN
  INSERT INTO begun VALUES (new.id, new.fence, simulated_now());
END;
CREATE TEMP TABLE stray (attempt, seen_at);
CREATE TEMP TRIGGER stray_output AFTER INSERT ON main.logs
WHEN NOT EXISTS (SELECT 1 FROM main.running WHERE attempt = new.attempt) BEGIN
  INSERT INTO stray VALUES (new.attempt, simulated_now());
END;
CREATE TEMP TABLE renewal (task, fence, times, PRIMARY KEY (task, fence)) WITHOUT ROWID;
CREATE TEMP TRIGGER renewal_seen AFTER UPDATE OF reap_at ON main.running BEGIN
  INSERT INTO renewal VALUES (new.id, new.fence, 1) ON CONFLICT (task, fence) DO UPDATE SET times = times + 1;
END;
"""


class Simulated:
    """One fleet in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = [f"n{number}" for number in range(1, world.settings.nodes + 1)]
        self.blobs = MemoryBlobs()
        self.remembered = (0, 0)
        self.team = ""
        self._reports: dict[str, tuple[str, int, str]] = {}
        world.net.tap = self._overhear
        world.states = self._states

    async def play(self) -> Evidence:
        """Faults, then calm, then the evidence."""
        world, settings = self.world, self.world.settings
        world.add(COORDINATOR, self._coordinator).start()
        for name in self.nodes:
            world.add(name, self._node).start()
        world.add("client", self._clients).start()
        faults = Faults(world, COORDINATOR, self.nodes, lasts=settings.faults_for, lease=LEASE)
        faults.unleash(faults.plan())
        world.loop.at(settings.faults_for, WORLD, lambda _: faults.heal())
        over = world.loop.create_future()
        world.loop.at(settings.faults_for + settings.calm_for, WORLD, over.set_result, None)
        await over
        return self.evidence()

    # -- the machines --------------------------------------------------------------------------------------------------

    async def _coordinator(self, own: Incarnation) -> None:
        world = self.world
        world.history.note("coordinator", own.host.name, own.number)
        first = world.database.store is None
        engine = world.database.open(own)
        if first and world.database.store is not None:
            raw = world.database.store.raw
            raw.create_function("simulated_now", 0, world.loop.time)
            raw.executescript(WITNESS)
        settings = CoordinatorSettings(
            key=KEY,
            timing=Timing(lease=LEASE, sweep=SWEEP, heartbeat=LEASE, log_flush=2.0),
            retention=Retention(keys=MONTH),  # a wall clock that steps by days must not look like days that passed
            remembered=self.remembered,
            remember=self._remember,
        )
        ports = Ports(own.clock, own.host.rng("coordinator"), engine, SimBus(world.bus, own), self.blobs)
        app = Coordinator(ports, settings)
        try:
            await app.start()
        except (Unavailable, StoreConflict):
            return  # whoever watches over it starts it again
        self.team = app.team
        world.net.serve(own, "link", lambda link: app.spawn(app.gateway.serve(link, app.team), name="link"))
        world.net.serve(own, "api", Interface(app))
        await own.never()

    def _remember(self, epoch: int, position: int) -> None:
        self.remembered = (epoch, position)

    async def _node(self, own: Incarnation) -> None:
        name, random = own.host.name, own.host.rng("node")
        facts = NodeFacts(name, Path("work"), {})
        runner = ProcessRunner(self.world.outside.of(own), own.clock, facts)
        labels = {"parity": "odd" if int(name[1:]) % 2 else "even"}

        def dial() -> Awaitable[SimLink]:
            return self.world.net.dial(own, COORDINATOR)

        boot = Ids(own.clock, random).new("boot")
        node = Node(NodeSettings(name, WORKERS, labels), boot, own.clock, random, dial, {"process": runner})
        try:
            await node.run()
        except NodeDuplicate:
            self.world.seen("a second boot was refused")

    # -- the clients ---------------------------------------------------------------------------------------------------

    async def _clients(self, own: Incarnation) -> None:
        made: list[str] = []
        for number in range(self.world.settings.tasks):
            own.start(Client(self, own, number, made).live())
        await own.never()

    # -- what is seen --------------------------------------------------------------------------------------------------

    def _overhear(self, end: SimLink, frame: Frame) -> None:
        """Note which results nodes were told are accepted."""
        if isinstance(frame, Renew):
            if frame.holds:
                holds = [(hold.task, hold.fence) for hold in frame.holds]
                self.world.history.note("renew", end.machine, holds=holds)
        elif isinstance(frame, Started):
            for hold in frame.holds:
                self.world.history.note("start", end.machine, task=hold.task, fence=hold.fence)
        elif isinstance(frame, Done):
            for report in frame.reports:
                self.world.history.note("done", end.machine, task=report.hold.task, fence=report.hold.fence)
                if report.ending.ok:
                    said = (report.hold.task, report.hold.fence, report.ending.digest())
                    self._reports[report.attempt] = said
        elif isinstance(frame, DoneAck):
            for attempt in frame.attempts:
                if attempt in self._reports:
                    task, fence, digest = self._reports[attempt]
                    self.world.history.note("accepted", end.machine, task=task, fence=fence, digest=digest)
            if frame.stale:
                self.world.seen("a stale report was refused")

    def _states(self) -> Iterator[str]:
        rows = self.world.database.rows("SELECT DISTINCT status FROM running ORDER BY status")
        yield from (f"a task is {row['status']}" for row in rows)
        if self.world.database.rows("SELECT 1 FROM ready LIMIT 1"):
            yield "a task waits"

    def evidence(self) -> Evidence:
        """Everything the checkers look at."""
        database, history = self.world.database, self.world.history
        store = database.store
        if store is None:
            return Evidence(history.entries, [], [], [], [], [], {}, 0, LEASE, SWEEP, 0.0)
        events: dict[str, list[Fact]] = {}
        written: dict[str, dict[int, tuple[Any, ...]]] = {}
        for row in database.rows(
            "SELECT team, position, type, at, subject, node, actor, data FROM events ORDER BY team, position"
        ):
            written.setdefault(row["team"], {})[row["position"]] = tuple(row.values())
            fact = Fact(row["position"], row["type"], row["at"], row["subject"], row["node"], _json(row["data"]))
            events.setdefault(row["team"], []).append(fact)
            self.world.seen(fact.type)
        return Evidence(
            history=history.entries,
            tasks=database.rows("SELECT * FROM tasks ORDER BY id"),
            ready=database.rows("SELECT * FROM ready ORDER BY id"),
            running=database.rows("SELECT * FROM running ORDER BY id"),
            attempts=database.rows("SELECT * FROM attempts ORDER BY task, fence"),
            counts=database.rows("SELECT * FROM counts"),
            events=events,
            now=store.now(),
            lease=LEASE,
            sweep=SWEEP,
            calm=self.world.settings.calm_for,
            nodes=database.rows("SELECT id, name, labels, workers FROM nodes"),
            witness=database.rows("SELECT * FROM witness"),
            renewals=database.rows("SELECT * FROM renewal"),
            begun=database.rows("SELECT * FROM begun"),
            strays=database.rows("SELECT * FROM stray"),
            logs=database.rows("SELECT attempt, stream, start, size FROM logs ORDER BY attempt, stream, start"),
            faultless=not self.world.chance.happened,
            notes={"broken_links": _broken(written, database.rows("SELECT * FROM links ORDER BY team, last"))},
        )


def _broken(written: dict[str, dict[int, tuple[Any, ...]]], links: list[Row]) -> dict[str, list[int]]:
    """The links of each team that do not follow from their events."""
    broken: dict[str, list[int]] = {}
    before: dict[str, str] = {}
    for row in links:
        team, events = row["team"], written[row["team"]]
        group = [events[position] for position in range(row["first"], row["last"] + 1) if position in events]
        if link(before.get(team, ""), group) != row["digest"]:
            broken.setdefault(team, []).append(row["last"])
        before[team] = row["digest"]
    return broken


def _json(text: str) -> Row:
    found: Row = msgspec.json.decode(text)
    return found


class Client:
    """Submits one task and follows it, asking again for ever with the same idempotency key."""

    def __init__(self, fleet: Simulated, own: Incarnation, number: int, made: list[str]) -> None:
        self.fleet = fleet
        self.own = own
        self.number = number
        self.draw = fleet.world.chance.fork(f"load/{number}")
        self.made = made

    async def live(self) -> None:
        """Wait for its moment, submit, then look, cancel or just leave it."""
        draw, world = self.draw, self.fleet.world
        at, then = draw.uniform(0.0, world.settings.faults_for * 0.9), draw.random()
        await self.own.clock.sleep(at)
        task = await self._create(self._body(draw))
        self.made.append(task)
        if then < 0.15:
            await self.own.clock.sleep(draw.uniform(0.0, 10.0))
            await self._insist("cancel", "POST", f"/tasks/{task}/cancel", task=task)
        elif then < 0.6:
            await self._watch(task)

    def _body(self, draw: Random) -> dict[str, Any]:
        kind = draw.choices(("run", "fail", "quiet", "die", "hang", "deaf", "flood"), weights=(60, 12, 8, 6, 6, 4, 4))[
            0
        ]
        seconds = draw.uniform(0.5, 14.0) if kind == "run" else draw.uniform(0.2, 3.0)
        body: dict[str, Any] = {
            "command": command(kind, round(seconds, 2), f"c{self.number}"),
            "name": f"c{self.number}",
            "priority": draw.choice(("critical", "high", "medium", "low")),
            "on_node_loss": draw.choices(("requeue", "wait:5", "fail"), weights=(8, 1, 1))[0],
            "max_attempts": draw.choice((1, 1, 2, 3)),
        }
        if kind in ("hang", "deaf"):
            body["timeout_seconds"] = 4.0
            body["max_attempts"] = min(2, body["max_attempts"])  # the longest work has to fit into the calm
        if draw.random() < 0.15:
            body["labels"] = {"parity": "odd"}
        if draw.random() < 0.2 and self.made:
            body["after"] = sorted({draw.choice(self.made) for _ in range(2)})
            body["after_policy"] = draw.choice(("success", "any"))
        return body

    async def _create(self, body: dict[str, Any]) -> str:
        answer = await self._insist("create", "POST", "/tasks", body=body, key=f"k{self.number}")
        task: str = answer.document.id
        return task

    async def _watch(self, task: str) -> None:
        while True:
            answer = await self._insist("show", "GET", f"/tasks/{task}", task=task)
            if answer.document.status in TERMINAL:
                return
            await self.own.clock.sleep(self.draw.uniform(1.0, 6.0))

    async def _insist(
        self, verb: str, method: str, path: str, *, body: Any = None, key: str | None = None, task: str | None = None
    ) -> Any:
        """Ask until there is an answer; what it was goes into the history."""
        said = {"task": task} if task else {"key": key}

        async def question(interface: Interface) -> Any:
            caller = Caller(self.fleet.team, "client")  # learnt with its token, before it ever asks
            return await interface.call(caller, method, path, {}, body, key)

        while True:
            try:
                with self.fleet.world.history.operation("client", verb, **said) as asked:
                    try:
                        answer = await self.fleet.world.net.ask(self.own, COORDINATOR, question, timeout=PATIENCE)
                    except LinkClosed as error:
                        asked.fail(error.code)
                        raise
                    except RetinueError as error:
                        if not isinstance(error, Unavailable):
                            asked.fail(error.code)
                        raise
                    document = answer.document
                    asked.ok(document.id, status=document.status, attempt=document.attempt)
                    return answer
            except (LinkClosed, Unavailable, TimeoutError):
                await self.own.clock.sleep(self.draw.uniform(0.1, 1.0))
            except RetinueError as error:
                if verb == "cancel":
                    self.fleet.world.seen(f"a cancel was answered {error.code}")
                    return None
                raise


async def play(world: World) -> Evidence:
    """The scenario `retinue torture` plays."""
    return await Simulated(world).play()
