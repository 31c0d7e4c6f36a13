"""Group commit: writes that wait while a commit runs form the next transaction; none is answered before its commit.

No timer and no wait to fill a group: the first write goes at once, the rest ride together (PERFORMANCE lesson 3).
One member's failure is its own: a group that cannot be applied is rolled back and its members run one by one.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random  # noqa: TID251 - the type of the port
from typing import Any, Final

from retinue.clock import Clock
from retinue.errors import OutcomeUnknown, RetinueError, StoreBroken, Unavailable
from retinue.storage.database import Connection, Engine, ItemT, Kind, ResultT, StoreConflict, Transaction

log = logging.getLogger(__name__)

LARGEST_GROUP: Final = 1000
TRIES: Final = 5


@dataclass(slots=True)
class Member:
    """One waiting write and the future its caller awaits."""

    kind: Kind[Any, Any]
    item: Any
    answer: "asyncio.Future[Any]"


Outcomes = list[Any]


class GroupCommit:
    """Takes writes from many callers and commits them in groups through an engine."""

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        random: Random,
        *,
        publish: Callable[[Iterable[str]], None] = lambda hints: None,
        on_broken: Callable[[StoreBroken], None] = lambda error: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._random = random
        self._publish = publish
        self._on_broken = on_broken
        self._waiting: deque[Member] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._broken: StoreBroken | None = None
        self.commits = 0
        self.members = 0

    def submit(self, kind: Kind[ItemT, ResultT], item: ItemT) -> "asyncio.Future[ResultT]":
        """Queue a write at once; the future answers after its commit, or raises its error.

        A caller that stops waiting does not undo it: ask again with the same item to learn what became of it.
        """
        answer: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        if self._closing:
            answer.set_exception(self._broken or Unavailable("The store is closing; ask again when Retinue is up."))
            return answer
        self._waiting.append(Member(kind, item, answer))
        self._wake.set()
        return answer

    async def read(self, work: Callable[[Connection], ResultT]) -> ResultT:
        """Look at committed data."""
        return await self._engine.read(work)

    async def run(self) -> None:
        """Commit group after group until `close`. Several of these may run beside each other on PostgreSQL."""
        while not (self._closing and not self._waiting):
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            group = [self._waiting.popleft() for _ in range(min(len(self._waiting), LARGEST_GROUP))]
            try:
                await self._commit(group)
            except StoreBroken as error:
                self._broken = error
                self.close()
                _refuse(group, error)
                _refuse(self._waiting, error)
                self._waiting.clear()
                self._on_broken(error)
                return
            finally:
                _refuse(group, OutcomeUnknown())  # only those still unanswered: this task was cancelled

    def close(self) -> None:
        """Take no more writes; `run` returns when the waiting ones are committed."""
        self._closing = True
        self._wake.set()

    async def _commit(self, group: Sequence[Member]) -> None:
        for tried in range(TRIES):
            try:
                outcomes, hints = await self._engine.write(lambda transaction: _apply(transaction, group))
            except StoreConflict:
                if tried == TRIES - 1:
                    _refuse(group, Unavailable())
                    return
                await self._clock.sleep(self._random.uniform(0.001, 0.01) * 2**tried)
            except Unavailable as error:  # the engine's own trouble: each member alone would meet it too
                _refuse(group, error)
                return
            except StoreBroken:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it is some member's: each is told its own
                await self._one_by_one(group, error)
                return
            else:
                self.commits += 1
                self.members += len(group)
                for member, outcome in zip(group, outcomes, strict=True):
                    _answer(member, outcome)
                self._publish(hints)
                return

    async def _one_by_one(self, group: Sequence[Member], error: Exception) -> None:
        if len(group) == 1:
            log.error("a write of kind %s failed", group[0].kind.name, exc_info=error)
            _answer(group[0], error if isinstance(error, RetinueError) else RetinueError())
            return
        for member in group:
            await self._commit([member])


def _apply(transaction: Transaction, group: Sequence[Member]) -> tuple[Outcomes, Iterable[str]]:
    """All members of a group, kind by kind, and the outcome of each in the group's order."""
    kinds: dict[Kind[Any, Any], list[int]] = {}
    for place, member in enumerate(group):
        kinds.setdefault(member.kind, []).append(place)
    outcomes: Outcomes = [None] * len(group)
    for kind in sorted(kinds, key=lambda kind: kind.order):
        places = kinds[kind]
        results = kind.apply(transaction, [group[place].item for place in places])
        for place, result in zip(places, results, strict=True):
            outcomes[place] = result
    return outcomes, transaction.hints  # the engine's chores may add hints


def _answer(member: Member, outcome: Any) -> None:
    if member.answer.done():
        return  # the caller stopped waiting
    if isinstance(outcome, BaseException):
        member.answer.set_exception(outcome)
    else:
        member.answer.set_result(outcome)


def _refuse(group: Iterable[Member], error: Exception) -> None:
    for member in group:
        _answer(member, error)
