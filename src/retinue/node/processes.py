"""Processes as a port: start a program in a group of its own, stream its output, end everything it left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `folder` is made if it is missing. argv only, never a shell.

    `env` is the whole environment, but for marks that an implementation may add to find again what it started.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    stdin: bool = False  # a pipe; otherwise /dev/null


class Running(Protocol):
    """A started program and everything that grows out of it. Call `kill` in every case, also after `wait`."""

    pid: int

    async def read(self) -> tuple[str, bytes] | None:
        """The next output as (`stdout` or `stderr`, ≤ 64 KiB); None once both have ended or were closed."""

    async def write(self, data: bytes) -> bool:
        """Give it standard input, waiting while it does not read; False once it has closed its end."""

    async def end_input(self) -> None:
        """Close its standard input."""

    async def wait(self) -> int:
        """Its exit code once the program itself has ended; -N when signal N ended it."""

    def terminate(self) -> None:
        """Ask the whole group to end (SIGTERM); no error when it is gone."""

    async def kill(self) -> None:
        """End the program and every descendant at once (SIGKILL); returns when none is left.

        Only this frees what the program took here, its exit code and descriptors, and ends what it left behind when it
        ended by itself. What it had written can still be read afterwards.
        """


class Processes(Protocol):
    """Starts programs. The system's is `node/runners/system.py`; the simulator's are scripted."""

    async def start(self, launch: Launch) -> Running:
        """Start a program.

        Raises:
            CommandNotFound: there is no such program, or it may not be executed, or its folder cannot be used.
            OSError: the node is out of processes, descriptors, memory or disk just now; another try may succeed.
        """

    async def discard(self, folder: Path) -> None:
        """Remove a folder that `start` made, with all that is in it."""

    async def close(self) -> None:
        """End whatever still runs and give back what the implementation keeps beside it; nothing is started after."""
