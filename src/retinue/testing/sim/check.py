"""The checkers: pure functions over what clients saw, what stands in the store and what the feed says.

Each is registered under its invariant's number (INVARIANTS section 3) and answers with sentences about what is broken.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any, Final

import msgspec

from retinue.tasks.model import MOST_LOSSES, TERMINAL, TaskStatus
from retinue.testing.sim.history import Entry

Row = dict[str, Any]
SECOND: Final = 1_000_000
FASTEST: Final = 2.0  # the rate of the fastest clock, with a little room below


@dataclass(frozen=True, slots=True)
class Fact:
    """One event of the feed."""

    position: int
    type: str
    at: int
    subject: str
    node: str | None
    data: dict[str, Any]

    @property
    def fence(self) -> int | None:
        """The claim it speaks of; None when it speaks of none."""
        fence = self.data.get("fence")
        return None if fence is None else int(fence)


@dataclass(slots=True)
class Evidence:
    """Everything a checker may look at. Rows are dictionaries by column; `now` and all `at` are the lease clock's."""

    history: list[Entry]
    tasks: list[Row]
    ready: list[Row]
    running: list[Row]
    attempts: list[Row]
    counts: list[Row]
    events: dict[str, list[Fact]]  # by team, in order of position
    now: int
    lease: float  # seconds
    sweep: float  # seconds between two looks of the reaper
    calm: float  # seconds since everything was healed
    nodes: list[Row] = field(default_factory=list)
    witness: list[Row] = field(default_factory=list)  # how each claim ended, as a trigger of the store saw it
    renewals: list[Row] = field(default_factory=list)  # how often each claim's lease was moved
    logs: list[Row] = field(default_factory=list)
    begun: list[Row] = field(default_factory=list)  # when each claim was marked as started
    strays: list[Row] = field(default_factory=list)  # output that was added without a claim
    faultless: bool = False  # nothing went wrong in this run
    notes: dict[str, Any] = field(default_factory=dict)

    def operations(self, verb: str, *outcomes: str) -> Iterator[Entry]:
        """The answers to one kind of question that clients got."""
        for entry in self.history:
            if entry.kind in outcomes and entry.what.get("verb") == verb:
                yield entry

    def facts(self, subject: str) -> list[Fact]:
        """The events about one task."""
        return self.by_task().get(subject, [])

    def by_task(self) -> dict[str, list[Fact]]:
        """The events of each task, in order."""
        if "by_task" not in self.notes:
            grouped: dict[str, list[Fact]] = {}
            for facts in self.events.values():
                for fact in facts:
                    if fact.type.startswith("task."):
                        grouped.setdefault(fact.subject, []).append(fact)
            self.notes["by_task"] = grouped
        found: dict[str, list[Fact]] = self.notes["by_task"]
        return found


_FROM_ABOVE: Final = ("NODE_LOST", "DEADLINE", "PARENT_FAILED", "CANCELLED")  # no holder said so

Checker = Callable[[Evidence], Iterator[str]]
CHECKERS: Final[dict[str, Checker]] = {}


def invariant(number: str) -> Callable[[Checker], Checker]:
    """Register the checker of an invariant."""

    def register(checker: Checker) -> Checker:
        CHECKERS[number] = checker
        return checker

    return register


def violations(evidence: Evidence, only: frozenset[str] | None = None) -> list[str]:
    """Everything that is broken, as `I-05: task … `."""
    return [
        f"{number}: {sentence}"
        for number, checker in CHECKERS.items()
        if only is None or number in only
        for sentence in checker(evidence)
    ]


@invariant("I-01")
def no_acked_task_is_lost(evidence: Evidence) -> Iterator[str]:
    """Every create that was answered ends in exactly one terminal status."""
    status = {row["id"]: row["status"] for row in evidence.tasks}
    for entry in evidence.operations("create", "ok"):
        task = entry.what["value"]
        if task not in status:
            yield f"task {task} was acknowledged at {entry.at} s and is not in the store"
        elif status[task] not in TERMINAL:
            yield f"task {task} was acknowledged and is still {_held(evidence, task) or status[task]} after the calm"


