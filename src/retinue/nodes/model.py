"""Nodes as values. No I/O."""

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
