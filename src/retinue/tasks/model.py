"""Tasks as values: what to run and where, the states, the moves between them, and who gets what next. No I/O."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

from retinue.errors import Invalid, NotSupported
from retinue.nodes.model import RESERVED, Offer
from retinue.nodes.resources import Resources


class TaskStatus(StrEnum):
    """Where a task is in its life."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    PENDING = "pending"
    CLAIMED = "claimed"
    RUNNING = "running"
    INPUT_REQUIRED = "input-required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptStatus(StrEnum):
    """Where one try at a task is in its life."""

    CLAIMED = "claimed"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ORPHANED = "orphaned"
    RELEASED = "released"
    SUPERSEDED = "superseded"


TERMINAL: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})
WAITING: Final = frozenset({TaskStatus.SCHEDULED, TaskStatus.BLOCKED, TaskStatus.PENDING})
HELD: Final = frozenset({TaskStatus.CLAIMED, TaskStatus.RUNNING})


class Move(msgspec.Struct, frozen=True):
    """One kind of step in a task's life: the event that records it, where from, where to, and why it happens.

    With more than one target the event's `status` says which.
    """

    event: str
    sources: frozenset[TaskStatus]
    targets: frozenset[TaskStatus]
    why: str


def _life(event: str, sources: Iterable[TaskStatus], targets: Iterable[TaskStatus], why: str) -> Move:
    return Move(event, frozenset(sources), frozenset(targets), why)


_BLOCKED, _SCHEDULED, _PENDING = TaskStatus.BLOCKED, TaskStatus.SCHEDULED, TaskStatus.PENDING
_CLAIMED, _RUNNING = TaskStatus.CLAIMED, TaskStatus.RUNNING
# The life of a task, complete: `docs/life-of-a-task.md` is drawn from it, `tasks/history.py` replays events by it.
MOVES: Final = (
    _life(
        "task.created", (), WAITING, "submitted; blocked while parents are not done, scheduled for later, or pending"
    ),
    _life("task.ready", (_SCHEDULED, _BLOCKED), (_PENDING, _SCHEDULED), "its time came, or its parents ended"),
    _life("task.claimed", (_PENDING,), (_CLAIMED,), "given to a node under a higher fence"),
    _life("task.started", (_CLAIMED,), (_RUNNING,), "the attempt runs"),
    _life("task.released", HELD, (_PENDING,), "handed back by its node, or never reached it; this costs nothing"),
    _life("task.orphaned", HELD, (_PENDING, TaskStatus.FAILED), "its node was lost; `on_node_loss` says what follows"),
    _life("task.retried", HELD | TERMINAL, WAITING, "an attempt failed and another is allowed, or an operator asked"),
    _life("task.completed", HELD, (TaskStatus.COMPLETED,), "its result was accepted"),
    _life("task.failed", HELD | WAITING, (TaskStatus.FAILED,), "no attempt is left, too late, or a parent failed"),
    _life("task.cancelled", HELD | WAITING, (TaskStatus.CANCELLED,), "cancelled, or its foreground client is gone"),
)
EVENTS: Final = {move.event: move for move in MOVES}


class FailureCode(StrEnum):
    """Why a task or an attempt failed."""

    EXIT = "EXIT"
    TIMEOUT = "TIMEOUT"
    DEADLINE = "DEADLINE"
    NODE_LOST = "NODE_LOST"
    PARENT_FAILED = "PARENT_FAILED"
    CANCELLED = "CANCELLED"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    NODE_EXHAUSTED = "NODE_EXHAUSTED"  # its node had no process, memory or disk left to start it: worth another try
    FUNCTION_ERROR = "FUNCTION_ERROR"
    HOST_LOST = "HOST_LOST"
    POLICY = "POLICY"


