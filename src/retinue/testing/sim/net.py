"""Simulated links between machines: late, blocked, cut; each frame arrives in order and once, or the link closes."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import log
from typing import Any, Final, TypeVar

import msgspec

from retinue.client.frames import Frame
from retinue.errors import LinkClosed, RetinueError
from retinue.testing.sim.chance import Chance
from retinue.testing.sim.host import Host, Incarnation, resolve
from retinue.testing.sim.loop import SimLoop

T = TypeVar("T")

CONNECT: Final = 10.0  # seconds after which dialing is given up
_FIN: Final = None  # what a closing end sends last

_encode = msgspec.msgpack.Encoder().encode


def _same_over_the_wire(frame: Frame) -> Frame:
    kind: type[Frame] = type(frame)
    return msgspec.msgpack.decode(_encode(frame), type=kind)


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad the network of one seed is. `delay` is the mean of an exponential delay, in seconds."""

    delay: float = 0.002
    loss: float = 0.0
    duplicates: float = 0.0
    wire: bool = False  # encode and decode each frame


class Net:
    """Every connection and every block between machines."""

    def __init__(self, loop: SimLoop, chance: Chance, weather: Weather, host: Callable[[str], Host]) -> None:
        self.loop = loop
        self.weather = weather
        self.lost = chance.dice("frame-lost", weather.loss)
        self.repeated = chance.dice("frame-repeated", weather.duplicates)
        self.cut = chance.dice("power-cut", 0.5)
        self.host = host
        self._random = chance.fork("net").random
        self._blocks: dict[tuple[str, str], int] = {}
        self._clogged: dict[str, int] = {}
        self._pipes: list[Pipe] = []
        self._served: dict[tuple[str, str], tuple[Incarnation, Any]] = {}
        self.frames = 0
        self.tap: Callable[[SimLink, Frame], None] | None = None  # sees every frame as it arrives

    def delay(self) -> float:
        """How long the next frame is under way."""
        return -self.weather.delay * log(1.0 - self._random())

    def spread(self, low: float, high: float) -> float:
        """A number between two, for time limits that no two connections share."""
        return low + (high - low) * self._random()

    def passable(self, source: str, target: str) -> bool:
        """Whether frames get from one machine to the other now."""
        return not self._blocks.get((source, target)) and source not in self._clogged and target not in self._clogged

    def block(self, source: str, target: str) -> None:
        """Let nothing through from one machine to the other, until as many `unblock`."""
        self._blocks[source, target] = self._blocks.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        """What was sent meanwhile follows, where the connection still lives."""
        self._blocks[source, target] = max(0, self._blocks.get((source, target), 0) - 1)
        self._flush()

    def clog(self, machine: str) -> None:
        """Let nothing from or to a machine through, until as many `unclog`."""
        self._clogged[machine] = self._clogged.get(machine, 0) + 1

    def unclog(self, machine: str) -> None:
        """Free a machine again."""
        left = self._clogged.pop(machine, 1) - 1
        if left > 0:
            self._clogged[machine] = left
        self._flush()

    def heal(self) -> None:
        """No block, no clog and no bad weather is left."""
        self.weather = replace(self.weather, delay=0.002)
        self._blocks.clear()
        self._clogged.clear()
        self._flush()

    def _flush(self) -> None:
        self._pipes = [pipe for pipe in self._pipes if pipe.alive()]
        for pipe in self._pipes:
            pipe.flush()

    def serve(self, incarnation: Incarnation, port: str, server: Any) -> None:
        """Offer something on a port as long as the process lives: a callable that takes links, or an object to ask."""
        self._served[incarnation.host.name, port] = (incarnation, server)

    def _server(self, machine: str, port: str) -> tuple[Incarnation, Any]:
        found = self._served.get((machine, port))
        if found is None or not found[0].alive:
            raise LinkClosed("Connection refused: nobody listens there.")
        return found

    async def dial(self, source: Incarnation, machine: str, port: str = "link") -> "SimLink":
        """Connect to a machine.

        Raises:
            LinkClosed: refused, or no answer for `CONNECT` seconds.
        """
        await source.call()
        await self._reach(source, machine)
        target, accept = self._server(machine, port)
        near, far = SimLink(self, source), SimLink(self, target)
        near.peer, far.peer = far, near
        near.pipe, far.pipe = Pipe(self, near, far), Pipe(self, far, near)
        self._pipes += (near.pipe, far.pipe)
        self.loop.after(0.0, target, lambda _: target.run(accept, far))
        for end in (near, far):
            end.watch()
        return near

    async def _reach(self, source: Incarnation, machine: str) -> None:
        """Wait until a packet has gone there and back."""
        name = source.host.name
        give_up = self.loop.time() + CONNECT
        while not (self.passable(name, machine) and self.passable(machine, name)):
            if self.loop.time() >= give_up:
                raise LinkClosed("Connection timed out.")
            await self.pause(source, 0.5)
        await self.pause(source, self.delay() + self.delay())

    async def pause(self, source: Incarnation, seconds: float) -> None:
        """Wait in a process for something outside of it."""
        future = self.loop.create_future()
        if source.alive:
            self.loop.after(seconds, source, resolve, future)
        await future

    async def ask(
        self,
        source: Incarnation,
        machine: str,
        question: Callable[[Any], Awaitable[T]],
        *,
        timeout: float,
        port: str = "api",
    ) -> T:
        """Ask the server on a port: the question runs in its process, its answer or error travels back.

        Raises:
            LinkClosed: refused, so nothing happened.
            TimeoutError: the question or the answer was lost, so nobody knows what happened.
        """
        began = self.loop.time()
        await self.pause(source, self.delay())
        name = source.host.name
        answer: asyncio.Future[T] = self.loop.create_future()
        if self.passable(name, machine) and not self.lost():
            target, server = self._server(machine, port)

            def serve(_: object) -> None:
                target.start(self._answer(source, target, server, question, answer))

            for _ in range(2 if self.repeated() else 1):
                self.loop.after(self.delay(), target, serve)
        self.loop.at(began + timeout, source, _expire, answer)
        return await answer

    async def _answer(
        self,
        source: Incarnation,
        target: Incarnation,
        server: Any,
        question: Callable[[Any], Awaitable[T]],
        answer: "asyncio.Future[T]",
    ) -> None:
        value: Any = None
        error: RetinueError | None = None
        try:
            value = await question(server)
        except RetinueError as refused:
            error = refused
        if not target.alive or not self.passable(target.host.name, source.host.name) or self.lost():
            return
        self.loop.after(self.delay(), source, lambda _: _deliver(answer, value, error))


