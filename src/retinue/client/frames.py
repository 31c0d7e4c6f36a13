"""The frames of the node link (API.md 2). The same structs travel through a pair of queues or as MessagePack.

Every frame carries a number, rising by one in each direction of a connection: a gap means something was lost, so the
receiver gives the connection up and the node dials again; a repeat is dropped.
"""

from typing import Any

import msgspec

from retinue.nodes.resources import Resources
from retinue.tasks.model import Ending, Hold, Progress, TaskSpec

VERSION = 1


class Frame(msgspec.Struct, frozen=True, array_like=True, tag_field="type"):
    """One frame's body."""


class Hello(Frame, tag="hello", frozen=True):
    """Node, first: who I am, what I have, which claims I hold."""

    versions: list[int]
    node: str  # its name
    boot_id: str
    nonce: str
    holds: list[Hold]
    workers: int
    labels: dict[str, str] = {}
    capabilities: list[str] = []
    resources: Resources = Resources()


class Welcome(Frame, tag="welcome", frozen=True):
    """Coordinator, answering: the version we speak, for how long a claim holds, and which holds are lost."""

    version: int
    lease_seconds: float
    heartbeat_seconds: float
    node: str  # its id
    lost: list[Hold] = []


class Refused(Frame, tag="refused", frozen=True):
    """Coordinator, instead of welcome: why this node may not join. It dials again, but not after `NODE_DUPLICATE`."""

    code: str
    error: str


class Credit(Frame, tag="credit", frozen=True):
    """Node: this many workers were free when I had seen the assign with this number. Absolute: a repeat is harmless."""

    slots: int
    seen: int


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """One claimed task for a node to run."""

    hold: Hold
    attempt: str
    spec: TaskSpec


class Assign(Frame, tag="assign", frozen=True):
    """Coordinator: these tasks are yours; `number` counts assigned tasks on this connection."""

    number: int
    tasks: list[Assignment]


class Started(Frame, tag="started", frozen=True):
    """Node: these attempts run now."""

    holds: list[Hold]


class Renew(Frame, tag="renew", frozen=True):
    """Node: I am alive and hold these; also its heartbeat."""

    holds: list[Hold]


class Renewed(Frame, tag="renewed", frozen=True):
    """Coordinator: renewed but for the lost ones, which the node has to stop."""

    lost: list[Hold]


class ProgressFrame(Frame, tag="progress", frozen=True):
    """Node: how far an attempt is."""

    hold: Hold
    progress: Progress


class Log(Frame, tag="log", frozen=True):
    """Node: output of an attempt from `offset` of that stream on; at most 64 KiB."""

    hold: Hold
    attempt: str
    stream: str
    offset: int
    data: bytes


class LogKept(Frame, tag="log_kept", frozen=True):
    """Coordinator: that stream is durable up to `offset`; the node may forget it."""

    attempt: str
    stream: str
    offset: int


class Report(msgspec.Struct, frozen=True, array_like=True):
    """How one attempt ended; repeated until it is answered."""

    hold: Hold
    attempt: str
    ending: Ending


class Done(Frame, tag="done", frozen=True):
    """Node: these attempts ended."""

    reports: list[Report]


class DoneAck(Frame, tag="done_ack", frozen=True):
    """Coordinator: committed; stale reports were refused, and are not to be sent again either."""

    attempts: list[str]
    stale: list[str] = []


class Release(Frame, tag="release", frozen=True):
    """Node: I hand these back, not started or stopped; run them elsewhere."""

    holds: list[Hold]
    reason: str


class Cancel(Frame, tag="cancel", frozen=True):
    """Coordinator: stop these attempts; whatever they report is stale."""

    holds: list[Hold]


class WantInput(Frame, tag="want_input", frozen=True):
    """Node: this attempt reads its standard input; send it from `offset` on, `credit` bytes at most."""

    hold: Hold
    attempt: str
    offset: int
    credit: int


class Input(Frame, tag="input", frozen=True):
    """Coordinator: standard input for an attempt."""

    attempt: str
    offset: int
    data: bytes
    end: bool = False


class Bye(Frame, tag="bye", frozen=True):
    """Node: I stop; I hold nothing any more."""


class Drain(Frame, tag="drain", frozen=True):
    """Coordinator: take nothing new; finish what runs."""

    on: bool


class Ping(Frame, tag="ping", frozen=True):
    """Either: I am here."""


def name_of(frame: Frame) -> str:
    """The frame's type as it stands on the wire."""
    tag: Any = type(frame).__struct_config__.tag
    return str(tag)
