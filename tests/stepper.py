"""STEP: transactions on several PostgreSQL connections, driven statement by statement in an order that a seed decides.

A statement that has to wait for another transaction's lock is told from a slow one by `pg_locks`: the others go on.
A deadlock's victim starts again, as a group commit's does. The same seed gives the same order.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psycopg

from retinue.storage import postgres
from retinue.storage.database import Transaction
from retinue.storage.sql import Insert, Row, Statement

Work = Callable[[Transaction], Any]
SETTLE = 0.002  # seconds after which a statement that has not come back is looked up among the waiting
TRIES = 20


class Turn:
    """Who may run: one statement of one actor at a time, unless it waits for a lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition()


@dataclass
class Order:
    """What happened: the actors by their statements, who had to wait, what they answered."""

    steps: list[tuple[int, str]] = field(default_factory=list)
    waited: set[int] = field(default_factory=set)
    restarts: int = 0  # deadlocks
    outcomes: list[Any] = field(default_factory=list)

    def at(self, actor: int, statement: Statement) -> int:
        """When an actor ran a statement, counted in steps; the last time if there were several."""
        return max(place for place, step in enumerate(self.steps) if step == (actor, statement.postgres))


class Actor:
    """One connection; each statement waits for its turn."""

    lateral = True

    def __init__(self, number: int, url: str, turn: Turn) -> None:
        self.number = number
        self.raw = psycopg.connect(url, autocommit=True)
        self.connection = postgres._prepared(self.raw, postgres.WRITER)
        self.pid = self.raw.info.backend_pid
        self.epoch = 0
        self.turn = turn
        self.state = "idle"  # idle, ready (wants its turn), running
        self.wants = ""
        self.outcome: Any = None
        self.restarts = 0

    # -- a connection as `Transaction` wants it -----------------------------------------------------------------------

    def rows(self, statement: Statement, *arguments: Any) -> list[Row]:
        self._wait(statement.postgres)
        return self.connection.rows(statement, *arguments)

    def run(self, statement: Statement, *arguments: Any) -> int:
        self._wait(statement.postgres)
        return self.connection.run(statement, *arguments)

    def insert(self, insert: Insert, rows: Sequence[Row]) -> None:
        if rows:
            self._wait(insert.postgres)
            self.connection.insert(insert, rows)

    # -- its turn ------------------------------------------------------------------------------------------------------

    def act(self, work: Work) -> None:
        """A transaction from its begin to its commit, again when the server asks for it."""
        try:
            for _ in range(TRIES):
                try:
                    self.outcome = self._transaction(work)
                except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                    self.raw.rollback()
                    self.restarts += 1
                    continue
                break
        except BaseException as error:
            self.raw.rollback()
            self.outcome = error
        finally:
            with self.turn.changed:
                self.state = "idle"
                self.turn.changed.notify_all()

    def _transaction(self, work: Work) -> Any:
        self._wait("BEGIN")
        self.connection.command(postgres.BEGIN_WRITE)
        transaction = Transaction(self)
        outcome = work(transaction)
        transaction.finish()
        self._wait("COMMIT")
        self.connection.command("COMMIT")
        return outcome

    def _wait(self, wants: str) -> None:
        with self.turn.changed:
            self.state, self.wants = "ready", wants
            self.turn.changed.notify_all()
            self.turn.changed.wait_for(lambda: self.state == "running")


class Stepper:
    """A few actors on one database, and somebody who watches their locks."""

    def __init__(self, url: str, actors: int = 3) -> None:
        self.turn = Turn()
        self.actors = [Actor(number, url, self.turn) for number in range(actors)]
        self.watcher = psycopg.connect(url, autocommit=True)

    @classmethod
    @contextmanager
    def on(cls, url: str, actors: int = 3) -> "Iterator[Stepper]":
        """Connected while the block runs."""
        stepper = cls(url, actors)
        try:
            yield stepper
        finally:
            for actor in stepper.actors:
                actor.raw.close()
            stepper.watcher.close()

    def run(self, seed: int, works: Sequence[Work]) -> Order:
        """One order of these transactions' statements."""
        chance, order = Random(seed), Order()
        acting = self.actors[: len(works)]
        threads = []
        for actor, work in zip(acting, works, strict=True):
            actor.state, actor.outcome, actor.restarts = "starting", None, 0
            threads.append(threading.Thread(target=actor.act, args=(work,), daemon=True))
        for thread in threads:
            thread.start()
        while True:
            waiting = self._settle(acting)
            order.waited |= waiting
            ready = [actor for actor in acting if actor.state == "ready"]
            if not ready:
                if all(actor.state == "idle" for actor in acting):
                    break
                continue  # all wait for each other: the server ends one of them
            chosen = chance.choice(ready)
            order.steps.append((chosen.number, chosen.wants))
            with self.turn.changed:
                chosen.state = "running"
                self.turn.changed.notify_all()
        for thread in threads:
            thread.join()
        order.outcomes = [actor.outcome for actor in acting]
        order.restarts = sum(actor.restarts for actor in acting)
        return order

    def _settle(self, acting: Sequence[Actor]) -> set[int]:
        """Wait until everybody wants their next turn, is done, or waits for a lock; who waits for one."""
        while True:
            with self.turn.changed:
                self.turn.changed.wait_for(lambda: self._calm(acting), SETTLE)
                if self._calm(acting):
                    return set()
            blocked = {row[0] for row in self.watcher.execute("SELECT pid FROM pg_locks WHERE NOT granted").fetchall()}
            with self.turn.changed:
                busy = [actor for actor in acting if actor.state in ("running", "starting")]
                if all(actor.pid in blocked for actor in busy):
                    return {actor.number for actor in busy}

    @staticmethod
    def _calm(acting: Sequence[Actor]) -> bool:
        return all(actor.state in ("ready", "idle") for actor in acting)
