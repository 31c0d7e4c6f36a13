"""Races that one writer cannot show: what tasks promise when several PostgreSQL connections meet, order by order.

Each planted bug (INVARIANTS 7, M04 to M52) has to be noticed by the race that looks for it.
"""

import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from retinue.clock import SystemClock
from retinue.errors import (
    IdempotencyConflict,
    NodeDuplicate,
    NotFound,
    ParentCancelled,
    RetinueError,
    StaleClaim,
    TaskFinal,
)
from retinue.events import store as events
from retinue.nodes.model import Registration
from retinue.nodes.store import REGISTER
from retinue.storage.database import Transaction
from retinue.storage.postgres import Postgres
from retinue.storage.sql import Statement
from retinue.tasks import admission, history, losses, queues, read, store
from retinue.tasks.model import TaskStatus
from retinue.testing.conformance.rig import Op, Rig, disorder
from stepper import Order, Stepper, Work

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(600)]

ORDERS = int(os.environ.get("RETINUE_ORDERS", "40"))  # of each scene
FIND = 300  # orders in which a planted bug has to show
CLOCK = Statement("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
CLAIMED_AT = Statement("SELECT claimed_at, reap_at FROM running WHERE id = ?")
LINE = Statement("SELECT COUNT(*) FROM ready WHERE queue = ?")
LOGS = Statement("SELECT COUNT(*) FROM logs WHERE attempt = ?")
NODES = Statement("SELECT id, boot FROM nodes WHERE name = ?")
NOTHING = Statement("SELECT 1")
COMMIT = Statement("COMMIT")

Check = Callable[[Order], Coroutine[Any, Any, None]]


class Races:
    """A database, a rig that prepares and looks, and the stepper."""

    def __init__(self, rig: Rig, stepper: Stepper) -> None:
        self.rig = rig
        self.stepper = stepper
        self.histories: dict[str, history.History] = {}

    async def run(self, scene: "Scene", orders: int = ORDERS, *, all_that_holds: bool = True) -> None:
        """Play a scene in many orders; after each its own check must hold, and everything else."""
        for seed in range(orders):
            works, check = await scene(self.rig)
            order = self.stepper.run(seed, works)
            try:
                assert [outcome for outcome in order.outcomes if isinstance(outcome, BaseException)] == []
                await check(order)
                if all_that_holds:
                    assert order.restarts == 0  # everybody takes rows in one order: nobody deadlocks
                    assert await self.rig.read(lambda c: disorder(c, self.histories, links=False)) == []
            except AssertionError as error:
                error.add_note(f"order {seed}: {order.steps}")
                raise
        if all_that_holds:
            assert await self.rig.disorder() == []

    async def finds(self, scene: "Scene") -> bool:
        """Whether the scene's own check fails in some order."""
        try:
            await self.run(scene, FIND, all_that_holds=False)
        except AssertionError:
            return True
        return False


Scene = Callable[[Rig], Coroutine[Any, Any, tuple[list[Work], Check]]]


@pytest.fixture
async def races(postgres_url: str) -> AsyncIterator[Races]:
    engine = Postgres(postgres_url, SystemClock(), writers=1, readers=1)
    with Stepper.on(postgres_url) as stepper:
        async with Rig(engine).running() as rig:
            yield Races(rig, stepper)
    await engine.close()


def group(*ops: Op) -> Work:
    """These writes as one group: their outcomes, an error standing for itself."""

    def work(transaction: Transaction) -> list[Any]:
        return [op.kind.apply(transaction, [op.item])[0] for op in sorted(ops, key=lambda op: op.kind.order)]

    return work


def only(order: Order) -> list[Any]:
    """The outcome of each actor that did one thing."""
    return [outcome[0] for outcome in order.outcomes]


# -- scenes: what meets, and what must come of it ----------------------------------------------------------------------


async def claims_meet(rig: Rig) -> tuple[list[Work], Check]:
    ops = [rig.create(labels={"scene": rig.ids.new("tsk")}) for _ in range(2)]
    lines = [op.item.queue for op in ops]
    tasks = [await rig.created(labels=op.item.spec.labels) for op in ops for _ in range(2)]
    rounds = [rig.claim(node, workers, queues=lines) for node, workers in (("a", 1), ("b", 1), ("c", 3))]

    async def check(order: Order) -> None:
        dealt: list[store.Dealt] = only(order)
        given = [claim.task for each in dealt for claim in each.claims]
        left = {queue.id: await rig.read(lambda c, queue=queue: c.rows(LINE, queue.id)[0][0]) for queue in lines}

        assert len(given) == len(set(given))
        assert len(given) + sum(left.values()) == len(tasks)
        assert not any(
            left[queue] for each in dealt for queue in each.emptied
        )  # who says that nobody is left, is right

    return [group(each) for each in rounds], check


async def report_meets_cancel(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held()
    below = await rig.created(parent=claim.task)
    after = await rig.created(after=[claim.task])

    async def check(order: Order) -> None:
        reported, cancelled = only(order)
        if isinstance(reported, StaleClaim):
            assert [stop.task for stop in cancelled] == [claim.task]
            assert await rig.statuses(claim.task, below, after) == ["cancelled", "cancelled", "failed"]
        else:
            assert type(cancelled) is TaskFinal
            assert await rig.statuses(claim.task, below, after) == ["completed", "pending", "pending"]

    return [group(rig.finish(claim)), group(rig.cancel(claim.task))], check


async def report_meets_reaper(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held(lease=-1)

    async def check(order: Order) -> None:
        reported, reaped = only(order)
        status = await rig.status(claim.task)
        assert (type(reported), reaped, status) in ((StaleClaim, 1, "pending"), (TaskStatus, 0, "completed"))

    return [group(rig.finish(claim)), group(rig.reap())], check


async def renewal_meets_reaper(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held(lease=-1)

    async def check(order: Order) -> None:
        lost, reaped = only(order)
        assert (lost, reaped) in (([], 0), ([(claim.task, claim.fence)], 1))

    return [group(rig.renew("a", claim)), group(rig.reap())], check


async def claim_meets_cancel(rig: Rig) -> tuple[list[Work], Check]:
    op = rig.create(labels={"scene": rig.ids.new("tsk")})
    task = await rig(op)

    async def check(order: Order) -> None:
        dealt, stopped = only(order)
        assert await rig.status(task) == "cancelled"
        assert [stop.task for stop in stopped] == [claim.task for claim in dealt.claims if stopped]

    return [group(rig.claim(queues=[op.item.queue])), group(rig.cancel(task))], check


async def claim_meets_deadline(rig: Rig) -> tuple[list[Work], Check]:
    op = rig.create(labels={"scene": rig.ids.new("tsk")}, deadline=SystemClock().now())
    task = await rig(op)

    async def check(order: Order) -> None:
        assert await rig.status(task) == "failed"

    return [group(rig.claim(queues=[op.item.queue])), group(rig.due())], check


async def failure_meets_deadline(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held(max_attempts=2, backoff_seconds=0, deadline=SystemClock().now())

    async def check(order: Order) -> None:
        assert await rig.status(claim.task) == "failed"

    return [group(rig.fail(claim)), group(rig.due())], check


async def child_is_added_as_its_parent_ends(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held()
    create = rig.create(after=[claim.task])

    async def check(order: Order) -> None:
        assert only(order)[1] == TaskStatus.COMPLETED
        assert await rig.status(create.item.id) == "pending"

    return [group(create), group(rig.finish(claim))], check


async def child_is_added_as_its_parent_fails(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held()
    strict, lenient = rig.create(after=[claim.task]), rig.create(after=[claim.task], after_policy="any")

    async def check(order: Order) -> None:
        assert await rig.statuses(strict.item.id, lenient.item.id) == ["failed", "pending"]

    return [group(strict), group(rig.fail(claim)), group(lenient)], check


async def parents_end_at_once(rig: Rig) -> tuple[list[Work], Check]:
    claims = [await rig.held() for _ in range(3)]
    child = await rig.created(after=[claim.task for claim in claims])

    async def check(order: Order) -> None:
        assert await rig.story(child) == ["created", "ready"]

    return [group(rig.finish(claim)) for claim in claims], check


async def parents_end_differently(rig: Rig) -> tuple[list[Work], Check]:
    claims = [await rig.held() for _ in range(2)]
    waiting = await rig.created()
    parents = [*(claim.task for claim in claims), waiting]
    strict = await rig.created(after=parents)
    lenient = await rig.created(after=parents, after_policy="any")

    async def check(order: Order) -> None:
        assert await rig.statuses(strict, lenient) == ["failed", "pending"]
        assert await rig.story(strict) == ["created", "failed"]

    return [group(rig.finish(claims[0])), group(rig.fail(claims[1])), group(rig.cancel(waiting))], check


async def child_is_added_below_a_task_being_cancelled(rig: Rig) -> tuple[list[Work], Check]:
    root = await rig.created()
    middle = await rig.ended(parent=root)
    ops = [rig.create(parent=root), rig.create(parent=middle)]

    async def check(order: Order) -> None:
        *made, _ = only(order)
        for outcome in made:
            assert isinstance(outcome, ParentCancelled) or await rig.status(outcome) == "cancelled"

    return [*(group(op) for op in ops), group(rig.cancel(root))], check


async def creates_share_a_key(rig: Rig) -> tuple[list[Work], Check]:
    key = rig.ids.new("tsk")
    ops = [rig.create(key=key), rig.create(key=key), rig.create(key=key, name="another body")]

    async def check(order: Order) -> None:
        first, second, other = only(order)
        made = {outcome for outcome in (first, second, other) if isinstance(outcome, str)}
        rows = [op.item.id for op in ops if await rig.read(lambda c, op=op: read.task(c, rig.team, op.item.id))]
        if isinstance(other, str):
            assert [type(first), type(second)] == [IdempotencyConflict] * 2
        else:
            assert (first, type(other)) == (second, IdempotencyConflict)
        assert rows == sorted(made)

    return [group(op) for op in ops], check


async def a_refused_create_frees_its_key(rig: Rig) -> tuple[list[Work], Check]:
    key = rig.ids.new("tsk")
    ops = [rig.create(key=key, after=["tsk_missing"]), rig.create(key=key)]

    async def check(order: Order) -> None:
        refused, made = only(order)
        assert isinstance(refused, NotFound | IdempotencyConflict)
        assert await rig.status(made) == "pending"

    return [group(op) for op in ops], check


async def a_reader_follows_the_feed(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held()  # progress moves no count, so that the writers meet nowhere but in the feed
    begin = (await rig.feed())[-1].position

    def follow(transaction: Transaction) -> list[int]:
        seen = [begin]
        for _ in range(6):
            seen += [event.position for event in events.page(transaction.connection, rig.team, seen[-1], 100)]
        return seen

    async def check(order: Order) -> None:
        seen = order.outcomes[2]
        there = [event.position for event in await rig.feed() if begin < event.position <= seen[-1]]
        assert seen[1:] == there

    return [group(rig.create(), rig.create()), group(rig.progress(claim)), follow], check


async def teams_do_not_meet(rig: Rig) -> tuple[list[Work], Check]:
    async def lives(team: str) -> Work:
        op = rig.create(team=team, labels={"scene": rig.ids.new("tsk")})
        await rig(op)
        return group(rig.create(team=team, labels=op.item.spec.labels), rig.claim(queues=[op.item.queue], workers=2))

    async def check(order: Order) -> None:
        assert order.waited == set()

    return [await lives(rig.team), await lives(rig.other)], check


async def a_task_is_made_as_its_session_ends(rig: Rig) -> tuple[list[Work], Check]:
    session = rig.ids.new("ses")
    await rig(rig.open_session(session))
    create = rig.create(session=session)

    async def check(order: Order) -> None:
        made, _ = only(order)
        assert isinstance(made, NotFound) or await rig.status(made) == "cancelled"

    return [group(create), group(rig.close_session(session))], check


async def a_session_is_kept_as_it_lapses(rig: Rig) -> tuple[list[Work], Check]:
    session = rig.ids.new("ses")
    await rig(rig.open_session(session, lease=-1))
    task = await rig.created(session=session)

    async def check(order: Order) -> None:
        kept, _ = only(order)
        assert (kept, await rig.status(task)) in ((True, "pending"), (False, "cancelled"))
        await rig(rig.close_session(session))

    return [group(rig.keep_session(session)), group(rig.lapse())], check


async def a_task_comes_into_a_queue_that_is_dropped(rig: Rig) -> tuple[list[Work], Check]:
    op = rig.create(labels={"scene": rig.ids.new("tsk")})
    await rig(rig.cancel(await rig(op)))
    create = rig.create(labels=op.item.spec.labels)

    def drop(transaction: Transaction) -> int:
        empty = transaction.rows(queues.EMPTY_QUEUES, rig.team)
        return transaction.run(queues.DROP_EMPTY_QUEUES, empty)

    async def check(order: Order) -> None:
        live = await rig.read(read.live_queues)
        assert create.item.queue.id in [queue.id for queue in live]
        await rig(rig.cancel(create.item.id))

    return [group(create), drop], check


async def what_is_pruned_is_wanted_again(rig: Rig) -> tuple[list[Work], Check]:
    done, retried = await rig.ended(), await rig.ended()
    await rig.pass_time(100)
    create = rig.create(parent=done)

    async def check(order: Order) -> None:
        made, again, _ = only(order)
        assert isinstance(made, NotFound) or await rig.task(done) is not None
        assert isinstance(again, NotFound) or await rig.status(retried) == "pending"

    return [group(create), group(rig.retry(retried)), group(rig.prune(tasks=50.0, events=1e9))], check


async def output_comes_as_its_claim_ends(rig: Rig) -> tuple[list[Work], Check]:
    claim = await rig.held()

    async def check(order: Order) -> None:
        kept, progressed, _ = *order.outcomes[0], *order.outcomes[1]
        logged = await rig.read(lambda c: c.rows(LOGS, claim.attempt)[0][0])
        late = order.at(0, COMMIT) > order.at(1, COMMIT)
        assert logged == (0 if isinstance(kept, StaleClaim) else 1)
        assert not late or isinstance(kept, StaleClaim)
        assert not late or isinstance(progressed, StaleClaim)

    return [group(rig.log(claim), rig.progress(claim)), group(rig.finish(claim))], check


async def two_processes_bring_one_new_name(rig: Rig) -> tuple[list[Work], Check]:
    name = rig.ids.new("nod")
    news = [Registration(rig.ids.new("nod"), rig.team, name, boot, 1) for boot in ("one", "two")]

    async def check(order: Order) -> None:
        outcomes = only(order)
        [(node, boot)] = await rig.read(lambda c: c.rows(NODES, name))
        [won] = [place for place, outcome in enumerate(outcomes) if not isinstance(outcome, RetinueError)]
        assert (outcomes[won], news[won].boot) == (node, boot)
        assert type(outcomes[1 - won]) is NodeDuplicate

    return [group(Op(REGISTER, (new, 60_000_000))) for new in news], check


async def a_lease_begins_when_it_is_given(rig: Rig) -> tuple[list[Work], Check]:
    op = rig.create(labels={"scene": rig.ids.new("tsk")})
    task = await rig(op)
    claim = rig.claim(queues=[op.item.queue], lease=15)

    def slow(transaction: Transaction) -> Any:
        for _ in range(3):
            transaction.rows(NOTHING)
        return claim.kind.apply(transaction, [claim.item])

    async def check(order: Order) -> None:
        [(claimed_at, reap_at)] = await rig.read(lambda c: c.rows(CLAIMED_AT, task))
        looked_at = order.outcomes[1][0][0]
        assert reap_at == claimed_at + 15_000_000
        if order.at(1, CLOCK) < order.at(0, store.CLAIMED):
            assert claimed_at >= looked_at

    return [slow, lambda transaction: transaction.rows(CLOCK)], check


SCENES = [
    claims_meet,
    report_meets_cancel,
    report_meets_reaper,
    renewal_meets_reaper,
    claim_meets_cancel,
    claim_meets_deadline,
    failure_meets_deadline,
    child_is_added_as_its_parent_ends,
    child_is_added_as_its_parent_fails,
    parents_end_at_once,
    parents_end_differently,
    child_is_added_below_a_task_being_cancelled,
    creates_share_a_key,
    a_refused_create_frees_its_key,
    a_reader_follows_the_feed,
    teams_do_not_meet,
    a_task_is_made_as_its_session_ends,
    a_session_is_kept_as_it_lapses,
    a_task_comes_into_a_queue_that_is_dropped,
    what_is_pruned_is_wanted_again,
    output_comes_as_its_claim_ends,
    two_processes_bring_one_new_name,
    a_lease_begins_when_it_is_given,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_every_order_comes_out_right(races: Races, scene: Scene) -> None:
    await races.run(scene)


# -- planted bugs: the race that looks for each has to notice it -------------------------------------------------------

Plant = list[tuple[Statement, str]]  # what a statement says on PostgreSQL instead
PLANTED: dict[str, tuple[Scene, list[str], Plant]] = {
    "M04 uniqueness by a look": (
        creates_share_a_key,
        ["ALTER TABLE idempotency DROP CONSTRAINT idempotency_pkey"],
        [
            (
                admission.TAKE_KEY,
                admission.TAKE_KEY.postgres.replace(
                    "WHERE true ON CONFLICT (team, principal, route, key) DO NOTHING",
                    "WHERE NOT EXISTS (SELECT 1 FROM idempotency i"
                    " WHERE i.team = k.team AND i.principal = k.principal AND i.key = k.key)",
                ),
            )
        ],
    ),
    "M14 transaction-start time": (
        a_lease_begins_when_it_is_given,
        [
            """CREATE OR REPLACE FUNCTION retinue_now() RETURNS bigint LANGUAGE sql VOLATILE
               AS 'SELECT (extract(epoch FROM now()) * 1000000)::bigint'"""
        ],
        [],
    ),
    "M28 position from a sequence": (
        a_reader_follows_the_feed,
        ["CREATE SEQUENCE feed INCREMENT 10"],
        [
            (events.TAKE, "SELECT nextval('feed') + %s, ''::text, retinue_now() FROM teams WHERE id = %s"),
            (events.CHAIN, "SELECT %s::text, %s::text"),
        ],
    ),
    "M36 parents read without a lock": (
        child_is_added_as_its_parent_ends,
        [],
        [(admission.PARENTS, admission.PARENTS.postgres.replace(" FOR SHARE", ""))],
    ),
    "M52 child inserted below a cancelled parent": (
        child_is_added_below_a_task_being_cancelled,
        [],
        [(admission.PARENTS, admission.PARENTS.postgres.replace(" FOR SHARE", ""))],
    ),
    "a cancel that locks nothing": (
        child_is_added_below_a_task_being_cancelled,
        [],
        [(losses.LOCK, losses.LOCK.postgres.replace(" FOR UPDATE", ""))],
    ),
    "the reaper does not repeat its guard": (
        renewal_meets_reaper,
        [],
        [(losses.REAP, losses.REAP.postgres.replace(" AND reap_at < retinue_now()", ""))],
    ),
    "sessions are not locked": (
        a_task_is_made_as_its_session_ends,
        [],
        [(admission.SESSION, admission.SESSION.postgres.replace(" FOR KEY SHARE", ""))],
    ),
    "queues are not locked": (
        a_task_comes_into_a_queue_that_is_dropped,
        [],
        [(queues.HAS_QUEUE, queues.HAS_QUEUE.postgres.replace(" FOR KEY SHARE", ""))],
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
async def test_a_planted_bug_is_noticed(races: Races, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, commands, plants = PLANTED[bug]
    for command in commands:
        races.stepper.watcher.execute(command)
    for statement, instead in plants:
        assert statement.postgres != instead
        monkeypatch.setattr(statement, "postgres", instead)

    assert await races.finds(scene)


async def test_a_cancel_that_does_not_see_where_its_task_went_is_noticed(
    races: Races, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "range", lambda passes: range(1), raising=False)

    assert await races.finds(claim_meets_cancel)


async def test_a_claim_that_takes_the_locked_for_gone_is_noticed(races: Races, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_emptied", lambda transaction, queues: queues)

    assert await races.finds(claims_meet)


async def test_the_same_seed_gives_the_same_order(races: Races) -> None:
    async def steps(seed: int) -> list[tuple[int, str]]:
        works, _ = await parents_end_at_once(races.rig)
        return races.stepper.run(seed, works).steps

    assert await steps(7) == await steps(7)
    assert await steps(7) != await steps(8)
