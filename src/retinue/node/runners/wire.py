"""What a node and its host processes say to each other: messages, many to a frame, over one socket.

A frame is 4 bytes of length (big-endian) and a MessagePack array of messages, at most `FRAME_LIMIT` bytes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from socket import socket  # noqa: TID251 - this is the port
from typing import TYPE_CHECKING, Any, Final

import msgspec

from retinue.tasks.model import Progress

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop  # not at run time: a host process for `def` functions starts without asyncio

FRAME_LIMIT: Final = 16 * 1024 * 1024
BATCH: Final = 256 * 1024  # a frame is closed once it holds this much
OUTPUT_CREDIT: Final = 256 * 1024  # bytes of output of one call that may be under way to the node
_PIECE: Final = 256 * 1024


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="type"):
    """One thing said; `call` numbers the calls of one host process."""


class Call(Message, tag="call", frozen=True):
    """Node: call this function. `arguments` is a JSON list."""

    call: int
    function: str
    arguments: bytes
    task: str
    attempt: str
    fence: int
    env: Mapping[str, str] = {}


class Stop(Message, tag="stop", frozen=True):
    """Node: cancel this call."""

    call: int


class Taken(Message, tag="taken", frozen=True):
    """Node: so many bytes of this call's output are handed on; there is room for as many more."""

    call: int
    size: int


class Ping(Message, tag="ping", frozen=True):
    """Node: does the event loop turn?"""


class Ready(Message, tag="ready", frozen=True):
    """Host, first: which functions it has, and whether each is an `async def`."""

    functions: Mapping[str, bool]


class Unready(Message, tag="unready", frozen=True):
    """Host, instead: why an app cannot be loaded."""

    error: str


class Returned(Message, tag="returned", frozen=True):
    """Host: the call ended with this result (MessagePack)."""

    call: int
    result: msgspec.Raw


class Raised(Message, tag="raised", frozen=True):
    """Host: the call ended without a result. `last`: the host is spoiled and ends itself."""

    call: int
    error: str
    traceback: str = ""
    retryable: bool = True
    last: bool = False


class Wrote(Message, tag="wrote", frozen=True):
    """Host: output of one of several calls; at most `OUTPUT_CREDIT` bytes before they are taken."""

    call: int
    stream: str
    data: bytes


class Told(Message, tag="told", frozen=True):
    """Host: how far a call is."""

    call: int
    progress: Progress


class Pong(Message, tag="pong", frozen=True):
    """Host: alive. Answers a ping where calls share an event loop, comes by itself each second from a `def`."""


ToHost = Call | Stop | Taken | Ping
ToNode = Ready | Unready | Returned | Raised | Wrote | Told | Pong
Decoder = msgspec.msgpack.Decoder[Any]
TO_HOST: Final[Decoder] = msgspec.msgpack.Decoder(list[ToHost])
TO_NODE: Final[Decoder] = msgspec.msgpack.Decoder(list[ToNode])
_encode: Final = msgspec.msgpack.Encoder().encode


def frame(messages: list[bytes]) -> bytes:
    """Encoded messages as one frame."""
    size = 5 + sum(map(len, messages))
    return b"".join((size.to_bytes(4), b"\xdd", len(messages).to_bytes(4), *messages))


def encode(message: Message) -> bytes:
    """One message, to go into a frame."""
    return _encode(message)


class Frames:
    """Takes bytes as they come and gives the messages of complete frames."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that are complete with these bytes.

        Raises:
            ValueError: this is no frame, or one over the limit.
        """
        self._bytes += data
        while len(self._bytes) >= 4:
            end = 4 + int.from_bytes(self._bytes[:4])
            if end > FRAME_LIMIT:
                raise ValueError(f"a frame of {end:,} bytes")
            if len(self._bytes) < end:
                return
            body = bytes(self._bytes[4:end])
            del self._bytes[:end]
            yield from self._decoder.decode(body)


class Channel:
    """One end of the socket, in an event loop. What is sent in one turn of it, or behind a slow reader, is a frame."""

    def __init__(
        self,
        loop: "AbstractEventLoop",
        end: socket,
        decoder: Decoder,
        heard: Callable[[Any], None],
        ended: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._socket = end
        self._frames = Frames(decoder)
        self._heard = heard
        self._ended = ended
        self._waiting: list[bytes] = []
        self._flushing = False
        self._rest = memoryview(b"")
        self._open = True
        end.setblocking(False)
        loop.add_reader(end, self._readable)

    def send(self, message: Message) -> None:
        """Send it at the end of this turn of the loop. Nothing is said when the other side is gone."""
        self._waiting.append(_encode(message))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def drain(self) -> None:
        """Hear at once all that the other side has said so far."""
        while self._open and self._readable():
            pass

    def close(self) -> None:
        """End it; what was not heard yet is lost."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _flush(self) -> None:
        try:
            while self._open and (self._rest or self._waiting):
                if not self._rest:
                    self._rest = memoryview(frame(self._batch()))
                self._rest = self._rest[self._socket.send(self._rest) :]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._waiting, self._rest = [], memoryview(b"")  # the reader hears of the end
        if self._open:
            self._loop.remove_writer(self._socket)
        self._flushing = False

    def _batch(self) -> list[bytes]:
        size = count = 0
        while count < len(self._waiting) and size < BATCH:
            size += len(self._waiting[count])
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def _readable(self) -> bool:
        """Whether there may be more."""
        try:
            data = self._socket.recv(_PIECE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        reason = ""
        try:
            for message in self._frames.feed(data):
                self._heard(message)
        except ValueError as problem:
            reason = f"it sent what cannot be read: {problem}"
        if reason or not data:
            self.close()
            self._ended(reason)
        return bool(data)


def write_all(descriptor: int, data: bytes) -> None:
    """Write to a blocking descriptor, all of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
