"""The guardian as its node sees it: told of every program, and started again when somebody ended it."""

import logging
import os
import subprocess  # noqa: TID251 - this is the port
import sys
from typing import Final

from retinue.node import guardian
from retinue.node.runners.children import CHILDREN

log = logging.getLogger(__name__)

_MOST_UNSENT: Final = 1 << 20
_MOST_GUARDIANS: Final = 5


class Guard:
    """The guardian as its node sees it: told of every program, started again when somebody ended it."""

    def __init__(self, boot_id: str) -> None:
        self._boot = boot_id
        self._groups: dict[int, str] = {}
        self._unsent = bytearray()
        self._pipe: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._begin()

    def started(self, group: int, attempt: str) -> None:
        self._groups[group] = attempt
        self._tell(f"+{group} {attempt}\n")

    def ended(self, group: int) -> None:
        self._groups.pop(group, None)
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Close the pipe, which is all it waits for, and see it end. Blocks."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            try:
                self._process.wait(2 * guardian.PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            CHILDREN.own.discard(self._process.pid)
            self._process = None

    def _begin(self) -> None:
        self._starts += 1
        their, mine = os.pipe()
        # Nothing of the node's environment, but where Python finds its own library.
        env = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
        argv = [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), self._boot]
        nowhere = subprocess.DEVNULL
        try:
            self._process = CHILDREN.popen(0, argv, stdin=their, stdout=nowhere, stderr=nowhere, cwd="/", env=env)
        except OSError:
            os.close(mine)
            log.exception("no guardian: programs of this node would outlive it if it was killed with SIGKILL")
        else:
            os.set_blocking(mine, False)
            self._pipe = mine
        finally:
            os.close(their)

    def _tell(self, line: str) -> None:
        if self._pipe is None:
            return
        self._unsent += line.encode()
        try:
            while self._unsent:
                del self._unsent[: os.write(self._pipe, self._unsent)]
        except BlockingIOError:
            # It is slower than we are: told with the next line. Meanwhile the boot id in their environment is enough.
            if len(self._unsent) > _MOST_UNSENT:
                self._begin_again()
        except BrokenPipeError:
            self._begin_again()

    def _begin_again(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.close()
        if self._starts >= _MOST_GUARDIANS:
            log.error("the guardian ended %s times; this node goes on without", self._starts)
            return
        log.warning("the guardian of this node was ended; another one is started")
        self._unsent.clear()
        self._begin()
        self._tell("".join(f"+{group} {attempt}\n" for group, attempt in self._groups.items()))
