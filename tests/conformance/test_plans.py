"""What statements cost when the store is full (INVARIANTS I-43): the rows they read, not seconds; none walks a table.

Waiting, finished and ineligible tasks are many; every hot statement touches only what it answers with. On PostgreSQL
as it plans at first, and as it does for a statement that has run often; on SQLite as in a file that was never
analyzed, and after ANALYZE.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

import services
from retinue.clock import SystemClock
from retinue.events import store as events
from retinue.nodes import store as nodes
from retinue.storage import postgres
from retinue.storage.postgres import Postgres
from retinue.storage.schema import split
from retinue.storage.sql import Statement
from retinue.storage.sqlite import SqliteConnection, open_writer
from retinue.tasks import admission, endings, logs, losses, progress, prune, queues, read, rows, steer, store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MANY = int(os.environ.get("RETINUE_ROWS", "100000"))  # of each sort
HELD = 10_000
LINES = 10  # queues that a node serves
BEST = 8  # tasks that a round looks for
DAY = 86_400_000_000
NOW = 1_800_000_000_000_000
BIG = ("tasks", "ready", "running", "events", "attempts", "edges", "timers", "logs", "idempotency", "links", "denials")

# `n` runs over the numbers from 1 to MANY; texts are as wide as ids are.
LOAD = """
INSERT INTO teams (id, name, created_at, position, chain)
  VALUES ('ours', 'ours', 0, {many}, ''), ('x', 'x', 0, 0, '');
INSERT INTO queues (id, team, labels, requires, resources)
  SELECT 'q' || n, 'ours', '{{}}', '[]', '{{}}' FROM {numbers} WHERE n <= 1000;
-- waiting in lines that are served
INSERT INTO tasks (id, team, status, queue, rank, spec, created_by, created_at, ready_at)
  SELECT 'tsk_wait_' || (10000000 + n), 'ours', 'pending', 'q' || (n % 10 + 1), {now} + n, '{{}}', 'ann', n, n
    FROM {numbers};
INSERT INTO ready (queue, rank, id, fence)
  SELECT 'q' || (n % 10 + 1), {now} + n, 'tsk_wait_' || (10000000 + n), 0 FROM {numbers};
-- waiting in lines that nobody here may serve
INSERT INTO tasks (id, team, status, queue, rank, spec, created_by, created_at, ready_at)
  SELECT 'tsk_else_' || (10000000 + n), 'ours', 'pending', 'q' || (n % 900 + 50), {now} + n, '{{}}', 'ann', n, n
    FROM {numbers};
INSERT INTO ready (queue, rank, id, fence)
  SELECT 'q' || (n % 900 + 50), {now} + n, 'tsk_else_' || (10000000 + n), 0 FROM {numbers};
-- finished, a tenth of them long ago; each has an attempt, a parent, a log, a key
INSERT INTO tasks (id, team, status, queue, rank, fence, parent, spec, created_by, created_at, ready_at,
  finished_at)
  SELECT 'tsk_done_' || (10000000 + n), 'ours', 'completed', 'q' || (n % 10 + 1), {now} + n, 1, CASE WHEN n %
    100 <> 0 THEN 'tsk_done_' || (10000000 + n - n % 100) END, '{{}}', 'ann', n, n, CASE WHEN n % 10 = 0 THEN n
    ELSE {now} END FROM {numbers};
INSERT INTO attempts (task, fence, id, node, status, claimed_at, ended_at)
  SELECT 'tsk_done_' || (10000000 + n), 1, 'att_' || n, 'nod', 'completed', n, n FROM {numbers};
INSERT INTO edges (parent, child, policy)
  SELECT 'tsk_done_' || (10000000 + n - n % 10), 'tsk_done_' || (10000000 + n), 'success' FROM {numbers} WHERE n
    % 10 <> 0;
INSERT INTO logs (attempt, stream, start, size, at, digest)
  SELECT 'att_' || n, 'stdout', 0, 5, CASE WHEN n % 10 = 0 THEN n ELSE {now} END, CASE WHEN n % 2 = 0 THEN
    'digest' || n END FROM {numbers};