class Priority(StrEnum):
    """How urgent a task is within its team."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


# `rank = ready_at + offset`, fixed at insert: aging without a write. The widest gap is the longest a later
# task can overtake an earlier one (INVARIANTS I-12).
RANK_OFFSET: Final[Mapping[str, timedelta]] = {
    Priority.CRITICAL: timedelta(0),
    Priority.HIGH: timedelta(minutes=1),
    Priority.MEDIUM: timedelta(minutes=4),
    Priority.LOW: timedelta(minutes=10),
}
MOST_LOSSES: Final = 3
FENCE_BITS: Final = 32
LEASE: Final = timedelta(seconds=15)
MOST_QUEUES: Final = 1000
OUTPUT_LIMIT: Final = 64 * 1024 * 1024


class TaskSpec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is submitted: what to run, where, how long, how often. Fixed for the task's life."""

    description: str = ""
    name: str | None = None
    command: list[str] | None = None
    function: str | None = None
    arguments: list[Any] = []
    agent: str | None = None
    input: Any = None
    repo: str | None = None
    ref: str | None = None
    priority: Priority = Priority.MEDIUM
    labels: dict[str, str] = {}
    tags: dict[str, str] = {}
    requires: list[str] = []
    node: str | None = None
    collection: str | None = None
    connectors: list[str] = []
    resources: Resources = Resources()
    after: list[str] = []
    after_policy: Literal["success", "any"] = "success"
    parent: str | None = None
    timeout_seconds: float | None = None
    deadline: datetime | None = None
    max_attempts: int = 1
    backoff_seconds: float = 1.0
    not_before: datetime | None = None
    schedule: str | None = None
    on_node_loss: str = "requeue"
    checks: list[list[str]] = []
    artifacts: list[str] = []
    env: dict[str, str] = {}
    pass_env: list[str] = []
    secret_env: list[str] = []
    runner: str | None = None
    pty: bool = False
    output_limit_bytes: int = OUTPUT_LIMIT
    session: str | None = None  # a foreground task lives no longer than its client's session
    stdin: bool = False  # its client streams standard input to it


_NOT_BUILT: Final = (
    "agent",
    "repo",
    "ref",
    "collection",
    "connectors",
    "schedule",
    "checks",
    "artifacts",
    "runner",
    "pty",
    "secret_env",
)


_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # NUL as JSON writes it, after any number of escaped backslashes


def check(spec: TaskSpec) -> TaskSpec:
    """The spec, when it can be taken.

    Raises:
        Invalid: a field is wrong; the path and the problem are in the details.
        NotSupported: a field of a part that is not built yet.
    """
    for field in _NOT_BUILT:
        if getattr(spec, field):
            raise NotSupported(f"{field}: this part of Retinue is not built yet; leave the field out.", field=field)
    if (spec.command is None) == (spec.function is None):
        raise Invalid.field("command", "give exactly one of command and function")
    if spec.command is not None and (not spec.command or not spec.command[0]):
        raise Invalid.field("command", "name the program to run, then its arguments")
    try:
        written = msgspec.json.encode(spec)
    except (UnicodeEncodeError, TypeError, ValueError):
        raise Invalid.field("task", "it holds text that is not Unicode, or a value that JSON has not") from None
    if _NUL.search(written):
        raise Invalid.field("task", "a NUL character cannot stand in it")
    if any(not name or "=" in name for name in spec.env):
        raise Invalid.field("env", "a variable's name is neither empty nor holds '='")
    if not 1 <= spec.max_attempts <= 100:
        raise Invalid.field("max_attempts", "from 1 to 100")
    if spec.timeout_seconds is not None and not 0 < spec.timeout_seconds <= 366 * 86400:
        raise Invalid.field("timeout_seconds", "more than 0 and at most a year")
    if not 0 <= spec.backoff_seconds <= 86400:
        raise Invalid.field("backoff_seconds", "from 0 to a day")
    if not 0 < spec.output_limit_bytes <= 1 << 34:
        raise Invalid.field("output_limit_bytes", "more than 0 and at most 16 GiB")
    if not all(0 <= part < 1e9 for part in (spec.resources.cpu, spec.resources.memory_mb, spec.resources.gpu)):
        raise Invalid.field("resources", "not less than 0, and less than 10^9")
    for at in ("deadline", "not_before"):
        value = getattr(spec, at)
        if value is not None and value.tzinfo is None:
            raise Invalid.field(at, "say the time zone, for instance 2026-11-21T12:00:00Z")
    if len(set(spec.after)) != len(spec.after):
        raise Invalid.field("after", "each parent once")
    loss_policy(spec.on_node_loss)
    return spec


class LossPolicy(msgspec.Struct, frozen=True):
    """What becomes of a started attempt whose node is lost: run again after `patience`, or fail."""

    requeue: bool
    patience: timedelta = timedelta(0)