@invariant("I-02")
def no_task_is_completed_twice(evidence: Evidence) -> Iterator[str]:
    """At most one accepted result a task: in the store, in the feed, and in what nodes were told."""
    accepted: dict[str, set[tuple[Any, Any]]] = {}
    for row in evidence.attempts:
        if row["status"] == "completed":
            accepted.setdefault(row["task"], set()).add((row["fence"], row["digest"]))
    for entry in evidence.history:
        if entry.kind == "accepted":
            accepted.setdefault(entry.what["task"], set()).add((entry.what["fence"], entry.what["digest"]))
    for task, facts in evidence.by_task().items():
        for fact in facts:
            if fact.type == "task.completed":
                accepted.setdefault(task, set()).add((fact.fence, fact.data.get("digest")))
        allowed = 1 + sum(1 for fact in facts if fact.type == "task.retried" and fact.fence is None)
        if len(accepted.get(task, ())) > allowed:
            yield f"task {task} has several accepted results: {sorted(accepted[task], key=str)}"


@invariant("I-03")
def fences_rise_and_stale_holders_change_nothing(evidence: Evidence) -> Iterator[str]:
    """A claim's fence is above every earlier one; an event of a claim carries the fence that was current."""
    for task, facts in evidence.by_task().items():
        highest = 0
        current: int | None = None
        before: Fact | None = None
        for fact in facts:
            fence = fact.fence
            if fact.type == "task.claimed":
                if fence is None or fence <= highest:
                    yield f"task {task} was claimed under fence {fence} after {highest} (position {fact.position})"
                highest = max(highest, fence or 0)
                current = fence
            elif fence is not None:
                # An orphan whose policy says `fail` has two events: it was lost, so it failed.
                lost = before is not None and before.type == "task.orphaned" and before.data["status"] == "failed"
                if fence != current and not (lost and fact.type == "task.failed" and fence == highest):
                    yield (
                        f"{fact.type} of task {task} under fence {fence} took effect while it was {current}"
                        f" (position {fact.position})"
                    )
                if fact.type not in ("task.started", "task.progress"):
                    current = None
            before = fact
        for row in evidence.attempts:
            if row["task"] == task and row["fence"] > highest:
                yield f"task {task} has an attempt under fence {row['fence']}, which was never given"


@invariant("I-03 renew")
def only_the_holder_renews(evidence: Evidence) -> Iterator[str]:
    """A lease is renewed at most as often as nodes asked for exactly this claim; links may repeat no frame."""
    asked: dict[tuple[str, int], int] = {}
    for entry in evidence.history:
        if entry.kind == "renew":
            for task, fence in entry.what["holds"]:
                asked[task, fence] = asked.get((task, fence), 0) + 1
    for row in evidence.renewals:
        if row["times"] > asked.get((row["task"], row["fence"]), 0):
            yield (
                f"the lease of task {row['task']} under fence {row['fence']} was renewed {row['times']} times,"
                f" and asked for {asked.get((row['task'], row['fence']), 0)} times"
            )


@invariant("I-03 report")
def only_the_holder_ends_its_attempt(evidence: Evidence) -> Iterator[str]:
    """An attempt begins and ends by what its own holder said, under its own fence, and not before."""
    reported: dict[tuple[str, int], float] = {}
    said: dict[tuple[str, int], float] = {}
    for entry in evidence.history:
        if entry.kind == "done":
            reported.setdefault((entry.what["task"], entry.what["fence"]), entry.at)
        if entry.kind in ("start", "done"):
            said.setdefault((entry.what["task"], entry.what["fence"]), entry.at)
    for row in evidence.begun:
        if said.get((row["task"], row["fence"]), inf) > row["seen_at"] + 1e-5:
            yield f"task {row['task']} began under fence {row['fence']}, and nobody had said so"
    ended = {(row["task"], row["fence"]): row["seen_at"] for row in evidence.witness}
    for task, facts in evidence.by_task().items():
        for fact in facts:
            fence = fact.fence
            if fence is None or fact.type not in ("task.completed", "task.failed", "task.retried"):
                continue
            if fact.data.get("code") in _FROM_ABOVE or (task, fence) not in ended:
                continue
            if reported.get((task, fence), inf) > ended[task, fence] + 1e-5:
                yield f"{fact.type} of task {task} under fence {fence} was accepted, and nobody had reported it"