INSERT INTO logs (attempt, stream, start, size, at)
  SELECT 'att_long', 'stdout', 5 * n, 5, {now} FROM {numbers} WHERE n <= 10000;
INSERT INTO idempotency (team, principal, route, key, body, answer, at)
  SELECT 'ours', 'ann', 'POST /tasks', 'k' || n, '', '', CASE WHEN n % 10 = 0 THEN n ELSE {now} END FROM
    {numbers};
-- held
INSERT INTO tasks (id, team, status, queue, rank, spec, created_by, created_at, ready_at)
  SELECT 'tsk_held_' || (10000000 + n), 'ours', 'pending', 'q1', {now} + n, '{{}}', 'ann', n, n FROM {numbers}
    WHERE n <= {held};
INSERT INTO running (id, fence, team, node, boot, attempt, status, claimed_at, reap_at, patience)
  SELECT 'tsk_held_' || (10000000 + n), 1, 'ours', 'nod' || (n % 1000), 'b', 'att', 'claimed', n, CASE WHEN n %
    100 = 0 THEN n ELSE {never} END, 0 FROM {numbers} WHERE n <= {held};
-- blocked, with a deadline
INSERT INTO tasks (id, team, status, queue, rank, waiting_on, spec, created_by, created_at, ready_at)
  SELECT 'tsk_block_' || (10000000 + n), 'ours', 'blocked', 'q1', 0, 1, '{{}}', 'ann', n, n FROM {numbers} WHERE
    n <= {held};
INSERT INTO edges (parent, child, policy)
  SELECT 'tsk_held_' || (10000000 + n), 'tsk_block_' || (10000000 + n), 'success' FROM {numbers} WHERE n <=
    {held};
INSERT INTO timers (due_at, task, kind)
  SELECT CASE WHEN n % 100 = 0 THEN n ELSE {never} + n END, 'tsk_else_' || (10000000 + n), 'deadline' FROM
    {numbers};
-- the feed
INSERT INTO events (team, position, type, at, subject, actor, data)
  SELECT 'ours', n, 'task.claimed', n, 'tsk', 'ann', '{{}}' FROM {numbers};
INSERT INTO links (team, first, last, digest, at)
  SELECT 'ours', n, n, '', n FROM {numbers};
INSERT INTO denials (team, who, what, minute, times)
  SELECT 'ours', 'w' || n, 'STALE_CLAIM', n, 1 FROM {numbers};
INSERT INTO sessions (id, team, boot, lease_at)
  SELECT 'ses' || n, 'ours', 'c', {never} FROM {numbers} WHERE n < 1000;
