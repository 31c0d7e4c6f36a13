"""A node's session: one link, what the node offers, how many of its workers are free, what was given to it."""

import asyncio
from collections.abc import Sequence

from retinue.client.frames import Assign, Assignment, Cancel
from retinue.client.link import Link
from retinue.nodes.model import Offer
from retinue.nodes.resources import Resources
from retinue.tasks.model import Hold, Queue


class NodeSession:
    """The coordinator's side of one node's connection. Free workers are counted exactly: what the node said it has,
    less what was sent since, less what is being claimed."""

    def __init__(self, link: Link, offer: Offer) -> None:
        self.link = link
        self.offer = offer
        self.open = True
        self._slots = 0  # free workers, as the node last said
        self._seen = 0  # ... when it had seen this many assigned tasks
        self._sent = 0
        self._claiming = 0
        self._costs: dict[tuple[str, int], Resources] = {}  # what is taken, by task and fence
        self._stopped: set[tuple[str, int]] = set()
        self.unstarted: dict[tuple[str, int], Hold] = {}  # attempts that run, which the store could not be told
        self.starting: dict[tuple[str, int], asyncio.Task[None]] = {}  # attempts whose start is being committed
        self._serves: dict[str, bool] = {}

    @property
    def free(self) -> int:
        """How many more tasks may be claimed for it."""
        return max(0, self._slots - (self._sent - self._seen) - self._claiming) if self.open else 0

    @property
    def room(self) -> Resources:
        """What of its resources nobody takes."""
        return sum((Resources() - cost for cost in self._costs.values()), self.offer.resources)

    def credit(self, slots: int, seen: int) -> None:
        """The node said how many workers were free after it had seen that many assigned tasks. An older word is passed
        over, and so is one about tasks that were never sent; nobody has more workers free than it has."""
        if self._seen <= seen <= self._sent:
            self._slots, self._seen = min(max(0, slots), self.offer.workers), seen

    def serves(self, queue: Queue) -> bool:
        """Whether it may run this queue's tasks; found out once."""
        known = self._serves.get(queue.id)
        if known is None:
            known = self._serves[queue.id] = queue.served_by(self.offer)
        return known

    def reserve(self, workers: int) -> None:
        """Set workers aside for a claim that is on its way."""
        self._claiming += workers

    def unreserve(self, workers: int) -> None:
        """The claim is back."""
        self._claiming -= workers

    def assign(self, tasks: list[tuple[Assignment, Resources]]) -> None:
        """Send it claimed tasks."""
        self._sent += len(tasks)
        for task, cost in tasks:
            self.took(task.hold, cost)
        self.link.send(Assign(self._sent, [task for task, _ in tasks]))

    def took(self, hold: Hold, cost: Resources) -> None:
        """An attempt takes this much of the node, until `gave_back`."""
        if cost != Resources():
            self._costs[hold.task, hold.fence] = cost

    def gave_back(self, hold: Hold) -> None:
        """The attempt ended; its resources are free."""
        self._costs.pop((hold.task, hold.fence), None)

    def stop(self, holds: Sequence[Hold]) -> None:
        """Tell the node to end attempts whose claims are gone. They take what they take until it says they ended."""
        self._stopped.update((hold.task, hold.fence) for hold in holds)
        self.link.send(Cancel(list(holds)))

    def lost(self, hold: Hold) -> None:
        """The node was told, or knows, that this claim is gone."""
        self._stopped.add((hold.task, hold.fence))

    def was_stopped(self, hold: Hold) -> bool:
        """Whether this claim is gone already, and the node only says that its attempt has ended; asked once."""
        known = (hold.task, hold.fence) in self._stopped
        self._stopped.discard((hold.task, hold.fence))
        return known
