"""The guardian: outlives its node and ends everything the node started, also after `kill -9`.

`SystemProcesses` runs this file as a script, once per node, and holds the other end of its standard input. As long as
that pipe is open the guardian only notes which groups run; when it ends, the node is gone, and what is left of its
programs is killed. The node ends its own programs by the same `end`. Standard library only: it has to start fast, and
to work when nothing else does.
"""

import os
import select
import signal
import sys
import time  # noqa: TID251 - a process of its own, outside every simulation
from collections.abc import Callable, Iterable

LINUX = sys.platform == "linux"
BOOT = "RETINUE_BOOT"
PATIENCE = 10.0  # seconds for processes to die of SIGKILL; only one stuck in the kernel takes that long
_BATCH = 0.05  # the node tells of hundreds of programs a second: one wake-up for many of them
_CALM = 3  # empty looks in a row before "nothing is left" is believed

# Parent, group and session of a process.
Kin = tuple[int, int, int]


def processes() -> dict[int, Kin]:
    """Every living process of this machine and its kin; zombies are left out, they hold nothing any more."""
    if not LINUX:
        return _listed()
    found: dict[int, Kin] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                # The command's name comes second, in brackets, and may itself hold brackets and blanks.
                state, parent, group, session = read(f"/proc/{name}/stat").rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue  # it ended meanwhile
            if state not in b"ZX":
                found[int(name)] = (int(parent), int(group), int(session))
    return found


def marked(marker: str, pids: Iterable[int]) -> set[int]:
    """Which of these were started with `marker` (`NAME=value`) in their environment, as far as one may look."""
    if not LINUX:
        return _listed_with(marker) & set(pids)
    wanted = b"\0" + os.fsencode(marker) + b"\0"
    found = set()
    for pid in pids:
        try:
            if wanted in b"\0" + read(f"/proc/{pid}/environ") + b"\0":
                found.add(pid)
        except OSError:
            continue  # another user's, or it ended meanwhile
    return found


def read(path: str) -> bytes:
    """All of a file in /proc, without the cost of a file object."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while piece := os.read(file, 1 << 16):
            data += piece
        return data
    finally:
        os.close(file)


def _ps(*options: str) -> list[bytes]:
    import subprocess  # noqa: TID251 - where there is no /proc

    return subprocess.run(["ps", *options], stdout=subprocess.PIPE, check=False).stdout.splitlines()


def _listed() -> dict[int, Kin]:
    found: dict[int, Kin] = {}
    for line in _ps("-axo", "pid=,ppid=,pgid=,stat="):
        try:
            pid, parent, group = map(int, line.split()[:3])
            if b"Z" not in line.split()[3]:
                found[pid] = (parent, group, os.getsid(pid))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _listed_with(marker: str) -> set[int]:
    wanted = b" " + os.fsencode(marker) + b" "
    return {int(line.split()[0]) for line in _ps("axeww", "-o", "pid=,command=") if wanted in line + b" "}


def grown(table: dict[int, Kin], roots: set[int]) -> set[int]:
    """The living ones of `roots` with all that descends from them."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [pid for pid in roots if pid in table]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def end(family: Callable[[], set[int]]) -> tuple[set[int], set[int]]:
    """Kill every process that `family` names, until it names none: (the killed, those that could not be ended).

    All are stopped before one is killed: a killed parent would cut the branch its children are found by, and what is
    stopped can neither fork away from the next look nor leave its number to a stranger.
    """
    stopped: set[int] = set()
    killed: set[int] = set()
    refused: set[int] = set()
    pause = 0.0005
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = family() - refused
        _signal(stopped - found - killed, signal.SIGCONT)  # not ours after all
        new = found - stopped
        stopped = found
        if new:
            refused |= _signal(new, signal.SIGSTOP)
            continue
        if not found:
            return killed, refused & set(processes())
        _signal(found, signal.SIGKILL)
        killed |= found
        time.sleep(pause)
        pause = min(0.05, pause * 2)
    return killed, (stopped | refused) & set(processes())


def _signal(pids: set[int], number: int) -> set[int]:
    """Send it; returns those that may not be signalled, such as a program that became another user's."""
    refused = set()
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            refused.add(pid)
    return refused


def _follow(node: int) -> set[int]:
    """Note what the node tells until it is gone; returns the groups that run then.

    A fork of the node (not of ours: of a library) may hold the pipe open longer than the node lives, so where the
    system can tell that the node itself has ended, that counts too.
    """
    groups: set[int] = set()
    text = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if hasattr(os, "pidfd_open"):
        try:
            poll.register(os.pidfd_open(node), select.POLLIN)
        except OSError:
            os.set_blocking(0, False)
    while True:
        if any(ready != 0 for ready, _ in poll.poll()) or os.getppid() != node:
            os.set_blocking(0, False)
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return groups
        if not data:
            return groups
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            if line.startswith(b"+"):
                groups.add(int(line[1:].split()[0]))
            else:
                groups.discard(int(line[1:]))
        if os.get_blocking(0):
            time.sleep(_BATCH)


def main(node: int, boot: str) -> None:
    """Watch until the node is gone, then leave nothing of it behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = _follow(node)
    me = os.getpid()

    def family() -> set[int]:
        table = processes()
        table.pop(me, None)
        told = {pid for pid, (_, group, session) in table.items() if group in groups or session in groups}
        return grown(table, told | marked(f"{BOOT}={boot}", table))

    calm = 0
    for _ in range(20):
        killed, left = end(family)
        calm = 0 if killed or left else calm + 1
        if calm == _CALM:
            return
        time.sleep(_BATCH)  # a program that was just being started shows its mark only after its exec


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
