"""What every link promises (`retinue.client.link.Link`), as tests: in order, each once, or closed."""
# ruff: noqa: S101 - asserts are what a suite is made of

import asyncio

import pytest

from retinue.client.frames import Bye, Credit, Ping
from retinue.client.link import Link
from retinue.errors import LinkClosed

Ends = tuple[Link, Link]


class LinkSuite:
    """Give it a fixture `ends`: the node's and the coordinator's end of one open connection."""

    async def test_frames_arrive_in_order_each_once(self, ends: Ends) -> None:
        node, coordinator = ends

        for number in range(100):
            node.send(Credit(number, 0))

        assert [await coordinator.receive() for _ in range(100)] == [Credit(number, 0) for number in range(100)]

    async def test_both_ends_may_send(self, ends: Ends) -> None:
        node, coordinator = ends

        node.send(Ping())
        coordinator.send(Bye())

        assert (await coordinator.receive(), await node.receive()) == (Ping(), Bye())

    async def test_a_receiver_waits_for_a_frame(self, ends: Ends) -> None:
        node, coordinator = ends
        waiting = asyncio.ensure_future(coordinator.receive())
        await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, so that it waits

        node.send(Ping())

        assert await waiting == Ping()

    @pytest.mark.parametrize("closer", [0, 1])
    async def test_closing_is_told_to_both_ends(self, ends: Ends, closer: int) -> None:
        ends[closer].close()

        for end in ends:
            with pytest.raises(LinkClosed):
                await end.receive()

    async def test_a_waiting_receiver_is_told_too(self, ends: Ends) -> None:
        node, coordinator = ends
        waiting = asyncio.ensure_future(node.receive())
        await asyncio.sleep(0)  # noqa: TID251 - one turn of the loop, so that it waits

        coordinator.close()

        with pytest.raises(LinkClosed):
            await waiting

    async def test_sending_on_a_closed_link_is_silent(self, ends: Ends) -> None:
        node, _ = ends
        node.close()

        node.send(Ping())
        node.close()
