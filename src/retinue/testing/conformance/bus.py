"""What every bus promises (`retinue.bus.bus.Bus`), as tests. Losing is allowed; inventing is not."""
# ruff: noqa: S101 - asserts are what a suite is made of

from collections.abc import Callable

import pytest

from retinue.bus.bus import Bus, matches


class BusSuite:
    """Give it a fixture `bus`, and override `settle` if delivery takes time."""

    async def settle(self) -> None:
        """Return when what was published has arrived, or never will."""

    async def test_a_subscriber_gets_what_is_published_to_its_topic(self, bus: Bus) -> None:
        arrived: list[tuple[str, bytes]] = []
        bus.subscribe("task.a", lambda topic, payload: arrived.append((topic, payload)))

        bus.publish("task.a", b"1")
        await self.settle()

        assert arrived == [("task.a", b"1")]

    async def test_nobody_gets_what_is_published_to_another_topic(self, bus: Bus) -> None:
        arrived: list[str] = []
        bus.subscribe("task.a", lambda topic, payload: arrived.append(topic))

        bus.publish("task.b")
        bus.publish("task.a.b")
        bus.publish("task")
        await self.settle()

        assert arrived == []

    async def test_a_topic_without_subscribers_is_not_an_error(self, bus: Bus) -> None:
        bus.publish("nobody.listens", b"x")
        await self.settle()

    async def test_every_subscriber_gets_it_once(self, bus: Bus) -> None:
        arrived: list[int] = []
        for number in range(3):
            bus.subscribe("task.*", lambda topic, payload, number=number: arrived.append(number))  # type: ignore[misc]

        bus.publish("task.a")
        await self.settle()

        assert sorted(arrived) == [0, 1, 2]

    async def test_an_unsubscribed_handler_is_not_called_any_more(self, bus: Bus) -> None:
        arrived: list[str] = []
        unsubscribe = bus.subscribe("task.a", lambda topic, payload: arrived.append(topic))

        unsubscribe()
        unsubscribe()
        bus.publish("task.a")
        await self.settle()

        assert arrived == []

    async def test_a_handler_may_unsubscribe_itself(self, bus: Bus) -> None:
        arrived: list[str] = []
        mine: list[Callable[[], None]] = []

        def once(topic: str, payload: bytes) -> None:
            arrived.append(topic)
            mine[0]()

        mine.append(bus.subscribe("task.a", once))
        bus.publish("task.a")
        bus.publish("task.a")
        await self.settle()

        assert arrived == ["task.a"]

    @pytest.mark.parametrize("pattern", ["*", ">", "a.*", "a.>", "*.b", "a.*.c", "a.b", "a", "*.*", "*.>", "b.>"])
    async def test_a_pattern_delivers_what_the_reference_matcher_says(self, bus: Bus, pattern: str) -> None:
        topics = ["a", "b", "a.b", "a.c", "a.b.c", "a.d.c", "b.b", "b.b.c", "a.b.c.d"]
        arrived: list[str] = []
        bus.subscribe(pattern, lambda topic, payload: arrived.append(topic))

        for topic in topics:
            bus.publish(topic)
        await self.settle()

        assert arrived == [topic for topic in topics if _reference(pattern, topic)]
        assert [topic for topic in topics if matches(pattern, topic)] == arrived


def _reference(pattern: str, topic: str) -> bool:
    """The matcher written in another way: by recursion over the first tokens."""
    first, _, rest = pattern.partition(".")
    token, dot, others = topic.partition(".")
    if first == ">":
        return True
    if first not in ("*", token):
        return False
    if not rest or not dot:
        return not rest and not dot
    return _reference(rest, others)
