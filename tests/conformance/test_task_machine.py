"""Random walks over every verb of tasks: after each group of writes the rows, the feed and a plain model agree."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import services
from retinue.clock import SystemClock, moment
from retinue.errors import RetinueError
from retinue.ids import Ids
from retinue.storage.database import Engine
from retinue.storage.sql import Statement
from retinue.storage.sqlite import InlineSqlite
from retinue.tasks import admission, endings, history, losses, prune, rows, steer, store
from retinue.tasks.model import Claim, Priority
from retinue.testing.clock import ManualClock
from retinue.testing.conformance.rig import Op, Rig, disorder
from task_model import LEASE, Known, Model

EXAMPLES = int(os.environ.get("RETINUE_EXAMPLES", "200"))
WALKS = int(os.environ.get("RETINUE_WALKS", "300"))
SHRINK = "RETINUE_SHRINK" in os.environ  # takes minutes
TICK = 100  # seconds; everything else lies half a tick beside it, so that real time does not blur what is due
NOW = Statement("SELECT retinue_now()")
ROWS = Statement(
    "SELECT tasks.id, COALESCE(running.status, tasks.status), COALESCE(running.fence, tasks.fence), tasks.failures,"
    " tasks.losses, COALESCE(running.attempt, tasks.attempt),"
    " CASE WHEN tasks.status = 'blocked' THEN tasks.waiting_on ELSE 0 END, tasks.session,"
    " running.reap_at, tasks.finished_at, CASE WHEN tasks.status IN ('pending', 'scheduled') THEN tasks.rank END"
    " FROM tasks LEFT JOIN running ON running.id = tasks.id ORDER BY tasks.id"
)
KEEP_TASKS = 750.0
KEEP_KEYS = 350.0
PICK = st.integers(0, 10_000)
TOGETHER = st.sampled_from([False, False, True])
NODES = ("a", "b")
SESSIONS = ("s", "t")
ENDING = st.sampled_from([(True, True), (True, True), (False, True), (False, True), (False, False)])  # ok, retryable


@dataclass(frozen=True)
class Wish:
    """What somebody submits."""

    after: list[int]
    parent: int | None
    key: str | None
    principal: str
    theirs: bool
    label: str
    priority: Priority
    policy: str
    max_attempts: int
    backoff: float
    loss: str
    later: float
    deadline: float | None
    session: str | None


WISH = st.builds(
    Wish,
    after=st.lists(PICK, max_size=3),
    parent=st.none() | PICK,
    key=st.sampled_from([None, None, None, None, "k", "l"]),
    principal=st.sampled_from(["ann", "bob"]),
    theirs=st.sampled_from([False, False, False, False, True]),
    label=st.sampled_from(["1", "2"]),
    priority=st.sampled_from(list(Priority)),
    policy=st.sampled_from(["success", "any"]),
    max_attempts=st.sampled_from([1, 2, 3]),
    backoff=st.sampled_from([0.0, 120.0]),
    loss=st.sampled_from(["requeue", "requeue", "wait:300", "fail"]),
    later=st.sampled_from([0.0, 0.0, 0.0, 0.0, 150.0, 450.0]),
    deadline=st.sampled_from([None, None, None, None, 250.0]),
    session=st.sampled_from([None, None, None, None, None, None, None, "s"]),
)


class TaskMachine(RuleBasedStateMachine):
    """Verbs, one by one or several in a group."""

    exact: ClassVar[bool] = True  # the store's clock stands still while a group runs
    opened: Callable[[ManualClock], Engine]

    @initialize(wishes=st.lists(WISH, min_size=4, max_size=8), session=st.booleans())
    def begin(self, wishes: list[Wish], session: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        self.engine = type(self).opened(self.clock)
        self.rig = Rig(self.engine, Ids(SystemClock(), Random(0)))
        self.model = Model()
        self.group: list[tuple[Op, Callable[[Any], None]]] = []
        self.claims: list[Claim] = []
        self.reports: list[tuple[Claim, dict[str, Any]]] = []
        self.boots = dict.fromkeys(NODES, 0)
        self.turn = ""
        self.histories: dict[str, history.History] = {}
        self.run(self.rig.begin())
        self.start_at = self.store_now()
        self.turns = self.loop.create_task(self.rig.groups.run())
        if session:
            self.open_session(together=False, session="s", boot="c1")
        for wish in wishes:
            self.submit(wish, together=False)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def store_now(self) -> int:
        return int(self.run(self.engine.read(lambda c: c.rows(NOW)[0][0])))

    def rank_of(self, at: float, priority: str) -> float:
        from retinue.tasks.model import RANK_OFFSET

        return at + RANK_OFFSET[priority].total_seconds()

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(self, op: Op, expected: Callable[[Any], None], together: bool) -> None:
        self.group.append((op, expected))
        if not together:
            self.flush()

    def flush(self) -> None:
        group, self.group = self.group, []
        if not group:
            return
        outcomes = self.run(self.rig.all(*(op for op, _ in group)))
        self.model.new_group()
        for place in sorted(range(len(group)), key=lambda place: group[place][0].kind.order):
            group[place][1](outcomes[place])

    def same(self, outcome: Any, expected: Any) -> None:
        """The outcome is the expected one, or the expected error."""
        if isinstance(outcome, RetinueError):
            assert type(outcome) is expected
        else:
            assert not isinstance(outcome, BaseException), repr(outcome)
            assert outcome == expected

    def stopped(self, outcome: Any, expected: Any) -> None:
        if isinstance(outcome, list):
            outcome = {(stop.task, stop.fence) for stop in outcome}
        self.same(outcome, expected)

    def some_task(self, pick: int, team: str = "") -> str:
        """Mostly one of that team."""
        tasks = [task.id for task in self.model.tasks.values() if team in ("", task.team)]
        if not tasks or pick % 16 == 0:
            tasks = list(self.model.tasks)
        return tasks[-1 - pick // 16 % len(tasks)] if tasks else "tsk_missing"

    def some_claim(self, pick: int) -> Claim:
        """Mostly one that is current."""
        held = {(task.id, task.held.fence) for task in self.model.tasks.values() if task.held is not None}
        current = [claim for claim in self.claims if (claim.task, claim.fence) in held]
        claims = current if current and pick % 4 else self.claims
        return claims[-1 - pick // 4 % len(claims)]

    # -- people --------------------------------------------------------------------------------------------------------

    @rule(together=TOGETHER, wishes=st.lists(WISH, min_size=1, max_size=4))
    def create(self, together: bool, wishes: list[Wish]) -> None:
        for wish in wishes[:-1]:
            self.submit(wish, together=True)
        self.submit(wishes[-1], together)

    def submit(self, wish: "Wish", together: bool) -> None:
        model, now = self.model, self.store_now()
        team = self.rig.other if wish.theirs else self.rig.team
        parents = sorted({self.some_task(pick, team) for pick in wish.after} if model.tasks else set())
        later, deadline = wish.later, wish.deadline
        if not self.exact and parents:
            later = 0.0  # what a task says of its own time is not moved by moving the store's
        spec: dict[str, Any] = {
            "labels": {"n": wish.label},
            "after": parents,
            "after_policy": wish.policy,
            "priority": wish.priority,
            "max_attempts": wish.max_attempts,
            "backoff_seconds": wish.backoff,
            "on_node_loss": wish.loss,
            "session": None if wish.theirs else wish.session,
            "parent": None if wish.parent is None or not model.tasks else self.some_task(wish.parent, team),
        }
        if wish.key is None:
            spec["not_before"] = moment(now + int(later * 1e6)) if later else None
            spec["deadline"] = moment(now + int(deadline * 1e6)) if deadline else None
        else:
            later, deadline = 0.0, None  # the same body again has to be possible
        op = self.rig.create(team=team, key=wish.key, principal=wish.principal, **spec)
        at = model.now

        def check(outcome: Any) -> None:
            not_before, last = at + later if later else 0.0, None if deadline is None else at + deadline
            self.same(outcome, model.create(op.item, not_before=not_before, deadline=last, rank_of=self.rank_of))

        self.ask(op, check, together)

    @precondition(lambda self: self.model.tasks)
    @rule(together=TOGETHER, pick=PICK, theirs=st.sampled_from([False, False, False, True]))
    def cancel(self, together: bool, pick: int, theirs: bool) -> None:
        team = self.rig.other if theirs else self.rig.team
        task = self.some_task(pick, team)
        op = self.rig.cancel(task, team)
        self.ask(op, lambda outcome: self.stopped(outcome, self.model.cancel(task, team)), together)

    @precondition(lambda self: self.model.tasks)
    @rule(together=TOGETHER, pick=PICK)
    def retry(self, together: bool, pick: int) -> None:
        task = self.some_task(pick, self.rig.team)
        op = self.rig.retry(task)
        self.ask(op, lambda outcome: self.same(outcome, self.model.retry(task, self.rig.team, self.rank_of)), together)

    @rule(together=TOGETHER, session=st.sampled_from(SESSIONS), boot=st.sampled_from(["c1", "c2"]))
    def open_session(self, together: bool, session: str, boot: str) -> None:
        op = self.rig.open_session(session, boot, LEASE)
        self.ask(op, lambda outcome: self.same(outcome, self.model.open_session(session, boot, LEASE)), together)

    @precondition(lambda self: self.model.sessions)
    @rule(together=TOGETHER, session=st.sampled_from(SESSIONS))
    def keep_session(self, together: bool, session: str) -> None:
        op = self.rig.keep_session(session, LEASE)
        self.ask(op, lambda outcome: self.same(outcome, self.model.keep_session(session, LEASE)), together)

    @precondition(lambda self: self.model.sessions)
    @rule(together=TOGETHER, session=st.sampled_from(SESSIONS))
    def close_session(self, together: bool, session: str) -> None:
        op = self.rig.close_session(session)
        self.ask(op, lambda outcome: self.stopped(outcome, self.model.close_session(session)), together)

    @precondition(lambda self: self.model.sessions)
    @rule(together=TOGETHER, boot=st.sampled_from([None, "c1", "c2"]))
    def lapse(self, together: bool, boot: str | None) -> None:
        self.ask(self.rig.lapse(boot), lambda outcome: self.stopped(outcome, self.model.lapse(boot)), together)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    @rule(node=st.sampled_from(NODES), workers=st.integers(1, 4), endings=st.lists(ENDING, min_size=1, max_size=4))
    def work(self, node: str, workers: int, endings: list[tuple[bool, bool]]) -> None:
        """Claim, start, and report some of what was claimed, together."""
        before = len(self.claims)
        self.claim(together=False, node=node, workers=workers, labels={"1", "2"})
        given = self.claims[before:]
        for claim in given:
            self.begin_attempt(claim, together=claim is not given[-1])
        for claim, (ok, retryable) in zip(given, endings, strict=False):
            self.report(claim, {"ok": ok, "retryable": retryable}, together=True)

    @rule(node=st.sampled_from(NODES), workers=st.integers(1, 4))
    def take(self, node: str, workers: int) -> None:
        """Claim and start."""
        before = len(self.claims)
        self.claim(together=False, node=node, workers=workers, labels={"1", "2"})
        for claim in self.claims[before:]:
            self.begin_attempt(claim, together=False)

    @rule(
        together=TOGETHER,
        node=st.sampled_from(NODES),
        workers=st.integers(1, 4),
        labels=st.sets(st.sampled_from(["1", "2"]), min_size=1),
    )
    def claim(self, together: bool, node: str, workers: int, labels: set[str]) -> None:
        queues = [queue for queue in self.rig.queues.values() if queue.labels["n"] in labels]
        boot = f"{node}{self.boots[node]}"
        turn = self.turn
        op = self.rig.claim(node, workers, queues=queues, lease=LEASE, boot=boot, after_team=turn)

        def check(dealt: Any) -> None:
            assert not isinstance(dealt, BaseException), repr(dealt)
            names = [queue.id for queue in queues]
            waiting = [task.id for task in self.model.waiting(names)]
            given = [claim.task for claim in dealt.claims]
            if self.exact:
                assert given == self.model.claim(workers, names, turn)
            assert len(given) == min(workers, len(waiting))
            assert set(given) <= set(waiting)
            self.model.given(dealt, LEASE)
            peopled = {task.queue for task in self.model.waiting(names)}
            assert not peopled & set(dealt.emptied)
            if len(given) < workers:
                assert set(dealt.emptied) == set(names)
            self.claims += dealt.claims
            self.turn = dealt.claims[-1].team if dealt.claims else self.turn

        self.ask(op, check, together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, pick=PICK)
    def start(self, together: bool, pick: int) -> None:
        self.begin_attempt(self.some_claim(pick), together)

    def begin_attempt(self, claim: Claim, together: bool) -> None:
        self.ask(self.rig.start(claim), lambda outcome: self.same(outcome, self.model.start(claim)), together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, picks=st.lists(PICK, min_size=1, max_size=4), ending=ENDING)
    def finish(self, together: bool, picks: list[int], ending: tuple[bool, bool]) -> None:
        for pick in picks[1:]:
            self.report(self.some_claim(pick), {"ok": ending[0], "retryable": ending[1]}, together=True)
        self.report(self.some_claim(picks[0]), {"ok": ending[0], "retryable": ending[1]}, together)

    @precondition(lambda self: self.reports)
    @rule(together=TOGETHER, pick=PICK)
    def report_again(self, together: bool, pick: int) -> None:
        claim, said = self.reports[-1 - pick % len(self.reports)]
        self.report(claim, said, together)

    def report(self, claim: Claim, said: dict[str, Any], together: bool) -> None:
        op = self.rig.finish(claim, **said)
        self.reports.append((claim, said))

        def check(outcome: Any) -> None:
            task = self.model.tasks.get(claim.task)
            backoff = task.spec.backoff_seconds if task else 0.0
            self.same(outcome, self.model.finish(claim, said["ok"], said["retryable"], op.item.digest, backoff))

        self.ask(op, check, together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, pick=PICK)
    def release(self, together: bool, pick: int) -> None:
        claim = self.some_claim(pick)
        self.ask(self.rig.release(claim), lambda outcome: self.same(outcome, self.model.release(claim)), together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, pick=PICK, stage=st.sampled_from(["one", "two"]))
    def progress(self, together: bool, pick: int, stage: str) -> None:
        claim = self.some_claim(pick)
        op = self.rig.progress(claim, stage)
        self.ask(op, lambda outcome: self.same(outcome, self.model.touch(claim)), together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, pick=PICK)
    def log(self, together: bool, pick: int) -> None:
        claim = self.some_claim(pick)
        self.ask(self.rig.log(claim), lambda outcome: self.same(outcome, self.model.touch(claim) or 5), together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER, node=st.sampled_from(NODES), picks=st.lists(PICK, max_size=4))
    def renew(self, together: bool, node: str, picks: list[int]) -> None:
        claims = list({(c.task, c.fence): c for c in map(self.some_claim, picks)}.values())
        op = self.rig.renew(node, *claims, lease=LEASE)
        self.ask(op, lambda outcome: self.same(outcome, self.model.renew(claims, LEASE)), together)

    @precondition(lambda self: self.claims)
    @rule(together=TOGETHER)
    def reap(self, together: bool) -> None:
        self.ask(self.rig.reap(), lambda outcome: self.same(outcome, self.model.reap()), together)

    @rule(together=TOGETHER, node=st.sampled_from(NODES), again=st.booleans(), picks=st.lists(PICK, max_size=4))
    def hello(self, together: bool, node: str, again: bool, picks: list[int]) -> None:
        self.boots[node] += again
        boot = f"{node}{self.boots[node]}"
        claims = list({(c.task, c.fence): c for c in map(self.some_claim, picks)}.values()) if self.claims else []
        op = self.rig.hello(node, *claims, boot=boot)
        holds = [(claim.task, claim.fence) for claim in claims]
        self.ask(op, lambda outcome: self.same(outcome, self.model.hello(node, boot, holds)), together)

    # -- time ----------------------------------------------------------------------------------------------------------

    @rule(ticks=st.sampled_from([1, 2, 5, 8]))
    def pass_time(self, ticks: int) -> None:
        self.flush()
        self.model.now += ticks * TICK
        if self.exact:
            self.clock.advance(ticks * TICK)
        else:
            self.run(self.rig.pass_time(ticks * TICK))

    @precondition(lambda self: self.model.now)
    @rule(together=TOGETHER)
    def due(self, together: bool) -> None:
        def check(outcome: Any) -> None:
            self.stopped(getattr(outcome, "stopped", outcome), self.model.due())

        self.ask(self.rig.due(), check, together)

    @precondition(lambda self: self.model.now > KEEP_KEYS)
    @rule(events=st.booleans())
    def prune(self, events: bool) -> None:
        self.flush()
        op = self.rig.prune(events=50.0 if events else 1e9, tasks=KEEP_TASKS, keys=KEEP_KEYS)

        def check(outcome: Any) -> None:
            assert outcome.tasks == self.model.prune(KEEP_KEYS, KEEP_TASKS)

        self.ask(op, check, together=False)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def rows_feed_and_model_agree(self) -> None:
        if not hasattr(self, "rig") or self.group:
            return
        there = self.run(self.engine.read(lambda c: c.rows(ROWS)))
        wrong = self.run(self.engine.read(lambda c: disorder(c, self.histories, links=False)))
        told = [(*row[:8], *(self.seconds(at) for at in row[8:])) for row in there]

        assert told == [self.expected(task) for task in sorted(self.model.tasks.values(), key=lambda task: task.id)]
        assert wrong == []

    def expected(self, task: Known) -> tuple[Any, ...]:
        """The task's row, with times in the model's seconds where they are exact."""
        held = task.held
        waiting_on = self.model.waiting_on(task) if task.status == "blocked" else 0
        rank = task.rank if task.status in ("pending", "scheduled") else None
        times = (held.reap_at if held else None, task.finished_at, rank)
        return (
            task.id, task.place, held.fence if held else task.fence, task.failures, task.losses,
            held.attempt if held else task.attempt, waiting_on, task.session,
            *(at if self.exact else None for at in times),
        )  # fmt: skip

    def seconds(self, at: int | None) -> float | None:
        return None if at is None or not self.exact else (at - self.start_at) / 1e6

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            self.flush()
            self.rows_feed_and_model_agree()
            assert self.run(self.engine.read(disorder)) == []
        finally:
            self.close()

    def close(self) -> None:
        self.rig.groups.close()
        self.run(self.turns)
        self.run(self.engine.close())
        self.loop.close()


def walk(machine: type[TaskMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
            derandomize="RETINUE_EXAMPLES" not in os.environ,  # the same walks at each commit; long runs take others
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def on_sqlite() -> type[TaskMachine]:
    template = InlineSqlite(ManualClock())

    class OnSqlite(TaskMachine):
        opened = staticmethod(lambda clock: InlineSqlite(clock, template))

    return OnSqlite


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_walks_on_sqlite_do_what_the_model_does() -> None:
    walk(on_sqlite(), EXAMPLES, 40)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_random_walks_on_postgres_do_what_the_model_does(postgres_server: services.PostgresServer) -> None:
    from retinue.storage.postgres import Postgres

    databases: list[Any] = []

    def opened(clock: ManualClock) -> Engine:
        while databases:
            databases.pop().__exit__(None, None, None)
        database = postgres_server.database()
        databases.append(database)
        return Postgres(database.__enter__(), SystemClock(), writers=1, readers=1)

    class OnPostgres(TaskMachine):
        exact = False

    OnPostgres.opened = staticmethod(opened)  # type: ignore[method-assign,assignment]
    walk(OnPostgres, max(10, EXAMPLES // 20), 40)


# -- long seeded walks: deeper than hypothesis goes in the same time, without its shrinking ----------------------------


def wish(chance: Random) -> Wish:
    """What somebody might submit."""
    return Wish(
        after=[chance.randrange(10_000) for _ in range(chance.choice([0, 0, 1, 2, 3]))],
        parent=chance.choice([None, chance.randrange(10_000)]),
        key=chance.choice([None] * 8 + ["k", "l"]),
        principal=chance.choice(["ann", "bob"]),
        theirs=chance.random() < 0.15,
        label=chance.choice("12"),
        priority=chance.choice(list(Priority)),
        policy=chance.choice(["success", "any"]),
        max_attempts=chance.choice([1, 2, 3]),
        backoff=chance.choice([0.0, 0.0, 120.0]),
        loss=chance.choice(["requeue", "requeue", "wait:300", "fail"]),
        later=chance.choice([0.0] * 6 + [150.0, 450.0]),
        deadline=chance.choice([None] * 6 + [250.0]),
        session=chance.choice([None] * 9 + ["s"]),
    )


VERBS: dict[str, tuple[int, Callable[[TaskMachine, Random, bool], None]]] = {
    "submit": (8, lambda m, r, t: m.submit(wish(r), t)),
    "take": (6, lambda m, r, t: m.take(node=r.choice(NODES), workers=r.randint(1, 4))),
    "claim": (
        4,
        lambda m, r, t: m.claim(
            together=t, node=r.choice(NODES), workers=r.randint(1, 4), labels=set(r.choice(["1", "2", "12"]))
        ),
    ),
    "start": (4, lambda m, r, t: m.start(together=t, pick=r.randrange(10_000))),
    "finish": (
        10,
        lambda m, r, t: m.report(
            m.some_claim(r.randrange(10_000)), {"ok": r.random() < 0.5, "retryable": r.random() < 0.8}, t
        ),
    ),
    "report_again": (2, lambda m, r, t: m.report_again(together=t, pick=r.randrange(10_000))),
    "release": (2, lambda m, r, t: m.release(together=t, pick=r.randrange(10_000))),
    "progress": (1, lambda m, r, t: m.progress(together=t, pick=r.randrange(10_000), stage=r.choice("12"))),
    "log": (1, lambda m, r, t: m.log(together=t, pick=r.randrange(10_000))),
    "renew": (
        4,
        lambda m, r, t: m.renew(together=t, node=r.choice(NODES), picks=[r.randrange(10_000) for _ in range(3)]),
    ),
    "reap": (3, lambda m, r, t: m.reap(together=t)),
    "hello": (
        2,
        lambda m, r, t: m.hello(
            together=t, node=r.choice(NODES), again=r.random() < 0.3, picks=[r.randrange(10_000) for _ in range(4)]
        ),
    ),
    "cancel": (3, lambda m, r, t: m.cancel(together=t, pick=r.randrange(10_000), theirs=r.random() < 0.2)),
    "retry": (4, lambda m, r, t: m.retry(together=t, pick=r.randrange(10_000))),
    "due": (3, lambda m, r, t: m.due(together=t)),
    "open": (1, lambda m, r, t: m.open_session(together=t, session=r.choice(SESSIONS), boot=r.choice(["c1", "c2"]))),
    "keep": (1, lambda m, r, t: m.keep_session(together=t, session=r.choice(SESSIONS))),
    "close": (1, lambda m, r, t: m.close_session(together=t, session=r.choice(SESSIONS))),
    "lapse": (1, lambda m, r, t: m.lapse(together=t, boot=r.choice([None, None, "c1", "c2"]))),
    "pass_time": (5, lambda m, r, t: m.pass_time(ticks=r.choice([1, 1, 2, 5]))),
    "prune": (2, lambda m, r, t: m.prune(events=r.random() < 0.3)),
}
OF_A_CLAIM = {"start", "finish", "release", "progress", "log", "renew"}


def stroll(machine: type[TaskMachine], seed: int, steps: int = 120) -> None:
    """One walk, all of it from the seed."""
    chance = Random(seed)
    walker = machine()
    try:
        walker.begin(wishes=[wish(chance) for _ in range(6)], session=chance.random() < 0.5)
        names = list(VERBS)
        for verb in chance.choices(names, [VERBS[name][0] for name in names], k=steps):
            if (verb in OF_A_CLAIM and not walker.claims) or (verb == "report_again" and not walker.reports):
                continue
            VERBS[verb][1](walker, chance, chance.random() < 0.3)
            walker.rows_feed_and_model_agree()
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        walker.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(4))
def test_long_walks_on_sqlite_do_what_the_model_does(part: int) -> None:
    machine = on_sqlite()
    for seed in range(part, WALKS, 4):
        stroll(machine, seed)


# -- planted bugs: the walks have to notice each -----------------------------------------------------------------------

Edit = tuple[Statement, str, str]
PLANTED: dict[str, list[Edit]] = {
    "finish by id only": [
        (rows.DROP_RUNNING, "(id, fence) IN (SELECT id, fence FROM", "id IN (SELECT id FROM"),
    ],
    "renew by id only": [(store.RENEW, "AND running.fence = m.fence ", "")],
    "start by id only": [(store.START, "AND running.fence = m.fence ", "")],
    "reap by id only": [
        (losses.OVERDUE, "reap_at < retinue_now()", "true"),
        (losses.REAP, "AND reap_at < retinue_now()", ""),
    ],
    "renew without patience": [(store.RENEW, " + running.patience", "")],
    "a retried parent is not waited for": [(steer.COUNT_UP, "waiting_on + 1", "waiting_on")],
    "a child below an ended task of a cancelled tree": [
        (admission.CANCELLED_ABOVE, "('completed', 'failed')", "('nothing')")
    ],
    "a failed parent frees its children": [(endings.SPOILED, "'success'", "'any'")],
    "a cancel leaves the line as it is": [(losses.DROP_READY, "FROM ready WHERE", "FROM ready WHERE queue = '' AND")],
    "what has ended goes though something open is below it": [
        (prune.OLD_TASKS, " AND NOT EXISTS (SELECT 1 FROM tasks c WHERE c.parent = tasks.id)", ""),
        (prune.NAMED_NOW, " OR EXISTS (SELECT 1 FROM tasks c WHERE c.parent = tasks.id)", ""),
    ],
    "a session's task outlives it": [(steer.TIED, "finished_at IS NULL", "finished_at = 0")],
    "a key without its principal": [(admission.READ_KEY, "principal = ?", "principal <> ?")],
}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", PLANTED)
def test_long_walks_find(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for statement, part, instead in PLANTED[bug]:
        assert part in statement.sqlite
        monkeypatch.setattr(statement, "sqlite", statement.sqlite.replace(part, instead))

    assert found() is not None


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_long_walks_find_a_loss_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MOST_LOSSES", 4)

    assert found() is not None


def found() -> int | None:
    """The first seed whose walk fails, of a thousand."""
    machine = on_sqlite()
    for seed in range(1000):
        try:
            stroll(machine, seed)
        except Exception:
            return seed
    return None
