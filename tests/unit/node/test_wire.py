"""Frames between a node and its host processes: whatever way the bytes are cut, the same messages arrive."""

import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.node.runners import wire
from retinue.tasks.model import Progress

MESSAGES: list[Any] = [
    wire.Call(1, "app.add", b"[1,2]", "tsk_1", "att_1", 7, {"A": "1"}),
    wire.Stop(1),
    wire.Taken(1, 4096),
    wire.Ping(),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=20), st.lists(st.integers(1, 40), min_size=1))
def test_bytes_cut_anywhere_give_the_same_messages(messages: list[Any], cuts: list[int]) -> None:
    data = wire.frame([wire.encode(one) for one in messages]) + wire.frame([wire.encode(one) for one in messages])
    frames = wire.Frames(wire.TO_HOST)

    heard, at = [], 0
    while at < len(data):
        cut = cuts[at % len(cuts)]
        heard += list(frames.feed(data[at : at + cut]))
        at += cut

    assert heard == messages * 2


@pytest.mark.parametrize(
    "data",
    [
        (wire.FRAME_LIMIT + 1).to_bytes(4),
        (3).to_bytes(4) + b"abc",
        wire.frame([wire.encode(wire.Told(1, Progress(percent=1.0)))]),  # not a node's to say
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    frames = wire.Frames(wire.TO_HOST)

    with pytest.raises(ValueError, match=r".+"):
        list(frames.feed(data))


class End:
    """One end of a socket pair, in the running loop."""

    def __init__(self, end: socket.socket) -> None:
        self.heard: list[Any] = []
        self.enough = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.wanted = 0
        self.channel = wire.Channel(asyncio.get_running_loop(), end, wire.TO_HOST, self.hear, self.ended.set_result)

    def hear(self, message: Any) -> None:
        self.heard.append(message)
        if len(self.heard) >= self.wanted:
            self.enough.set()

    async def hear_of(self, count: int) -> list[Any]:
        self.wanted = count
        if len(self.heard) < count:
            await self.enough.wait()
        return self.heard


async def test_more_than_the_socket_holds_arrives_in_order() -> None:
    one, other = map(End, socket.socketpair())
    calls = [wire.Call(number, "f", b"x" * 10_000, "t", "a", 1) for number in range(500)]

    for call in calls:
        one.channel.send(call)
    heard = await other.hear_of(len(calls))
    one.channel.close()
    ended = await other.ended

    assert heard == calls
    assert ended == ""


async def test_an_end_that_says_nonsense_is_closed_with_the_reason() -> None:
    raw, end = socket.socketpair()
    other = End(end)

    raw.sendall(b"\0\0\0\x01\xc1")
    reason = await other.ended
    raw.close()

    assert reason.startswith("it sent what cannot be read")


async def test_sending_to_an_end_that_is_gone_says_nothing() -> None:
    raw, end = socket.socketpair()
    one = End(end)
    raw.close()

    one.channel.send(wire.Ping())
    ended = await one.ended
    one.channel.send(wire.Ping())
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)

    assert ended == ""