@invariant("I-03 output")
def only_the_holder_writes_output(evidence: Evidence) -> Iterator[str]:
    """Nothing is added to an attempt's output when its claim does not stand, and every stream is kept without a gap."""
    for row in evidence.strays:
        yield f"output of {row['attempt']} was taken at {row['seen_at']:.3f} s, when nobody held its claim"
    kept: dict[tuple[str, str], int] = {}
    for row in evidence.logs:
        stream = (row["attempt"], row["stream"])
        if row["start"] != kept.get(stream, 0):
            yield f"{row['stream']} of {row['attempt']} has a piece at {row['start']} after {kept.get(stream, 0)}"
        kept[stream] = row["start"] + row["size"]


@invariant("I-04")
def terminal_is_for_ever(evidence: Evidence) -> Iterator[str]:
    """Nothing follows a terminal status except an operator's retry."""
    for task, facts in evidence.by_task().items():
        over: Fact | None = None
        for fact in facts:
            if over is not None and not (fact.type == "task.retried" and fact.fence is None):
                yield f"task {task}: {fact.type} at position {fact.position} after {over.type} at {over.position}"
            over = fact if fact.type in ("task.completed", "task.failed", "task.cancelled") else None
    alive = {row["id"] for row in evidence.running} | {row["id"] for row in evidence.ready}
    for row in evidence.tasks:
        if row["status"] in TERMINAL and row["id"] in alive:
            yield f"task {row['id']} is {row['status']} and may still be claimed or is held"


@invariant("I-04 seen")
def clients_see_one_end(evidence: Evidence) -> Iterator[str]:
    """Whoever looks after a task has ended sees the same end, each time."""
    ends: dict[str, tuple[str, str | None]] = {}
    for entry in evidence.history:
        if entry.kind == "ok" and entry.what.get("status") in TERMINAL:
            task, end = entry.what["value"], (entry.what["status"], entry.what["attempt"])
            if ends.setdefault(task, end) != end:
                yield f"task {task} had ended as {ends[task]} and was seen as {end} at {entry.at} s"
        elif entry.kind == "ok" and entry.what["value"] in ends and "status" in entry.what:
            yield f"task {entry.what['value']} had ended and was seen as {entry.what['status']} at {entry.at} s"


@invariant("I-05")
def one_claim_at_a_time(evidence: Evidence) -> Iterator[str]:
    """No task is claimed while an unexpired claim of it stands."""
    for task, facts in evidence.by_task().items():
        held: Fact | None = None
        for fact in facts:
            if fact.type == "task.claimed":
                if held is not None:
                    yield (
                        f"task {task} was claimed by {fact.node} (position {fact.position}) while {held.node}"
                        f" held it since position {held.position}"
                    )
                held = fact
            elif fact.type not in ("task.started", "task.progress"):
                held = None
    ready = {row["id"] for row in evidence.ready}
    for row in evidence.running:
        if row["id"] in ready:
            yield f"task {row['id']} is held under fence {row['fence']} and may be claimed at the same time"


@invariant("I-06")
def a_key_makes_one_task(evidence: Evidence) -> Iterator[str]:
    """All answers to one idempotency key name one task, and there is no other."""
    answers: dict[str, set[str]] = {}
    for entry in evidence.operations("create", "ok"):
        answers.setdefault(entry.what["key"], set()).add(entry.what["value"])
    for key, tasks in answers.items():
        if len(tasks) > 1:
            yield f"key {key} was answered with {sorted(tasks)}"
    names: dict[str, int] = {}
    for row in evidence.tasks:
        name = _spec_of(row).get("name", "")
        names[name] = names.get(name, 0) + 1
    for name, times in names.items():
        if times > 1 and name:
            yield f"the submission {name} made {times} tasks"


@invariant("I-07")
def orphans_come_back(evidence: Evidence) -> Iterator[str]:
    """No claim outlives its lease by more than two sweeps of an awake reaper."""
    if evidence.calm < 2 * evidence.lease + 2 * evidence.sweep:
        return
    for row in evidence.running:
        late = (evidence.now - row["reap_at"]) / SECOND
        if late > 2 * evidence.sweep:
            yield f"task {row['id']} is held by {row['node']} since its lease ended {late:.1f} s ago"


