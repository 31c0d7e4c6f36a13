"""How groups form. What they promise is `GroupCommitSuite`."""

import asyncio
from collections.abc import Sequence
from random import Random

from retinue.clock import SystemClock
from retinue.storage.database import Kind, Transaction
from retinue.storage.group import LARGEST_GROUP, GroupCommit
from retinue.storage.sqlite import InlineSqlite


class Seen:
    """A kind that notes what came together."""

    def __init__(self, name: str, order: int, seen: list[tuple[str, list[int]]]) -> None:
        self._name = name
        self._seen = seen
        self.kind: Kind[int, int] = Kind(name, order, self._apply)

    def _apply(self, transaction: Transaction, items: Sequence[int]) -> list[int]:
        self._seen.append((self._name, list(items)))
        return list(items)


async def commit(groups: GroupCommit, *answers: "asyncio.Future[int]") -> list[int]:
    running = asyncio.create_task(groups.run())
    got = await asyncio.gather(*answers)
    groups.close()
    await running
    return got


async def test_kinds_are_applied_in_their_order_members_in_theirs() -> None:
    seen: list[tuple[str, list[int]]] = []
    late, early = Seen("late", 2, seen), Seen("early", 1, seen)
    groups = GroupCommit(InlineSqlite(SystemClock()), SystemClock(), Random(0))

    got = await commit(groups, *(groups.submit((late if n % 2 else early).kind, n) for n in range(6)))

    assert got == [0, 1, 2, 3, 4, 5]
    assert seen == [("early", [0, 2, 4]), ("late", [1, 3, 5])]


async def test_a_group_has_an_upper_bound() -> None:
    seen: list[tuple[str, list[int]]] = []
    one = Seen("one", 1, seen)
    groups = GroupCommit(InlineSqlite(SystemClock()), SystemClock(), Random(0))

    await commit(groups, *(groups.submit(one.kind, n) for n in range(2 * LARGEST_GROUP + 1)))

    assert [len(items) for _, items in seen] == [LARGEST_GROUP, LARGEST_GROUP, 1]


async def test_the_first_write_does_not_wait_for_company() -> None:
    seen: list[tuple[str, list[int]]] = []
    one = Seen("one", 1, seen)
    groups = GroupCommit(InlineSqlite(SystemClock()), SystemClock(), Random(0))
    running = asyncio.create_task(groups.run())
    await asyncio.sleep(0)

    first = await groups.submit(one.kind, 1)
    second = await groups.submit(one.kind, 2)
    groups.close()
    await running

    assert (first, second, groups.commits) == (1, 2, 2)
