"""`retinue run --each`: the command once per line, as many at once as there are workers, no line of output torn."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from retinue.cli.foreground import document, refuse_hopeless, tied
from retinue.cli.front import Front
from retinue.cli.stdio import Out, Progress
from retinue.cli.text import plain, shown_command

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.embedded import Embedded
    from retinue.events.model import Event
    from retinue.tasks.model import Task, TaskSpec

BATCH: Final = 1000
LONGEST_LINE: Final = 1 << 20  # bytes kept back to write a line in one piece
FIRST_TROUBLES: Final = 10  # failures that get a line of their own
SLOT: Final = "{}"
ENDINGS: Final = ("task.completed", "task.failed", "task.cancelled")


def run_each(front: Front, spec: "TaskSpec", source: str) -> int:
    """Run it for every line: 0 when all went well, else 1."""
    lines = read_lines(source)
    if not lines:
        return 0
    specs = list(per_line(spec, lines.values()))
    return front.serve("own", lambda embedded, fleet: Each(front, embedded, fleet, lines, specs).run())


def read_lines(source: str) -> dict[int, str]:
    """The lines of a file, or of standard input, by their numbers; empty ones are passed over.

    Raises:
        Invalid: it cannot be read.
    """
    import os
    import sys

    from retinue.errors import Invalid

    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise Invalid(f"--each {source}: it cannot be read: {error.strerror}.") from None
    numbered = enumerate(data.split(b"\n"), 1)
    return {number: os.fsdecode(line.removesuffix(b"\r")) for number, line in numbered if line.strip()}


def per_line(spec: "TaskSpec", lines: Iterable[str]) -> "Iterator[TaskSpec]":
    """The spec with `{}` replaced in every argument; with the line as a last one where no argument has it."""
    from msgspec.structs import replace

    command = spec.command or []
    if not any(SLOT in argument for argument in command):
        command = [*command, SLOT]
    for line in lines:
        yield replace(spec, command=[argument.replace(SLOT, line) for argument in command])


class Each:
    """All lines of one call."""

    def __init__(
        self,
        front: Front,
        embedded: "Embedded",
        fleet: "Fleet",
        lines: Mapping[int, str],
        specs: "Sequence[TaskSpec]",
    ) -> None:
        self._front = front
        self._embedded = embedded
        self._fleet = fleet
        self._lines = list(lines.items())
        self._specs = specs
        self._line_of: dict[str, int] = {}
        self._early: list[Event] = []  # of tasks whose ids we are still waiting for
        self._shown: dict[str, asyncio.Task[None]] = {}
        self._output: dict[str, dict[str, bytearray]] = {}
        self._ended: Counter[bool] = Counter()
        self._failed: list[int] = []
        self._out = Out()
        self._speaking = asyncio.Lock()
        self._progress = Progress(quiet=front.quiet)
        self._finished = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit code, after every line has been dealt with."""
        since = await self._fleet.transport.call("GET", "/events/last", dict)
        jobs = [asyncio.create_task(self._submit()), asyncio.create_task(self._follow(since["position"]))]
        finished = asyncio.create_task(self._finished.wait())
        self._tell()
        try:
            waiting: set[asyncio.Task[Any]] = {finished, *jobs}
            while not finished.done():
                done, waiting = await asyncio.wait({*waiting, *self._ending}, return_when=asyncio.FIRST_COMPLETED)
                for job in done:
                    job.result()
                    self._ending.discard(job)
                    waiting.discard(job)
        finally:
            for job in [*jobs, finished, *self._ending, *self._shown.values()]:
                job.cancel()
            self._progress.end()
        self._sum_up()
        return 1 if self._failed else 0

    async def _submit(self) -> None:
        for begin in range(0, len(self._specs), BATCH):
            batch = [await tied(self._embedded, self._fleet, spec) for spec in self._specs[begin : begin + BATCH]]
            ids = await self._fleet.tasks.submit_many(batch)
            self._line_of.update((task, begin + place) for place, task in enumerate(ids))
            if begin == 0:
                await refuse_hopeless(self._fleet, await self._fleet.tasks.get(ids[0]))
            early, self._early = self._early, []
            for event in early:
                self._take(event)

    async def _follow(self, after: int) -> None:
        async for event in self._fleet.events.stream(after=after, types=["task.started", *ENDINGS]):
            self._take(event)

    def _take(self, event: "Event") -> None:
        task = event.correlation_id
        if task not in self._line_of:
            self._early.append(event)
            return
        if task not in self._shown and (event.type == "task.started" or event.type in ENDINGS):
            self._shown[task] = asyncio.create_task(self._show(task), name=task)
            self._tell()
        if event.type in ENDINGS:
            self._ending.add(asyncio.create_task(self._end(task, event.type == "task.completed")))

    async def _show(self, task: str) -> None:
        """Write its output, whole lines at a time."""
        held: dict[str, bytearray] = {}
        attempt: str | None = None
        async for piece in self._fleet.tasks.log(task, follow=True):
            if self._front.json:
                kept = self._output.setdefault(task, {})
                if attempt != piece.attempt:
                    kept.clear()
                kept.setdefault(piece.stream, bytearray()).extend(piece.base64)
            else:
                line = held.setdefault(piece.stream, bytearray())
                line += piece.base64
                whole = len(line) if len(line) > LONGEST_LINE else line.rfind(b"\n") + 1
                if whole:
                    await self._write(piece.stream, bytes(line[:whole]))
                    del line[:whole]
            attempt = piece.attempt
        for stream, line in held.items():
            if line:
                await self._write(stream, bytes(line) + b"\n")

    async def _write(self, stream: str, data: bytes) -> None:
        async with self._speaking:
            self._progress.hide()
            await self._out.write(stream, data)
            self._progress.back(data)

    async def _end(self, task: str, good: bool) -> None:
        """Count it, once its output is out."""
        await self._shown.pop(task)
        place = self._line_of[task]
        self._ended[good] += 1
        if not good:
            self._failed.append(place)
        if self._front.json:
            ended = await self._fleet.tasks.get(task)
            number, line = self._lines[place]
            said = document(ended, self._output.pop(task, {})) | {"line": line, "line_number": number}
            await self._write("stdout", _encoded(said))
        elif not good and len(self._failed) <= FIRST_TROUBLES:
            await self._complain(await self._fleet.tasks.get(task))
        self._tell()
        if self._ended.total() == len(self._specs):
            self._finished.set()

    async def _complain(self, ended: "Task") -> None:
        if self._front.quiet:
            return
        told = f"retinue: {shown_command(ended.command or [])}: {plain(ended.error or ended.status)}\n"
        await self._write("stderr", told.encode("utf-8", "replace"))

    def _tell(self) -> None:
        done, failed, running = self._ended.total(), len(self._failed), len(self._shown)
        trouble = f", {failed} failed" if failed else ""
        self._progress.show(f"{done}/{len(self._specs)} done{trouble}, {running} running")

    def _sum_up(self) -> None:
        if self._failed:
            first = ", ".join(str(self._lines[place][0]) for place in sorted(self._failed)[:FIRST_TROUBLES])
            more = ", …" if len(self._failed) > FIRST_TROUBLES else ""
            which = "line" if len(self._failed) == 1 else "lines"
            self._front.note(f"{len(self._failed)} of {len(self._specs)} failed: {which} {first}{more}.")


def _encoded(said: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(said) + b"\n"