"""


def load(many: int, numbers: str) -> list[str]:
    """The statements that fill a store."""
    return split(LOAD.format(many=many, numbers=numbers, now=NOW, held=HELD, never=NOW + 1000 * DAY))


def ids(kind: str, count: int = BEST) -> list[str]:
    return [f"tsk_{kind}_{10_000_000 + 7 * n}" for n in range(1, count + 1)]


def heads(count: int = BEST) -> list[tuple[str, int, str]]:
    return [(f"q{n % 10 + 1}", NOW + n, f"tsk_wait_{10_000_000 + n}") for n in range(1, count + 1)]


@dataclass
class Cost:
    """A statement with arguments, and how many rows it may read."""

    statement: Statement
    arguments: list[Any]
    rows: int
    engines: tuple[str, ...] = ("sqlite", "postgres")
    scans: tuple[str, ...] = ()  # tables that it may walk through


LINE = [(f"q{n}",) for n in range(1, LINES + 1)]
HOLDS = [(task, 1) for task in ids("held")]
SAID = "it is as it is"
COSTS: dict[str, Cost] = {
    "claim: heads of one queue": Cost(store.HEAD, ["q1", BEST], BEST, ("sqlite",)),
    "claim: heads of all queues": Cost(store.HEADS, [LINE, BEST], BEST * LINES, ("postgres",)),
    "claim: peopled": Cost(store.PEOPLED, [LINE], LINES),
    "claim: take": Cost(store.TAKE_READY, [heads()], BEST),
    "claim: what they are": Cost(store.CLAIMED, [[(task,) for task in ids("wait")]], BEST),
    "start": Cost(store.START, [HOLDS], BEST),
    "start: again": Cost(store.HELD, [HOLDS], BEST),
    "renew": Cost(store.RENEW, [[(task, fence, 15) for task, fence in HOLDS]], BEST),
    "renew: seen": Cost(nodes.SEEN, [[("nod1", "b")]], 1),
    "finish: drop": Cost(rows.DROP_RUNNING, [HOLDS], BEST),
    "finish: past": Cost(store.PAST, ["tsk_done_10000007", 1], 1),
    "finish: end": Cost(
        endings.END, [[(task, "completed", 1, "att", 0, None, None, "{}") for task in ids("held")]], BEST
    ),
    "finish: tries": Cost(endings.TRIES, [[(task,) for task in ids("held")]], BEST),
    "finish: once more": Cost(
        endings.FAILED_ONCE, [[(t, "pending", 1, 0, 1, 1, 1, "att", 1, "EXIT", "no") for t in ids("held")]], BEST
    ),
    "children: count down": Cost(endings.COUNT_DOWN, [[(task,) for task in ids("held")]], 3 * BEST),
    "children: spoiled": Cost(endings.SPOILED, [[(task,) for task in ids("held")]], 2 * BEST),
    "children: unblock": Cost(endings.UNBLOCK, [[(task, "pending", 1, 1) for task in ids("block")]], BEST),
    "children: fail": Cost(endings.FAIL_WAITING, [[(task, SAID) for task in ids("block")]], BEST),
    "create: parents": Cost(admission.PARENTS, [[(task,) for task in ids("done")]], BEST),
    "create: cancelled above": Cost(admission.CANCELLED_ABOVE, [[(task,) for task in ids("done")]], 3 * BEST),
    "create: key": Cost(admission.TAKE_KEY, [[("ours", "ann", f"k{n}", "", "a") for n in range(BEST)]], BEST),
    "create: key again": Cost(admission.READ_KEY, ["ours", "ann", "k7"], 1),
    "create: queue": Cost(queues.HAS_QUEUE, ["q7"], 1),
    "create: count queues": Cost(queues.COUNT_QUEUES, ["ours"], 1001),
    "create: empty queues": Cost(queues.EMPTY_QUEUES, ["ours"], 3000),
    "reaper: overdue": Cost(losses.OVERDUE, [50], 50),
    "reaper: reap": Cost(losses.REAP, [HOLDS], BEST),
    "hello: held by a node": Cost(losses.OF_NODE, ["nod7"], 30),
    "cancel: tree": Cost(steer.TREE, [[("tsk_done_10000100",)]], 202),
    "cancel: drop held": Cost(losses.DROP_HELD, [[(task,) for task in ids("held")]], BEST),
    "cancel: lock": Cost(losses.LOCK, [[(task,) for task in ids("wait")]], BEST),
    "cancel: drop ready": Cost(losses.DROP_READY, [heads()], BEST),
    "cancel": Cost(steer.CANCEL_TASKS, [[(task, 0, None, SAID) for task in ids("wait")]], BEST),
    "create: drop key": Cost(admission.DROP_KEY, ["ours", "ann", "k7", ""], 1),
    "cancel: find": Cost(steer.FIND, ["tsk_wait_10000107", "ours"], 1),
    "retry: find": Cost(steer.ENDED, ["tsk_done_10000107", "ours"], 1),
    "progress: latest": Cost(progress.LATEST, ["tsk_held_10000107"], 1),
    "retry: parents": Cost(steer.ABOVE, ["tsk_done_10000107"], 2),
    "retry: count up": Cost(steer.COUNT_UP, ["tsk_held_10000107"], 2),
    "session: tied": Cost(steer.TIED, ["ses1"], 1),
    "session: keep": Cost(steer.RENEW_SESSIONS, [[("ses1", "ours", 15)]], 1000),
    "timers: due": Cost(steer.DUE, [50], 50),
    "timers: drop": Cost(
        steer.DROP_TIMERS, [[(100 * n, f"tsk_else_{10_000_000 + 100 * n}", "deadline") for n in range(1, 9)]], BEST
    ),
    "timers: next": Cost(steer.NEXT_DUE, [], 1),
    "timers: wake": Cost(steer.WAKE, [[(task,) for task in ids("else")]], BEST),
    "timers: fail": Cost(steer.FAIL_DUE, [[(task, SAID) for task in ids("else")]], BEST),
    "log: held": Cost(logs.HELD, ["tsk_held_10000107", 1, "att"], 1),
    "log: end": Cost(logs.END_OF, ["att_long", "stdout"], 1),
    "log: segments": Cost(logs.SEGMENTS, ["att_long", "stdout", 25_000, "att_long", "stdout", 25_000, 16], 20),
    "progress: holder": Cost(progress.HOLDER, ["tsk_held_10000107", 1], 1),
    "feed: take": Cost(events.TAKE, [8, "ours"], 2),
    "feed: page": Cost(events.PAGE, ["ours", MANY // 2, 200], 200),
    "feed: links": Cost(events.NEXT_LINKS, ["ours", MANY // 2, 100], 100),
    "task: one": Cost(read.ONE, ["tsk_held_10000107", "ours"], 3),
    "task: open": Cost(read.OPEN, ["tsk_wait_10000107"], 1),
    "task: many": Cost(read.MANY, [[(task,) for task in ids("held")], "ours"], 4 * BEST),
    "task: attempts": Cost(read.ATTEMPTS, [[(task,) for task in ids("done")]], 2 * BEST),
    "task: parents": Cost(read.UNFINISHED_PARENTS, ["tsk_done_10000107"], 3),
    "tasks: page": Cost(read.PAGE, [*["ours", "tsk_wait_10005000", 50] * len(read.COLD), 50], 600),
    "tasks: of a status": Cost(read.BY_STATUS, ["ours", "completed", "tsk_done_10005000", 50], 250),
    "tasks: held": Cost(
        read.HELD_BY_STATUS, ["ours", "claimed", "tsk_held_10005000", 50], 4 * HELD, scans=("running",)
    ),
    "queue: anybody": Cost(read.WAITING, ["q1"], 1),
    "queue: line": Cost(read.LINE, ["q1", 20], 20),
    "prune: keys": Cost(prune.OLD_KEYS, [NOW - DAY, 50], 100),
    "prune: logs": Cost(prune.OLD_LOGS, [NOW - DAY, 50], 100),
    "prune: tasks": Cost(prune.OLD_TASKS, [NOW - DAY, 50], 1500),
    "prune: still needed": Cost(prune.NAMED_NOW, [[(task,) for task in ids("done")]], 30 * BEST),
    "prune: their logs": Cost(prune.LOGS_OF, [[(task,) for task in ids("done")]], 4 * BEST),
    "prune: denials": Cost(prune.OLD_DENIALS, [MANY // 2, 50], 100),
    "prune: blobs": Cost(prune.STILL_NAMED, [[(f"digest{2 * n}",) for n in range(1, 9)]], BEST),
    "prune: events": Cost(events.PRUNE_EVENTS, ["ours", 100, 0], 101),
    "prune: links": Cost(events.PRUNE_LINKS, ["ours", 100], 101),
    **{
        f"prune: drop {number}": Cost(drop, [[(task,) for task in ids("done")]], 11 * BEST)
        for number, drop in enumerate(prune.DROPS)
    },
}
# M53: the heads of several queues as most people would write them. SQLite leaves off in each queue by itself.
SORTED_BACKLOG = Cost(
    Statement(
        "SELECT queue, rank, id, fence FROM ready WHERE queue IN (SELECT id FROM {rows q(id text)})"
        " ORDER BY rank, id LIMIT ?"
    ),
    [LINE, BEST],
    BEST * LINES,
)
MATCHED_TASK_BY_TASK = Cost(
    Statement(
        "SELECT ready.queue, ready.rank, ready.id, ready.fence FROM ready JOIN tasks ON tasks.id = ready.id"
        " WHERE tasks.queue IN (SELECT id FROM {rows q(id text)}) ORDER BY ready.rank, ready.id LIMIT ?"
    ),
    [LINE, BEST],
    BEST * LINES,
)


# What is not measured, and why: it says nothing about a task, or is asked by a person, or reads what is few by itself.
NOT_MEASURED = {
    "ADD", "FIND", "REGISTERED", "BACK", "LEAVE", "SILENT", "LIST",  # nodes, one by one or all of them
    "CHAIN", "TIP", "ENDS", "HIGHEST", "DENY", "SET_START",  # one row a team, or one a minute
    "ALL_LINKS", "PRUNE_LINKS", "BUSY", "COUNTS", "QUEUES", "QUEUE", "SIZES", "TEAM_OF", "NOW",
    "SESSION", "DROP_SESSIONS", "DROP_LAPSED", "DROP_OTHER_BOOTS",  # as many as foreground clients
    "ADD_COUNTS", "SET", "REOPEN",  # by primary key and nothing else
    "ONE_AT_A_TIME", "DROP_EMPTY_QUEUES",  # at the limit of queues
}  # fmt: skip
MODULES = (admission, endings, events, logs, losses, nodes, progress, prune, queues, read, rows, steer, store)


def test_every_statement_on_tasks_is_measured() -> None:
    measured = {id(cost.statement) for cost in COSTS.values()}
    left = {
        f"{module.__name__}.{name}"
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, Statement) and id(value) not in measured and name not in NOT_MEASURED
    }

    assert left == set()


def on(engine: str) -> list[str]:
    return [name for name, cost in COSTS.items() if engine in cost.engines]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded_postgres(postgres_server: services.PostgresServer) -> Iterator["psycopg.Connection[Any]"]:
    """A full database that was never analyzed."""
    with postgres_server.database() as url:
        Postgres(url, SystemClock())  # migrates
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET statement_timeout = 0; SET synchronous_commit = off")
            for text in load(MANY, f"generate_series(1, {MANY}) AS numbers(n)"):
                connection.execute(text)  # type: ignore[arg-type]
            connection.execute(f"{postgres.WRITER}; SET statement_timeout = '120s'")
            yield connection


@pytest.fixture(scope="module", params=["as it is", "analyzed"])
def full_postgres(
    loaded_postgres: "psycopg.Connection[Any]", request: pytest.FixtureRequest
) -> "psycopg.Connection[Any]":
    """A full database, before the server knows what is in it, and after."""
    if request.param == "analyzed":
        loaded_postgres.execute("VACUUM ANALYZE")
    return loaded_postgres


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes_of(below)


def walked(connection: "psycopg.Connection[Any]", cost: Cost, *, often: bool) -> tuple[int, list[str]]:
    """How many rows a statement really reads, and what is wrong with its plan."""
    arguments = cost.statement.postgres_arguments(cost.arguments)
    text, number = re.subn("%s", "{}", cost.statement.postgres)
    assert number == len(arguments)
    places = sql.SQL(text.replace("%%", "%")).format(*(sql.SQL(f"${n + 1}") for n in range(number)))
    given = sql.SQL(", ").join(sql.Literal(argument) for argument in arguments)
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("PREPARE wanted AS {}").format(places))
        run = sql.SQL("EXECUTE wanted {}").format(sql.SQL("({})").format(given) if number else sql.SQL(""))
        try:
            for _ in range(6 if often else 0):
                connection.execute(sql.SQL("EXPLAIN {}").format(run))
            [[explained]] = connection.execute(sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(run)).fetchall()
        finally:
            connection.execute("DEALLOCATE wanted")
    read_rows, wrong = 0, []
    for node in nodes_of(explained[0]["Plan"]):
        scans = "Scan" in node["Node Type"] and "Bitmap Heap" not in node["Node Type"]
        touched = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        table = node.get("Relation Name")
        if scans and (table or "Index Name" in node):
            read_rows += round(touched)
        if node["Node Type"] == "Seq Scan" and table in BIG and table not in cost.scans:
            wrong.append(f"walks through {table}")
        if "Sort" in node["Node Type"] and node["Actual Rows"] > 2 * cost.rows:
            wrong.append(f"sorts {node['Actual Rows']} rows")
    return read_rows, wrong


@pytest.mark.postgres
@pytest.mark.parametrize("often", [False, True], ids=["at first", "when it has run often"])
@pytest.mark.parametrize("name", on("postgres"))
def test_on_postgres_a_statement_reads_what_it_answers_with(
    full_postgres: "psycopg.Connection[Any]", name: str, often: bool, request: pytest.FixtureRequest
) -> None:
    cost = COSTS[name]
    if name == "prune: tasks" and "as it is" in request.node.name:
        pytest.skip("what is 90 days old has been analyzed long ago")
    read_rows, wrong = walked(full_postgres, cost, often=often)

    assert wrong == []
    assert read_rows <= cost.rows


@pytest.mark.postgres
@pytest.mark.parametrize("often", [False, True], ids=["at first", "when it has run often"])
def test_on_postgres_a_claim_that_walks_the_backlog_is_noticed(
    full_postgres: "psycopg.Connection[Any]", often: bool
) -> None:
    read_rows, wrong = walked(full_postgres, SORTED_BACKLOG, often=often)

    assert read_rows > SORTED_BACKLOG.rows or wrong


# -- SQLite ------------------------------------------------------------------------------------------------------------

STEPS = 150  # of SQLite's machine for a row that is read, found, and changed with its indexes


@pytest.fixture(scope="module")
def full_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteConnection]:
    """A full file."""
    path: Path = tmp_path_factory.mktemp("full") / "retinue.db"
    connection, _ = open_writer(str(path), SystemClock())
    connection.raw.execute("PRAGMA synchronous=OFF")
    connection.raw.execute("BEGIN")
    connection.raw.execute("CREATE TEMP TABLE numbers (n INTEGER PRIMARY KEY)")
    connection.raw.execute(
        "INSERT INTO numbers WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)"
        " SELECT n FROM c",
        [MANY],
    )
    for text in load(MANY, "numbers"):
        connection.raw.execute(text)
    connection.raw.execute("COMMIT")
    yield connection
    connection.raw.close()


@pytest.fixture(params=["as it is", "analyzed"])
def sqlite_file(full_sqlite: SqliteConnection, request: pytest.FixtureRequest) -> SqliteConnection:
    """The full file, without statistics as ours are, and with them."""
    raw = full_sqlite.raw
    known = raw.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'sqlite_stat1'").fetchone()[0]
    if request.param == "analyzed" and not known:
        raw.execute("ANALYZE")
    elif request.param == "as it is" and known:
        raw.execute("DROP TABLE sqlite_stat1")
        raw.execute("ANALYZE sqlite_schema")  # forget them
    return full_sqlite


def stepped(connection: SqliteConnection, cost: Cost) -> tuple[int, list[str]]:
    """How many steps SQLite's machine takes, and what is wrong with the plan."""
    raw, text = connection.raw, cost.statement.sqlite
    arguments = cost.statement.sqlite_arguments(cost.arguments)
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    plan = [row[3] for row in raw.execute(f"EXPLAIN QUERY PLAN {text}", arguments)]
    raw.execute("BEGIN")
    raw.set_progress_handler(count, 1)
    try:
        raw.execute(text, arguments).fetchall()
    finally:
        raw.set_progress_handler(None, 0)
        raw.execute("ROLLBACK")
    wrong = []
    for line in plan:
        table = re.match(r"SCAN (\w+)", line)
        bare = table is not None and " USING " not in line
        if table and bare and table[1] in BIG and table[1] not in cost.scans:
            wrong.append(line)
    return steps[0], wrong


@pytest.mark.parametrize("name", on("sqlite"))
def test_on_sqlite_a_statement_takes_steps_for_what_it_answers_with(sqlite_file: SqliteConnection, name: str) -> None:
    cost = COSTS[name]
    steps, wrong = stepped(sqlite_file, cost)

    assert wrong == []
    assert steps <= 500 + STEPS * cost.rows


def test_on_sqlite_a_claim_that_walks_the_backlog_is_noticed(sqlite_file: SqliteConnection) -> None:
    steps, wrong = stepped(sqlite_file, MATCHED_TASK_BY_TASK)

    assert steps > 500 + STEPS * MATCHED_TASK_BY_TASK.rows or wrong
