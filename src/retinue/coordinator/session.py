"""A node's session: one link, what the node offers, how many of its workers are free, what was given to it."""

from retinue.client.frames import Assign, Assignment
from retinue.client.link import Link
from retinue.nodes.model import Offer
from retinue.nodes.resources import Resources
from retinue.tasks.model import Queue


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
        self._costs: dict[str, Resources] = {}  # what is taken, by attempt
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
        """The node said how many workers were free after it had seen that many assigned tasks."""
        if seen >= self._seen:
            self._slots, self._seen = slots, seen

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
        self._costs.update((task.attempt, cost) for task, cost in tasks if cost != Resources())
        self.link.send(Assign(self._sent, [task for task, _ in tasks]))

    def gave_back(self, attempt: str) -> None:
        """The attempt ended; its resources are free."""
        self._costs.pop(attempt, None)
