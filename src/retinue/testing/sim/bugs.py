"""The planted bugs: each a real one of somebody's, or a safeguard of ours left out."""

# ruff: noqa: ISC004, SLF001 - a planted bug goes where the safeguard is, and shows it as it is written there

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Final

from retinue.coordinator.dispatcher import Dispatcher
from retinue.coordinator.gateway import Gateway
from retinue.coordinator.loops.reaper import Reaper
from retinue.node.daemon import Node
from retinue.node.executor import Executor
from retinue.storage.group import GroupCommit
from retinue.tasks import endings, logs, losses, store
from retinue.tasks.model import Queue
from retinue.tasks.service import TaskService
from retinue.testing.sim.mutants import MUTANTS, Mutant, code, mutant, patched, sql

Planted = AbstractContextManager[None]


@mutant("acknowledge before the commit", "M06", "I-01")
def acknowledge_before_the_commit() -> Planted:
    """NATS #7564: the answer does not wait for the disk."""
    return code(
        (
            GroupCommit.submit,
            "self._waiting.append(Member(kind, item, answer))",
            "self._waiting.append(Member(kind, item, answer))\n"
            "    if kind.name == 'task.create':\n"
            "        answer.set_result(item.id)",
        )
    )


@mutant("create without the key", "M21", "I-06")
def create_without_the_key() -> Planted:
    """A client that asks again gets another task."""
    return code((TaskService._create, "principal, key, body)", "principal, None, body)"))


@mutant("no sweep behind the hint", "M24", "I-01")
def no_sweep_behind_the_hint() -> Planted:
    """Waiting work is found by hints alone."""
    return code((Dispatcher.sweep, "self.arriving(queue)", "pass"))


@mutant("complete by id only", "M05", "I-02", "I-03")
def complete_by_id_only() -> Planted:
    """NATS #4786: a late answer of the first holder is taken for the second's."""
    return code(
        (
            store._finish,
            "    holds = sorted(",
            "    current = {r[0]: r[1] for r in transaction.rows(Statement('SELECT id, fence FROM running'))}\n"
            "    items = [msgspec.structs.replace(i, fence=current.get(i.task, i.fence)) for i in items]\n"
            "    holds = sorted(",
        )
    )


@mutant("renew by id only", "M15", "I-03")
def renew_by_id_only() -> Planted:
    """A holder that lost its claim renews the next one's."""
    return sql((store.RENEW, "AND running.fence = m.fence RETURNING", "RETURNING"))


@mutant("start by id only", "-", "I-03")
def start_by_id_only() -> Planted:
    """A stale start is taken for the current holder's."""
    return sql((store.START, "AND running.fence = m.fence AND", "AND"))


@mutant("output by id only", "M17", "I-03")
def output_by_id_only() -> Planted:
    """A stale holder goes on writing the log."""
    return sql((logs.HELD, "AND fence = ? AND attempt = ?", "AND (fence = ? OR true) AND (attempt = ? OR true)"))


@mutant("claim leaves the task in its line", "M20", "I-05")
def claim_leaves_the_task_in_its_line() -> Planted:
    """A claim without the guard of the status."""
    return _both(
        sql((store.TAKE_READY, "DELETE FROM ready", "SELECT id FROM ready"), (store.TAKE_READY, " RETURNING id", "")),
        patched(store.ADD_RUNNING, "sqlite", store.ADD_RUNNING.sqlite.replace("INSERT", "INSERT OR REPLACE", 1)),
    )


@mutant("reap from an old look", "M01", "I-07")
def reap_from_an_old_look() -> Planted:
    """River #1302: the rescuer trusts what it read before, by id alone."""
    return _both(
        sql(
            (losses.REAP, " AND reap_at < retinue_now()", ""),
            (losses.REAP, "(id, fence) IN (SELECT id, fence", "id IN (SELECT id"),
        ),
        code(
            (
                Reaper.turn,
                "while await self._database.submit(REAP_KIND, MOST) == MOST:",
                "from retinue.tasks import store as _store\n"
                "        seen = await self._database.read(lambda c: c.rows(_store.OVERDUE, MOST))\n"
                "        await self._clock.sleep(1.0)\n"
                "        _store.SEEN_BEFORE = seen\n"
                "        while await self._database.submit(REAP_KIND, MOST) == MOST:",
            ),
            (
                losses._reap,
                "overdue = transaction.rows(OVERDUE, most)",
                "overdue = globals().pop('SEEN_BEFORE', [])",
            ),
        ),
    )


