"""The node's daemon: dials the coordinator, says what it holds, renews it, runs what it is given. It only dials out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from random import Random  # noqa: TID251 - the type of the port

import msgspec

from retinue.client.frames import (
    VERSION,
    Assign,
    Bye,
    Cancel,
    Credit,
    Done,
    DoneAck,
    Drain,
    Frame,
    Hello,
    Input,
    LogKept,
    Refused,
    Renew,
    Renewed,
    Report,
    Welcome,
)
from retinue.client.link import Link
from retinue.clock import Clock
from retinue.errors import LinkClosed, NodeDuplicate
from retinue.node.executor import Executor
from retinue.node.runners.runner import Runner
from retinue.nodes.resources import Resources

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds before dialling again


class NodeSettings(msgspec.Struct, frozen=True):
    """Who this node is and what it offers."""

    name: str
    workers: int
    labels: dict[str, str] = {}
    capabilities: tuple[str, ...] = ()
    resources: Resources = Resources()


class Node:
    """One process of a node. `run` it until it is stopped; a new process is a new boot and inherits nothing."""

    def __init__(
        self,
        settings: NodeSettings,
        boot: str,
        clock: Clock,
        random: Random,
        dial: Callable[[], Awaitable[Link]],
        runners: Mapping[str, Runner],
    ) -> None:
        self.settings = settings
        self.boot = boot
        self.connected = asyncio.Event()
        self._clock = clock
        self._random = random
        self._dial = dial
        self._link: Link | None = None
        self._pause = FIRST_PAUSE
        self._seen = 0  # assigned tasks on this connection
        self._lease = 15.0
        self._heard = clock.monotonic()
        self._draining = False
        self._stopping = False
        self._last_credit: Credit | None = None
        self.executor = Executor(runners, settings.workers, send=self._send, ended=self._ended)

    async def run(self) -> None:
        """Stay connected until cancelled: dial, serve, and dial again with growing, jittered pauses.

        Raises:
            NodeDuplicate: another process of this node answers.
        """
        while not self._stopping:
            try:
                await self._serve(await self._dial())
            except LinkClosed:
                pass
            await self._clock.sleep(self._pause * (0.5 + self._random.random()))
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def stop(self) -> None:
        """End all attempts, hand back what was claimed, say good-bye."""
        self._stopping = True
        await self.executor.stop()
        if self._link is not None:
            self._link.send(Bye())
            try:
                async with self._clock.timeout(2.0):
                    while True:
                        await self._link.receive()
            except (LinkClosed, TimeoutError):
                pass

    async def _serve(self, link: Link) -> None:
        """One connection, from hello to its end."""
        s = self.settings
        link.send(
            Hello(
                versions=[VERSION], node=s.name, boot_id=self.boot, nonce=f"{self._random.getrandbits(128):032x}",
                holds=self.executor.holds, workers=s.workers, labels=s.labels, capabilities=list(s.capabilities),
                resources=s.resources,
            )
        )  # fmt: skip
        try:
            async with self._clock.timeout(self._lease):
                welcome = await link.receive()
        except TimeoutError:
            link.close()
            return
        if isinstance(welcome, Refused):
            link.close()
            if welcome.code == NodeDuplicate.code:
                raise NodeDuplicate(welcome.error)
            log.warning("the coordinator refused node %s: %s", s.name, welcome.error)
            return
        if not isinstance(welcome, Welcome):
            link.close()
            return
        self._welcomed(link, welcome)
        renewing = asyncio.get_running_loop().create_task(self._renew(link), name="renew")
        try:
            while True:
                self._take(await link.receive())
        finally:
            renewing.cancel()
            self._link = None
            self.connected.clear()
            link.close()

    def _welcomed(self, link: Link, welcome: Welcome) -> None:
        self._link = link
        self._pause = FIRST_PAUSE
        self._lease = welcome.lease_seconds
        self._heard = self._clock.monotonic()
        self._seen = 0
        self._last_credit = None
        for hold in welcome.lost:
            self.executor.lose(hold)
        for attempt in self.executor.attempts.values():
            attempt.repeat()
        if self.executor.reports:
            self._send(Done(self.executor.reports))
        self._credit()
        self.connected.set()

    def _take(self, frame: Frame) -> None:
        self._heard = self._clock.monotonic()
        if isinstance(frame, Assign):
            self._seen = frame.number
            for assignment in frame.tasks:
                self.executor.take(assignment)
        elif isinstance(frame, DoneAck):
            for attempt in (*frame.attempts, *frame.stale):
                self.executor.acknowledged(attempt)
        elif isinstance(frame, LogKept):
            attempt_of = self.executor.attempts.get(frame.attempt)
            if attempt_of is not None:
                attempt_of.kept(frame)
        elif isinstance(frame, Renewed):
            for hold in frame.lost:
                self.executor.lose(hold)
        elif isinstance(frame, Cancel):
            for hold in frame.holds:
                self.executor.lose(hold)
        elif isinstance(frame, Input):
            reading = self.executor.attempts.get(frame.attempt)
            if reading is not None:
                reading.take_input(frame)
        elif isinstance(frame, Drain):
            self._draining = frame.on
            self._credit()

    async def _renew(self, link: Link) -> None:
        """Keep what we hold, a third of the lease apart; say again what was not acknowledged; notice a dead link."""
        while True:
            link.send(Renew(self.executor.holds))
            await self._clock.sleep(self._lease / 3)
            # Two answers are missing: half open. Given up early enough to renew on a new connection before others are
            # given what we hold.
            if self._clock.monotonic() - self._heard > self._lease / 2:
                link.close()
                return
            if self.executor.reports:
                self._send(Done(self.executor.reports))

    def _ended(self, report: Report | None) -> None:
        if report is not None:
            self._send(Done([report]))
        self._credit()

    def _credit(self) -> None:
        credit = Credit(0 if self._draining or self._stopping else self.executor.free, self._seen)
        if credit != self._last_credit:
            self._last_credit = credit
            self._send(credit)

    def _send(self, frame: Frame) -> None:
        if self._link is not None:
            self._link.send(frame)