def _expire(answer: "asyncio.Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _deliver(answer: "asyncio.Future[Any]", value: Any, error: RetinueError | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(value)


class Pipe:
    """One direction of a connection. Frames are numbered; one that is lost closes it as soon as the gap is seen."""

    __slots__ = ("_backlog", "_expected", "_last", "_net", "_number", "_vanished", "source", "target")

    def __init__(self, net: Net, source: "SimLink", target: "SimLink") -> None:
        self.source = source
        self.target = target
        self._net = net
        self._number = 0
        self._expected = 1
        self._last = 0.0
        self._backlog: deque[tuple[int, Frame | None]] = deque()
        self._vanished = False

    def alive(self) -> bool:
        """Whether anything can still come out of it."""
        return not self._vanished and self.target.own.alive and not (self.target.closed and not self._backlog)

    def send(self, frame: Frame | None) -> None:
        """Put a frame on its way."""
        net = self._net
        net.frames += 1
        self._number += 1
        if frame is not None:
            if net.lost():
                return
            if net.repeated():
                self._carry((self._number, frame))
            if net.weather.wire:
                frame = _same_over_the_wire(frame)
        self._carry((self._number, frame))

    def _carry(self, numbered: tuple[int, Frame | None]) -> None:
        net = self._net
        if self._backlog or not net.passable(self.source.machine, self.target.machine):
            self._backlog.append(numbered)
            return
        self._last = max(self._last, net.loop.time() + net.delay())
        net.loop.at(self._last, self.target.own, self._arrive, numbered)

    def flush(self) -> None:
        """What waited for the end of a block goes on."""
        if self._backlog and self._net.passable(self.source.machine, self.target.machine):
            waiting, self._backlog = self._backlog, deque()
            for numbered in waiting:
                self._carry(numbered)

    def vanish(self) -> None:
        """Whatever is under way is gone with the power of its sender."""
        self._vanished = True
        self._backlog.clear()

    def _arrive(self, numbered: tuple[int, Frame | None]) -> None:
        if self._vanished or self.target.closed:
            return
        number, frame = numbered
        if number < self._expected:
            return  # a repeat
        if number > self._expected:
            self.target.close()  # a gap
            return
        self._expected += 1
        if frame is None:
            self.target.hang_up()
        else:
            self.target.take(frame)


class SimLink:
    """One end of a simulated connection: the `Link` that nodes and coordinators get."""

    def __init__(self, net: Net, own: Incarnation) -> None:
        self.own = own
        self.machine = own.host.name
        self.closed = False
        self.peer: SimLink
        self.pipe: Pipe
        self._net = net
        self._arrived: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._heard = net.loop.time()
        # Some transports notice silence in seconds, those left as they come in most of a minute.
        self._patience = net.spread(4.0, 15.0) if net.spread(0.0, 1.0) < 0.5 else net.spread(15.0, 45.0)
        self._every = net.spread(1.5, 3.0)
        own.ends.append(self._die)

    def send(self, frame: Frame) -> None:
        """Queue a frame; never waits."""
        if not self.closed and self.own.alive:
            self.pipe.send(frame)

    async def receive(self) -> Frame:
        """The next frame, or `LinkClosed` when there will be none."""
        while not self._arrived or not self.own.alive:
            if self.closed and self.own.alive:
                raise LinkClosed
            self._waiter = self._net.loop.create_future()
            await self._waiter
        return self._arrived.popleft()

    def close(self) -> None:
        """End the connection; the other end is told as soon as it can be reached."""
        if self.closed or not self.own.alive:
            return
        self.hang_up()
        self.pipe.send(_FIN)

    def take(self, frame: Frame) -> None:
        """A frame arrived."""
        host = self.own.host
        if host.fatal_frame():
            host.crash_point(self.own)
            return
        if self._net.tap is not None:
            self._net.tap(self, frame)
        self._arrived.append(frame)
        if self._waiter is not None:
            resolve(self._waiter)

    def hang_up(self) -> None:
        """The connection is over for this end; frames that arrived may still be received."""
        self.closed = True
        if self._waiter is not None:
            resolve(self._waiter)

    def watch(self, _: object = None) -> None:
        """The keepalive: an end that hears nothing of the other for a while gives the connection up by itself."""
        if self.closed:
            return
        net, peer = self._net, self.peer
        now = net.loop.time()
        there = net.passable(self.machine, peer.machine)
        if there and not peer.own.alive and net.host(peer.machine).up:
            self.hang_up()  # the machine is back, and knows nothing of this connection
            return
        if there and peer.own.open and net.passable(peer.machine, self.machine):
            self._heard = now
        elif now - self._heard > self._patience:
            self.close()
            return
        net.loop.after(self._every, self.own, self.watch)

    def _die(self, power_cut: bool) -> None:
        """Its process died. Killed, the system closes what was open; with the power gone, nobody hears of it."""
        if self.closed:
            return
        self.closed = True
        if power_cut:
            self.pipe.vanish()
        else:
            self.pipe.send(_FIN)
