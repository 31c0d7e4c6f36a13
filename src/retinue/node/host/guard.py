"""A host process ends with its node, whatever its functions do."""

import fcntl
import os
import select
import signal
import threading  # noqa: TID251 - a host process is outside of what is simulated
from collections.abc import Callable

BEAT_SECONDS = 1.0
_beats: list[Callable[[], None]] = []


def stand(life: int) -> None:
    """Kill this host's whole process group once the node has closed the other end of `life`, also by its death."""
    os.set_inheritable(life, False)
    if hasattr(fcntl, "F_SETSIG"):
        # Linux: the kernel does it, even while a function computes in C and lets no thread run.
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_watch, args=(life,), name="retinue-guard", daemon=True).start()


def each_beat(beat: Callable[[], None]) -> None:
    """Have this called each second, in a thread of its own."""
    _beats.append(beat)


def end() -> None:
    """End this host and all that its functions have started in its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _watch(life: int) -> None:
    poll = select.poll()
    poll.register(life, select.POLLIN | select.POLLHUP)
    while not poll.poll(BEAT_SECONDS * 1000):
        try:
            for beat in _beats:
                beat()
        except OSError:
            break  # the node is gone
    end()