def loss_policy(text: str) -> LossPolicy:
    """`requeue`, `wait:SECONDS` or `fail`.

    Raises:
        Invalid: it is none of them.
    """
    if text in ("requeue", "fail"):
        return LossPolicy(requeue=text == "requeue")
    kind, _, seconds = text.partition(":")
    try:
        patience = float(seconds.removesuffix("s"))
    except ValueError:
        patience = -1
    if kind != "wait" or not 0 < patience <= 30 * 86400:
        raise Invalid.field("on_node_loss", "one of requeue, wait:SECONDS (at most 30 days), fail")
    return LossPolicy(requeue=True, patience=timedelta(seconds=patience))


class Queue(msgspec.Struct, frozen=True):
    """One requirement set of one team. Its tasks can run on the same nodes, so they wait in one line."""

    id: str
    team: str
    labels: dict[str, str] = {}
    requires: tuple[str, ...] = ()
    node: str | None = None
    resources: Resources = Resources()

    def served_by(self, node: Offer) -> bool:
        """Whether a node may ever run these tasks: team, bound node, labels, capabilities, and size when empty."""
        return (
            node.team == self.team
            and self.node in (None, node.name, node.node)
            and all(node.labels.get(key) == value for key, value in self.labels.items())
            and all(node.has(wanted) for wanted in self.requires)
            and not node.reserved(self.requires)
            and self.resources.fits(node.resources)
        )


def queue_of(team: str, spec: TaskSpec) -> Queue:
    """The line a task waits in. Its id is a digest of the requirement set, so nobody has to look it up."""
    requires = {*spec.requires, *([f"function:{spec.function}"] if spec.function else [])}
    # One core is one core, whether somebody wrote 1 or 1.0: the spec read back from the store says the same queue.
    resources = Resources(float(spec.resources.cpu) + 0.0, spec.resources.memory_mb, spec.resources.gpu)
    parts = (team, sorted(spec.labels.items()), sorted(requires), spec.node, resources)
    digest = hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=10).hexdigest()
    return Queue(digest, team, dict(spec.labels), tuple(sorted(requires)), spec.node, resources)


def freed(spec: TaskSpec) -> TaskSpec:
    """The spec without what tied it to a client that may be gone: anyone may run it again, without its input."""
    requires = [wanted for wanted in spec.requires if not wanted.startswith(RESERVED)]
    return msgspec.structs.replace(spec, session=None, stdin=False, requires=requires)


def rank(ready_at: int, priority: str) -> int:
    """Where in its queue a task stands, in microseconds: lower goes first."""
    return ready_at + RANK_OFFSET[priority] // timedelta(microseconds=1)


def next_fence(fence: int, epoch: int) -> int:
    """The fence above `fence`; the restore epoch is its high bits, so a restored store never issues an old one."""
    return max(fence, epoch << FENCE_BITS) + 1


def claim_token(key: bytes, task: str, fence: int, boot: str) -> str:
    """128 bits nobody can guess: a MAC over task, fence and the holder's boot. A repeated claim gets the same one."""
    return hmac.digest(key, f"{task}\0{fence}\0{boot}".encode(), "sha256")[:16].hex()


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """What a holder shows with everything it does: the task, its fence, its claim token."""

    task: str
    fence: int
    claim_token: str


class Claim(msgspec.Struct, frozen=True):
    """A task given to a node: the attempt, its right to it, and what to run."""

    task: str
    attempt: str
    fence: int
    queue: str
    team: str
    node: str
    boot: str
    spec: str  # JSON of the TaskSpec, decoded where it is used

    def hold(self, key: bytes) -> Hold:
        """The right that goes with it."""
        return Hold(self.task, self.fence, claim_token(key, self.task, self.fence, self.boot))


class Ending(msgspec.Struct, frozen=True, array_like=True):
    """How an attempt ended, as its node tells it. `digest` makes the same report recognizable when it is sent again."""

    ok: bool
    exit_code: int | None = None
    result: Any = None
    error: str | None = None
    code: str | None = None
    retryable: bool = True

    def digest(self) -> str:
        """The same for the same report."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=16).hexdigest()


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far an attempt is: the latest value wins."""

    stage: str | None = None
    percent: float | None = None
    message: str | None = None
    counts: dict[str, int] = {}