@invariant("I-07 nobody else")
def nobody_else_is_orphaned(evidence: Evidence) -> Iterator[str]:
    """A claim is taken away when its lease has ended and the reaper has been awake for one, or its process is gone."""
    ends = {(row["task"], row["fence"]): row for row in evidence.witness}
    starts = [entry.at for entry in evidence.history if entry.kind == "coordinator"]
    boots = _registrations(evidence)
    for task, facts in evidence.by_task().items():
        claimed: Fact | None = None
        for fact in facts:
            if fact.type == "task.claimed":
                claimed = fact
            if fact.type != "task.orphaned" or claimed is None:
                continue
            boot = claimed.data.get("boot")
            latest = [new for position, new in boots.get(str(fact.node), ()) if position < fact.position]
            if latest and latest[-1] != boot:
                continue  # its process was replaced: that is known at its hello
            end = ends.get((task, fact.fence or 0))
            if end is None:
                continue
            left = (end["reap_at"] - end["at"]) / SECOND
            if left > 0:
                yield f"task {task} was orphaned {left:.3f} s before its lease ended (position {fact.position})"
            awake = end["seen_at"] - max((at for at in starts if at <= end["seen_at"]), default=0.0)
            if awake < evidence.lease / FASTEST:
                yield f"task {task} was orphaned by a reaper that had been awake for {awake:.1f} s"
            if evidence.faultless:
                yield f"task {task} was orphaned though nothing ever failed"


def _registrations(evidence: Evidence) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for facts in evidence.events.values():
        for fact in facts:
            if fact.type == "node.registered":
                found.setdefault(fact.subject, []).append((fact.position, str(fact.data["boot"])))
    return found


@invariant("I-08")
def poison_is_bounded(evidence: Evidence) -> Iterator[str]:
    """Attempts that were started and failed stay within `max_attempts`, those lost with their node within three."""
    attempts: dict[str, list[Row]] = {}
    for row in evidence.attempts:
        attempts.setdefault(row["task"], []).append(row)
    for task in evidence.tasks:
        rows = attempts.get(task["id"], [])
        retries = sum(1 for fact in evidence.facts(task["id"]) if fact.type == "task.retried" and fact.fence is None)
        most = int(_spec_of(task).get("max_attempts", 1)) * (1 + retries)
        failed = sum(1 for row in rows if row["status"] == "failed")  # told by its node, so it was tried
        lost = sum(1 for row in rows if row["status"] == "orphaned" and row["started_at"] is not None)
        if failed > most:
            yield f"task {task['id']} failed {failed} times with max_attempts {most}"
        if lost > (MOST_LOSSES + 1) * (1 + retries):
            yield f"task {task['id']} was lost with its node {lost} times"
        if task["losses"] > lost or task["failures"] > failed:
            yield f"task {task['id']} counts {task['failures']} failures and {task['losses']} losses, more than it had"


@invariant("I-09")
def children_wait_for_their_parents(evidence: Evidence) -> Iterator[str]:
    """No claim of a child stands before all its parents have ended, and as its policy wants them."""
    ended = {
        fact.subject: fact
        for facts in evidence.by_task().values()
        for fact in facts
        if fact.type in ("task.completed", "task.failed", "task.cancelled")
    }
    policy = {row["id"]: _spec_of(row).get("after_policy", "success") for row in evidence.tasks}
    for task, facts in evidence.by_task().items():
        parents = facts[0].data.get("parents", []) if facts else []
        first = next((fact for fact in facts if fact.type == "task.claimed"), None)
        if first is None:
            continue
        for parent in parents:
            end = ended.get(parent)
            if end is None or end.position > first.position:
                yield f"task {task} was claimed (position {first.position}) before its parent {parent} had ended"
            elif end.type != "task.completed" and policy.get(task) == "success":
                yield f"task {task} was claimed though its parent {parent} had {end.type.removeprefix('task.')}"


@invariant("I-10")
def a_cancelled_task_stays_cancelled(evidence: Evidence) -> Iterator[str]:
    """A cancel that was answered has won: the task is cancelled, and nothing is accepted after it."""
    status = {row["id"]: row["status"] for row in evidence.tasks}
    for entry in evidence.operations("cancel", "ok"):
        task = entry.what["value"]
        if status.get(task) != TaskStatus.CANCELLED:
            yield f"task {task} was cancelled at {entry.at} s and is {status.get(task)}"


