"""A simulated bus: hints come late, twice, in another order, or never; a wipe forgets all that is under way."""

from collections.abc import Callable
from dataclasses import dataclass

from retinue.bus.bus import Handler, matches
from retinue.testing.sim.chance import Chance
from retinue.testing.sim.host import Incarnation
from retinue.testing.sim.net import Net

BUS = "bus"  # the name of its machine, for blocks


@dataclass(slots=True, eq=False)
class Subscription:
    """Who wants to hear of what."""

    owner: Incarnation
    pattern: str
    handler: Handler


class BusServer:
    """The bus of all processes."""

    def __init__(self, net: Net, chance: Chance, *, loss: float, duplicates: float) -> None:
        self.net = net
        self.lost = chance.dice("hint-lost", loss)
        self.repeated = chance.dice("hint-repeated", duplicates)
        self.subscriptions: list[Subscription] = []
        self.wipes = 0
        self.hints = 0

    def wipe(self) -> None:
        """Forget every hint that is under way."""
        self.wipes += 1

    def publish(self, source: str, topic: str, payload: bytes) -> None:
        """Carry a hint to everybody who subscribed and can be reached."""
        self.hints += 1
        net = self.net
        if not net.passable(source, BUS):
            return
        for subscription in self.subscriptions:
            owner = subscription.owner
            if not owner.alive or not matches(subscription.pattern, topic) or self.lost():
                continue
            for _ in range(2 if self.repeated() else 1):
                net.loop.after(net.delay(), owner, self._deliver, (self.wipes, subscription, topic, payload))

    def _deliver(self, hint: tuple[int, Subscription, str, bytes]) -> None:
        wipes, subscription, topic, payload = hint
        owner = subscription.owner
        if wipes == self.wipes and subscription in self.subscriptions and self.net.passable(BUS, owner.host.name):
            owner.run(subscription.handler, topic, payload)


class SimBus:
    """The `Bus` port of one process."""

    def __init__(self, server: BusServer, own: Incarnation) -> None:
        self._server = server
        self._own = own
        own.ends.append(self._die)

    def publish(self, topic: str, payload: bytes = b"") -> None:
        """Send once; a dead process says nothing."""
        if self._own.alive:
            self._server.publish(self._own.host.name, topic, payload)

    def subscribe(self, pattern: str, handler: Handler) -> Callable[[], None]:
        """Hear of what matches until the returned function is called, or the process dies."""
        subscription = Subscription(self._own, pattern, handler)
        if self._own.alive:
            self._server.subscriptions.append(subscription)
        return lambda: self._end(subscription)

    def _end(self, subscription: Subscription) -> None:
        if self._own.alive and subscription in self._server.subscriptions:
            self._server.subscriptions.remove(subscription)

    def _die(self, power_cut: bool) -> None:
        others = [subscription for subscription in self._server.subscriptions if subscription.owner is not self._own]
        self._server.subscriptions[:] = others
