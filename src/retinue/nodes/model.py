"""Nodes as values. No I/O."""

from collections.abc import Collection
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from retinue.nodes.resources import Resources

OFFLINE_AFTER: Final = timedelta(seconds=90)
HEARTBEAT: Final = timedelta(seconds=30)


class NodeStatus(StrEnum):
    """Whether a node is there."""

    ONLINE = "online"
    OFFLINE = "offline"
    DRAINING = "draining"


class Node(msgspec.Struct, frozen=True):
    """A node as people see it."""

    id: str
    name: str
    status: NodeStatus
    boot: str
    workers: int
    labels: dict[str, str]
    capabilities: list[str]
    resources: Resources
    created_at: datetime
    seen_at: datetime


class Registration(msgspec.Struct, frozen=True):
    """What a node's process says of itself when it connects. `id` is used if the name is new."""

    id: str
    team: str
    name: str
    boot: str
    workers: int
    labels: dict[str, str] = {}
    capabilities: tuple[str, ...] = ()
    resources: Resources = Resources()


# A node with such a capability is reserved: it takes only tasks that require it, as the node inside a foreground
# client does that must not begin what others left waiting in the store.
RESERVED: Final = "client:"


class Offer(msgspec.Struct, frozen=True):
    """What a connected node offers: who it is, what it has, how many workers."""

    node: str
    name: str
    team: str
    boot: str
    workers: int
    labels: dict[str, str] = {}
    capabilities: frozenset[str] = frozenset()
    resources: Resources = Resources()

    def has(self, wanted: str) -> bool:
        """Whether a capability is there: `tool:git` is met by `tool:git:2.39` too."""
        return wanted in self.capabilities or any(have.startswith(wanted + ":") for have in self.capabilities)

    def reserved(self, requires: Collection[str]) -> bool:
        """Whether it is kept for other tasks than those which require this."""
        return any(have.startswith(RESERVED) and have not in requires for have in self.capabilities)