def storable(text: str, most: int = 10_000) -> str:
    """The text as every database takes it: no NUL, no lone surrogate, not endless."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return clean if len(clean) <= most else clean[:most] + "…"


def backoff(spec_backoff: float, failures: int, chance: float) -> timedelta:
    """How long to wait after the n-th failure: doubling, at most an hour, up to a quarter more (`chance` in 0..1)."""
    return timedelta(seconds=min(3600.0, spec_backoff * 2.0 ** min(failures - 1, 30)) * (1 + chance / 4))


class Attempt(msgspec.Struct, frozen=True):
    """One try at a task, as people see it."""

    id: str
    status: AttemptStatus
    fence: int
    node: str
    claimed_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    exit_code: int | None = None
    code: str | None = None
    error: str | None = None


class Reason(msgspec.Struct, frozen=True):
    """Why a task waits: a code for machines, a sentence for people."""

    code: str
    sentence: str


class Task(msgspec.Struct, frozen=True):
    """A task as people see it: the document of API.md 3."""

    id: str
    name: str | None
    description: str
    repo: str | None
    command: list[str] | None
    function: str | None
    priority: Priority
    labels: dict[str, str]
    tags: dict[str, str]
    requires: list[str]
    node: str | None
    resources: Resources
    status: TaskStatus
    claimed_by: str | None
    claimed_at: datetime | None
    attempt: str | None
    attempts: list[Attempt]
    created_at: datetime
    ready_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    result: Any
    exit_code: int | None
    code: str | None
    error: str | None
    progress: Progress | None
    parent: str | None
    after: list[str]
    max_attempts: int
    timeout_seconds: float | None
    deadline: datetime | None
    on_node_loss: str
    waiting_because: Reason | None = None


def waiting_because(
    status: TaskStatus,
    queue: Queue,
    offers: list[Offer],
    *,
    unfinished: list[str],
    ready_at: datetime | None,
    backing_off: bool,
    busy: int,
) -> Reason | None:
    """Why a task waits, or None when it does not. `busy` counts the taken workers of the nodes that could run it."""
    if status is TaskStatus.BLOCKED:
        return Reason("PARENTS", f"It runs after {_listed(unfinished)}.")
    if status is TaskStatus.SCHEDULED:
        when = ready_at.isoformat(timespec="seconds") if ready_at else "later"
        if backing_off:
            return Reason("BACKOFF", f"Its last attempt failed; the next one is due at {when}.")
        return Reason("NOT_BEFORE", f"It is scheduled for {when}.")
    if status is not TaskStatus.PENDING:
        return None
    offers = [offer for offer in offers if not offer.reserved(queue.requires)]
    if not offers:
        return Reason("NO_NODE", "No node takes it just now; one starts with `retinue task wait`.")
    able = [offer for offer in offers if queue.served_by(offer)]
    if not able:
        return Reason("NO_MATCHING_NODE", f"No connected node can run it: {_lacking(queue, offers)}.")
    slots = sum(offer.workers for offer in able)
    if busy >= slots:
        return Reason("NO_FREE_SLOT", f"All {slots} workers of the {len(able)} nodes that can run it are busy.")
    return Reason("IN_LINE", "A worker is free and it is being handed out.")


def _lacking(queue: Queue, offers: list[Offer]) -> str:
    """What the nodes lack, in the order a person would look."""
    named = [offer for offer in offers if queue.node in (None, offer.name, offer.node)]
    if not named:
        return f"node {queue.node} is not connected"
    for key, value in sorted(queue.labels.items()):
        if not any(offer.labels.get(key) == value for offer in named):
            return f"none has the label {key}={value}"
    for wanted in queue.requires:
        if not any(offer.has(wanted) for offer in named):
            return f"none has the capability {wanted}"
    if not any(queue.resources.cpu <= offer.resources.cpu for offer in named):
        return f"none has {queue.resources.cpu:g} cores"
    if not any(queue.resources.memory_mb <= offer.resources.memory_mb for offer in named):
        return f"none has {queue.resources.memory_mb} MiB of memory"
    if not any(queue.resources.gpu <= offer.resources.gpu for offer in named):
        return f"none has {queue.resources.gpu} GPUs"
    return "no single one has all of its labels, capabilities and resources"


def _listed(ids: list[str]) -> str:
    shown = ", ".join(ids[:3])
    return f"{shown} and {len(ids) - 3} more" if len(ids) > 3 else shown or "its parents"
