"""A tiny client and server over the simulated world, for tests of the simulator itself."""

from collections.abc import Coroutine

from retinue.client.frames import Ping
from retinue.errors import LinkClosed, RetinueError, Unavailable
from retinue.storage.database import StoreConflict
from retinue.storage.schema import WRITE_META
from retinue.testing.sim.check import Evidence
from retinue.testing.sim.faults import Faults
from retinue.testing.sim.host import Incarnation
from retinue.testing.sim.loop import WORLD
from retinue.testing.sim.net import SimLink
from retinue.testing.sim.world import World

NODES = ("n1", "n2", "n3")


class Server:
    """Keeps keys in the store and answers pings."""

    acknowledge_first = False  # the planted bug

    def __init__(self, own: Incarnation, world: World) -> None:
        self.own = own
        self.engine = world.database.open(own)

    async def keep(self, key: str) -> str:
        """Write a key and say so."""
        write = self.write(key)
        if self.acknowledge_first:
            self.own.start(self.quietly(write))
        else:
            await write
        return key

    async def write(self, key: str) -> None:
        try:
            await self.engine.write(lambda transaction: transaction.run(WRITE_META, key, "kept"))
        except StoreConflict:
            raise Unavailable from None

    async def quietly(self, write: Coroutine[None, None, None]) -> None:
        try:
            await write
        except RetinueError:
            pass

    def accept(self, link: SimLink) -> None:
        self.own.start(self.answer(link))

    async def answer(self, link: SimLink) -> None:
        try:
            while True:
                link.send(await link.receive())
        except LinkClosed:
            pass


def server(world: World):
    async def run(own: Incarnation) -> None:
        serves = Server(own, world)
        world.net.serve(own, "api", serves)
        world.net.serve(own, "link", serves.accept)
        while True:
            await own.clock.sleep(5.0)

    return run


def node(world: World):
    async def run(own: Incarnation) -> None:
        while True:
            try:
                link = await world.net.dial(own, "coordinator")
                while True:
                    link.send(Ping())
                    async with own.clock.timeout(20.0):
                        await link.receive()
                    world.seen("pong")
                    await own.clock.sleep(1.0)
            except (LinkClosed, TimeoutError):
                await own.clock.sleep(0.5)

    return run


def client(world: World):
    async def run(own: Incarnation) -> None:
        for number in range(world.settings.tasks):
            key = f"k{number}"
            while True:
                try:
                    with world.history.operation("client", "keep", key=key) as asked:
                        asked.ok(
                            await world.net.ask(
                                own, "coordinator", lambda server, key=key: server.keep(key), timeout=2.0
                            )
                        )
                    break
                except (RetinueError, TimeoutError):
                    await own.clock.sleep(0.3)
            await own.clock.sleep(5.0)
        await own.never()

    return run


async def play(world: World) -> Evidence:
    """120 s of faults, 60 s of calm, then: is every key that was acknowledged in the store?"""
    settings = world.settings
    world.add("coordinator", server(world)).start()
    for name in NODES[: settings.nodes]:
        world.add(name, node(world)).start()
    world.add("client", client(world)).start()
    faults = Faults(world, "coordinator", list(NODES[: settings.nodes]), lasts=settings.faults_for, lease=9.0)
    faults.unleash(faults.plan())
    over = world.loop.create_future()
    world.loop.at(settings.faults_for, WORLD, lambda _: faults.heal())
    world.loop.at(settings.faults_for + settings.calm_for, WORLD, over.set_result, None)
    await over
    kept = {row["key"] for row in world.database.rows("SELECT key FROM meta")}
    for entry in world.history.of("ok"):
        if entry.what["value"] not in kept:
            world.failures.append(f"lost: {entry.what['value']}")
    return Evidence(world.history.entries, [], [], [], [], [], {}, 0, 9.0, 0.5, settings.calm_for)