@invariant("I-11")
def tasks_run_only_where_they_may(evidence: Evidence) -> Iterator[str]:
    """Every claim is by a node that has the task's labels, and no node runs more than it has workers for."""
    wanted = {row["id"]: _spec_of(row).get("labels", {}) for row in evidence.tasks}
    has = {row["id"]: msgspec.json.decode(row["labels"]) for row in evidence.nodes}
    for task, facts in evidence.by_task().items():
        for fact in facts:
            labels = has.get(str(fact.node), {})
            if fact.type == "task.claimed" and any(labels.get(k) != v for k, v in wanted.get(task, {}).items()):
                yield f"task {task} with labels {wanted[task]} was claimed by {fact.node}, which has {labels}"
    workers = {row["name"]: row["workers"] for row in evidence.nodes}
    live: dict[str, set[int]] = {}
    for entry in evidence.history:
        if entry.kind == "program":
            runs = live.setdefault(entry.who, set())
            runs.add(entry.what["pid"])
            if len(runs) > workers.get(entry.who, len(runs)):
                yield f"node {entry.who} runs {len(runs)} programs at {entry.at} s"
        elif entry.kind == "program-ended":
            live[entry.who].discard(entry.what["pid"])


def _spec_of(row: Row) -> dict[str, Any]:
    spec: dict[str, Any] = msgspec.json.decode(row["spec"])
    return spec


@invariant("I-28")
def the_feed_tells_the_state(evidence: Evidence) -> Iterator[str]:
    """Status and fence that follow from the events are those of the rows."""
    held = {row["id"]: row for row in evidence.running}
    for row in evidence.tasks:
        facts = evidence.facts(row["id"])
        if not facts:
            yield f"task {row['id']} has no event"
            continue
        told = ""
        for fact in facts:
            told = _status_after(fact, told)
        stands = held[row["id"]]["status"] if row["id"] in held else row["status"]
        if told != stands:
            yield f"task {row['id']} is {stands} in the store and {told} in the feed"
        fences = [fact.fence for fact in facts if fact.fence is not None]
        fence = held[row["id"]]["fence"] if row["id"] in held else row["fence"]
        if fences and fence != max(fences):
            yield f"task {row['id']} has fence {fence} in the store and {max(fences)} in the feed"


def _status_after(fact: Fact, before: str) -> str:
    match fact.type:
        case "task.claimed":
            return TaskStatus.CLAIMED
        case "task.started":
            return TaskStatus.RUNNING
        case "task.progress":
            return before
        case "task.released":
            return str(fact.data.get("status", TaskStatus.PENDING))
        case "task.completed" | "task.failed" | "task.cancelled":
            return fact.type.removeprefix("task.")
        case _:
            return str(fact.data["status"])


@invariant("I-41")
def the_feed_has_no_holes(evidence: Evidence) -> Iterator[str]:
    """Positions rise by one."""
    for team, facts in evidence.events.items():
        for before, fact in pairwise(facts):
            if fact.position != before.position + 1:
                yield f"team {team}: position {fact.position} follows {before.position}"
    for team, broken in evidence.notes.get("broken_links", {}).items():
        if broken:
            yield f"team {team}: the hash links at {broken} do not verify"


@invariant("counts")
def counts_are_exact(evidence: Evidence) -> Iterator[str]:
    """What `/status` shows is what stands in the store."""
    counted: dict[tuple[str, str], int] = {}
    held = {row["id"]: row["status"] for row in evidence.running}
    for row in evidence.tasks:
        key = (str(row["team"]), str(held.get(row["id"], row["status"])))
        counted[key] = counted.get(key, 0) + 1
    said = {(row["team"], row["status"]): row["tasks"] for row in evidence.counts if row["tasks"]}
    if said != counted:
        yield f"the counts say {said}, the rows {counted}"


@invariant("outside")
def programs_end_with_their_node(evidence: Evidence) -> Iterator[str]:
    """After the calm no program runs that no claim stands for."""
    if evidence.running:
        return
    live: dict[int, Entry] = {}
    for entry in evidence.history:
        if entry.kind == "program":
            live[entry.what["pid"]] = entry
        elif entry.kind == "program-ended":
            live.pop(entry.what["pid"], None)
    for pid, entry in live.items():
        yield f"program {pid} ({entry.what['label']}) still runs on {entry.who} with no claim"


def _held(evidence: Evidence, task: str) -> str:
    return next((f"held by {row['node']}" for row in evidence.running if row["id"] == task), "")