@mutant("orphans found through the nodes table", "M02", "I-07", "I-01")
def orphans_found_through_the_nodes_table() -> Planted:
    """Procrastinate #1518: a worker that is gone hides its tasks from the rescuer."""
    return sql(
        (
            losses.OVERDUE,
            "WHERE reap_at < retinue_now()",
            "WHERE reap_at < retinue_now() AND EXISTS (SELECT 1 FROM nodes"
            " WHERE nodes.id = running.node AND nodes.seen_at > retinue_now() - 9000000)",
        )
    )


@mutant("node name as identity", "M03", "I-07", "I-01")
def node_name_as_identity() -> Planted:
    """Procrastinate #1518: a restarted worker keeps the tasks of its dead predecessor alive."""
    return _both(
        sql(
            (
                losses.OF_NODE,
                "WHERE node = ?",
                "WHERE node = ? AND false",
            )
        ),
        code(
            (
                store._renew,
                "kept = ",
                "everyone = msgspec.json.encode([i.node for i in items]).decode()\n"
                "    transaction.run(Statement('UPDATE running SET reap_at = retinue_now() + 9000000'"
                " ' WHERE node IN (SELECT value FROM json_each(?))'), everyone)\n"
                "    kept = ",
            )
        ),
    )


@mutant("no renewal", "M07", "I-07 nobody else", profile="calm")
def no_renewal() -> Planted:
    """Celery #5306: a fixed time for every task, however long it works."""
    return code((Gateway._renew, "proven, forged = self._proven(holds, session.offer.boot)", "proven, forged = [], []"))


@mutant("reaper without grace", "M49", "I-07 nobody else")
def reaper_without_grace() -> Planted:
    """A closed lid or a restarted coordinator orphans what its nodes still hold."""
    return code((Reaper.turn, "now - self._awake_since < self._lease", "False"))


@mutant("every loss and claim counts", "-", "I-08")
def every_loss_and_claim_counts() -> Planted:
    """An attempt is counted at its claim and when it is handed back."""
    return code((losses.hand_back, "losses += lost and started", "losses += 1"))


@mutant("cancel is only a flag", "M37", "I-04", "I-10")
def cancel_is_only_a_flag() -> Planted:
    """The claim lives on, and its result is taken."""
    return sql((losses.DROP_HELD, "WHERE id IN", "WHERE false AND id IN"))


@mutant("labels are not looked at", "-", "I-11")
def labels_are_not_looked_at() -> Planted:
    """Any node will do."""
    return code((Queue.served_by, "all(node.labels.get(key) == value for key, value in self.labels.items())", "True"))


@mutant("one worker too many", "-", "I-11")
def one_worker_too_many() -> Planted:
    """A node says it has room when it has none."""
    return code((Executor.free.fget, "self._workers - sum", "self._workers + 1 - sum"))  # type: ignore[attr-defined]


@mutant("a child runs after its first parent", "-", "I-09")
def a_child_runs_after_its_first_parent() -> Planted:
    """The counter is not waited out."""
    return code((endings.parents_ended, "row[1] <= 0", "row[1] <= 1"))


@mutant("the event misses its transaction", "-", "I-28", "I-41")
def the_event_misses_its_transaction() -> Planted:
    """A move without its event."""
    return code(
        (
            losses._release,
            'hand_back(transaction, [row for row in dropped.values() if row[8] is None], "task.released")',
            "pass",
        )
    )


@mutant("a lost report is not repeated", "-", "I-01")
def a_lost_report_is_not_repeated() -> Planted:
    """The node says how it ended once, and forgets."""
    return code(
        (
            Node._ended,
            "self._send(Done([report]))",
            "self._send(Done([report])); self.executor.acknowledged(report.attempt)",
        )
    )


_read: Final[set[str]] = set()


def planted(name: str | None) -> Planted:
    """The code with this bug in it, for a while; without a name, as it is.

    Raises:
        LookupError: the code does not say any more what the bug takes out of it.
    """
    return nullcontext() if name is None else known()[name].plant()


def known() -> dict[str, Mutant]:
    """Every mutant there is. The source they change is read at the first call, before it is edited under a long run."""
    for bug in MUTANTS.values():
        if bug.name not in _read:
            _read.add(bug.name)
            with suppress(LookupError), bug.plant():
                pass
    return MUTANTS


def _both(*planted: Planted) -> Planted:
    return _Several(planted)


class _Several(AbstractContextManager[None]):
    """Several changes that make one bug."""

    def __init__(self, planted: tuple[Planted, ...]) -> None:
        self._planted = planted

    def __enter__(self) -> None:
        for change in self._planted:
            change.__enter__()

    def __exit__(self, *error: object) -> None:
        for change in reversed(self._planted):
            change.__exit__(None, None, None)
