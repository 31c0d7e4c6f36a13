"""What tasks do, said once more and simply: a model that the rows of every engine are compared with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinue.errors import (
    IdempotencyConflict,
    NotFound,
    ParentCancelled,
    RetinueError,
    StaleClaim,
    TaskFinal,
    TaskNotFinal,
)
from retinue.tasks.model import RANK_OFFSET, Claim, TaskSpec
from retinue.tasks.store import Dealt

LEASE = 150.0
OVER = ("completed", "failed", "cancelled")
Refused = type[RetinueError]


@dataclass
class Held:
    """A claim: who has the task until when."""

    node: str
    boot: str
    fence: int
    attempt: str
    reap_at: float
    started: bool = False


@dataclass
class Known:
    """A task."""

    id: str
    team: str
    spec: TaskSpec
    queue: str
    rank: float
    ready_at: float
    parents: list[str]
    parent: str | None
    session: str | None
    not_before: float
    deadline: float | None
    status: str = "pending"  # while it is held: that it was
    held: Held | None = None
    fence: int = 0
    failures: int = 0
    losses: int = 0
    attempt: str | None = None
    finished_at: float | None = None
    reports: dict[int, tuple[str, str]] = field(default_factory=dict)  # fence -> digest, answer

    @property
    def place(self) -> str:
        """Its status as people see it."""
        if self.held is None:
            return self.status
        return "running" if self.held.started else "claimed"

    @property
    def over(self) -> bool:
        return self.status in OVER


class Model:
    """All tasks, and what each verb does to them. Each answers with the expected outcome."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tasks: dict[str, Known] = {}
        self.keys: dict[tuple[str, str, str], tuple[str, str, float]] = {}
        self.refused: dict[tuple[str, str, str], tuple[str, Refused]] = {}  # keys of refused members of this group
        self.released: set[tuple[str, int]] = set()  # by this group: a repeat in it is answered like the first
        self.sessions: dict[str, tuple[str, float]] = {}  # boot, lease

    def new_group(self) -> None:
        self.refused = {}
        self.released = set()

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def create(
        self, new: Any, *, not_before: float, deadline: float | None, rank_of: Callable[[float, str], float]
    ) -> str | Refused:
        spec: TaskSpec = new.spec
        key = (new.team, new.principal, new.key)
        if new.key is not None:
            if key in self.keys:
                body, task, _ = self.keys[key]
                return task if body == new.body else IdempotencyConflict
            if key in self.refused:
                body, error = self.refused[key]
                return error if body == new.body else IdempotencyConflict
        problem = self._cannot_be_created(new.team, spec)
        if problem is not None:
            if new.key is not None:
                self.refused[key] = (new.body, problem)
            return problem
        if new.key is not None:
            self.keys[key] = (new.body, new.id, self.now)
        ready_at = max(self.now, not_before)
        task = Known(
            new.id, new.team, spec, new.queue.id, rank_of(ready_at, spec.priority), ready_at, list(spec.after),
            spec.parent, spec.session, not_before, deadline,
        )  # fmt: skip
        self.tasks[new.id] = task
        self._begin(task, scheduled=not_before > self.now)
        return str(new.id)

    def _cannot_be_created(self, team: str, spec: TaskSpec) -> Refused | None:
        relatives = [*spec.after, *([spec.parent] if spec.parent else [])]
        if any(name not in self.tasks or self.tasks[name].team != team for name in relatives):
            return NotFound
        if spec.session is not None and spec.session not in self.sessions:
            return NotFound
        above = spec.parent
        while above is not None and above in self.tasks:
            if self.tasks[above].status == "cancelled":
                return ParentCancelled
            above = self.tasks[above].parent if self.tasks[above].over else None
        return None

    def _begin(self, task: Known, *, scheduled: bool) -> None:
        """Wait as parents and time ask for; fail when a parent did."""
        states = [self.tasks[parent].status for parent in task.parents if parent in self.tasks]
        if task.spec.after_policy == "success" and any(state in OVER[1:] for state in states):
            self._end(task, "failed")
        elif any(state not in OVER for state in states):
            task.status = "blocked"
        else:
            task.status = "scheduled" if scheduled else "pending"

    def claim(self, workers: int, queues: Sequence[str], after_team: str) -> list[str]:
        """Which tasks one node is given, in order: the best of each team, teams in turn."""
        lines: dict[str, list[Known]] = {}
        for task in self.waiting(queues):
            lines.setdefault(task.team, []).append(task)
        turn = sorted(team for team in lines if team > after_team) + sorted(t for t in lines if t <= after_team)
        given: list[str] = []
        while len(given) < workers and any(lines.values()):
            for team in turn:
                if lines[team] and len(given) < workers:
                    given.append(lines[team].pop(0).id)
        return given

    def waiting(self, queues: Sequence[str]) -> list[Known]:
        """Who may be claimed from these queues, the best first."""
        return sorted(
            (t for t in self.tasks.values() if t.place == "pending" and t.queue in queues), key=lambda t: (t.rank, t.id)
        )

    def given(self, dealt: Dealt, lease: float) -> None:
        """Note what a round gave out."""
        for claim in dealt.claims:
            task = self.tasks[claim.task]
            assert task.place == "pending"
            assert claim.fence == task.fence + 1
            patience = _patience(task.spec)
            task.held = Held(claim.node, claim.boot, claim.fence, claim.attempt, self.now + lease + patience)

    def start(self, claim: Claim) -> Refused | None:
        task = self._holder(claim)
        if task is None or task.held is None:
            return StaleClaim
        task.held.started = True
        return None

    def touch(self, claim: Claim) -> Refused | None:
        """Progress: it changes nothing that is compared."""
        return None if self._holder(claim) else StaleClaim

    def renew(self, claims: Sequence[Claim], lease: float) -> list[tuple[str, int]]:
        lost = []
        for claim in claims:
            task = self._holder(claim)
            if task is None or task.held is None:
                lost.append((claim.task, claim.fence))
            else:
                task.held.reap_at = self.now + lease + _patience(task.spec)
        return lost

    def finish(self, claim: Claim, ok: bool, retryable: bool, digest: str, backoff: float) -> str | Refused:
        task = self._holder(claim)
        answer = "completed" if ok else "failed"
        if task is None or task.held is None:
            known = self.tasks.get(claim.task)
            past = known.reports.get(claim.fence) if known else None
            return answer if past == (digest, answer) else StaleClaim
        task.reports[claim.fence] = (digest, answer)
        self._let_go(task)
        if ok:
            self._end(task, "completed")
        elif retryable and task.failures + 1 < task.spec.max_attempts:
            task.failures += 1
            wait = backoff * 2 ** (task.failures - 1)
            self._wait_again(task, wait)
        else:
            self._end(task, "failed")
        return answer

    def _wait_again(self, task: Known, wait: float) -> None:
        task.ready_at = self.now + wait
        if wait:
            task.status = "scheduled"
            task.rank = task.ready_at + _offset(task)
        else:
            task.status = "pending"

    def release(self, claim: Claim) -> Refused | None:
        task = self._holder(claim)
        if task is None or task.held is None:
            return None if (claim.task, claim.fence) in self.released else StaleClaim
        self.released.add((claim.task, claim.fence))
        self._give_back(task, lost=task.held.started)
        return None

    def reap(self) -> int:
        overdue = [t for t in self.tasks.values() if t.held is not None and t.held.reap_at < self.now]
        for task in overdue:
            self._give_back(task, lost=True)
        return len(overdue)

    def hello(self, node: str, boot: str, holds: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        mine = []
        for task in list(self.tasks.values()):
            held = task.held
            if held is None or held.node != node:
                continue
            if held.boot != boot:
                self._give_back(task, lost=True)
                continue
            mine.append((task.id, held.fence))
            if (task.id, held.fence) not in holds:
                self._give_back(task, lost=held.started)
        return [hold for hold in holds if hold not in mine]

    def cancel(self, task_id: str, team: str) -> set[tuple[str, int]] | Refused:
        task = self.tasks.get(task_id)
        if task is None or task.team != team:
            return NotFound
        if task.status in ("completed", "failed"):
            return TaskFinal
        return self._cancel_all([task_id])

    def _cancel_all(self, roots: Sequence[str]) -> set[tuple[str, int]]:
        gone = [self.tasks[name] for name in self._below(roots) if not self.tasks[name].over]
        stopped = {(task.id, task.held.fence) for task in gone if task.held is not None}
        for task in gone:
            self._let_go(task)
            task.status, task.finished_at = "cancelled", self.now
        for task in gone:
            self._ended(task)
        return stopped

    def _below(self, roots: Sequence[str]) -> list[str]:
        tree = list(roots)
        for name in tree:
            tree += [task.id for task in self.tasks.values() if task.parent == name and task.id not in tree]
        return tree

    def retry(self, task_id: str, team: str, rank_of: Callable[[float, str], float]) -> Refused | None:
        task = self.tasks.get(task_id)
        if task is None or task.team != team:
            return NotFound
        if not task.over:
            return TaskNotFinal
        task.failures = task.losses = 0
        task.finished_at, task.session = None, None
        task.ready_at, task.rank = self.now, rank_of(self.now, task.spec.priority)
        self._begin(task, scheduled=False)
        return None

    def due(self) -> set[tuple[str, int]]:
        for task in self.tasks.values():
            if task.place == "scheduled" and task.ready_at <= self.now:
                task.status = "pending"
        missed = [task for task in self.tasks.values() if task.deadline is not None and task.deadline <= self.now]
        gone = [task for task in missed if not task.over]
        stopped = {(task.id, task.held.fence) for task in gone if task.held is not None}
        for task in missed:
            task.deadline = None
        for task in gone:
            self._let_go(task)
            task.status, task.finished_at = "failed", self.now
        for task in gone:
            self._ended(task)
        return stopped

    def open_session(self, session: str, boot: str, lease: float) -> None:
        self.sessions.setdefault(session, (boot, self.now + lease))

    def keep_session(self, session: str, lease: float) -> bool:
        if session not in self.sessions:
            return False
        self.sessions[session] = (self.sessions[session][0], self.now + lease)
        return True

    def close_session(self, session: str) -> set[tuple[str, int]]:
        self.sessions.pop(session, None)
        return self._cancel_all([t.id for t in self.tasks.values() if t.session == session and not t.over])

    def lapse(self, boot: str | None) -> set[tuple[str, int]]:
        gone = [s for s, (of, lease) in self.sessions.items() if (lease < self.now if boot is None else of != boot)]
        return set().union(*[self.close_session(session) for session in sorted(gone)])

    def prune(self, keys: float, tasks: float) -> int:
        self.keys = {key: kept for key, kept in self.keys.items() if kept[2] >= self.now - keys}
        gone = [
            task
            for task in self.tasks.values()
            if task.finished_at is not None
            and task.finished_at < self.now - tasks
            and not any(other.parent == task.id for other in self.tasks.values())
            and not any(task.id in other.parents and not other.over for other in self.tasks.values())
        ]
        for task in gone:
            del self.tasks[task.id]
        return len(gone)

    # -- moves ---------------------------------------------------------------------------------------------------------

    def _holder(self, claim: Claim) -> Known | None:
        task = self.tasks.get(claim.task)
        return task if task and task.held and task.held.fence == claim.fence else None

    def _let_go(self, task: Known, *, recorded: bool = True) -> None:
        if task.held is not None:
            task.fence = task.held.fence
            task.attempt = task.held.attempt if recorded else task.attempt
            task.held = None

    def _give_back(self, task: Known, *, lost: bool) -> None:
        assert task.held is not None
        task_losses = task.losses + (1 if lost and task.held.started else 0)
        self._let_go(task, recorded=lost)
        if lost and (task_losses >= 3 or task.spec.on_node_loss == "fail"):
            self._end(task, "failed")
            return
        task.losses = task_losses
        task.ready_at = self.now

    def _end(self, task: Known, status: str) -> None:
        task.status, task.finished_at = status, self.now
        self._ended(task)

    def _ended(self, task: Known) -> None:
        for child in self._children(task):
            if child.status != "blocked":
                continue
            if task.status != "completed" and child.spec.after_policy == "success":
                self._end(child, "failed")
            elif not self.waiting_on(child):
                child.ready_at = max(self.now, child.not_before)
                child.status = "scheduled" if child.ready_at > self.now else "pending"
                child.rank = child.ready_at + _offset(child)

    def _children(self, task: Known) -> Iterator[Known]:
        return iter([other for other in self.tasks.values() if task.id in other.parents])

    def waiting_on(self, task: Known) -> int:
        """How many parents of a blocked task have not ended."""
        return sum(1 for parent in task.parents if parent in self.tasks and not self.tasks[parent].over)


def _patience(spec: TaskSpec) -> float:
    kind, _, seconds = spec.on_node_loss.partition(":")
    return float(seconds) if kind == "wait" else 0.0


def _offset(task: Known) -> float:
    return RANK_OFFSET[task.spec.priority].total_seconds()
