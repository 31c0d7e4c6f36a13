"""The runner contract: take an assignment to its end, whatever the program does."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from retinue.client.frames import Assignment
from retinue.tasks.model import Ending, Progress


class AttemptIO(Protocol):
    """What a running attempt may do to the outside; the executor gives one to each."""

    def started(self) -> None:
        """Say that the program really runs. From here on the attempt counts."""

    async def output(self, stream: str, data: bytes) -> None:
        """Hand over output; waits while the link is slower than the program."""

    async def input(self) -> bytes:
        """The next piece of standard input; empty at its end."""

    def progress(self, progress: Progress) -> None:
        """Tell how far it is."""


class Runner(Protocol):
    """Runs one kind of attempt. Cancelling the call of `run` ends everything the attempt started before it returns."""

    async def run(self, assignment: Assignment, io: AttemptIO) -> Ending:
        """Run it to its end. Never raises for what the program does: a failure is an `Ending` too."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What runners need to know of their node."""

    name: str
    folder: Path  # work/ below the node's data directory
    environment: dict[str, str] = field(default_factory=dict)
