"""The system's processes: start a program in a session of its own, stream its output, leave nothing of it behind."""

import asyncio
import ctypes
import errno
import fcntl
import logging
import os
import select
import shutil
import signal
import struct
import subprocess  # noqa: TID251 - this is the port
import sys
import termios
import threading  # noqa: TID251 - this is the port
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from retinue.errors import CommandNotFound
from retinue.node import guardian
from retinue.node.processes import Launch, Running

log = logging.getLogger(__name__)

CHUNK: Final = 64 * 1024
_IN_A_ROW: Final = 4  # chunks read of a flooding program before everybody else gets a turn
_LOOK_SECONDS: Final = 1.0
_MOST_UNSENT: Final = 1 << 20
_MOST_GUARDIANS: Final = 5

# The node, not the command, lacks something: worth another try, here later or elsewhere now.
_EXHAUSTED: Final = frozenset(
    {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO}
)

# prctl(2)
_SET_TIMERSLACK: Final = 29
_SET_CHILD_SUBREAPER: Final = 36
_GET_CHILD_SUBREAPER: Final = 37


class _Children:
    """The children of this process: programs it started, and orphans of those, which the kernel hands to it on Linux.

    Being the child subreaper, this process becomes the parent of whatever a program left behind, daemons with sessions
    of their own included, so one short file (`children`) tells whether anything was left, where a look through all of
    /proc would cost milliseconds per program. To know whose orphan it is, each program is started with a timer slack
    of its own (50 µs, the default, and a few ns): it is inherited across fork and exec, whatever becomes of session
    and environment, and can still be read of a zombie. Children without such a mark belong to other code of this
    process and are never touched, let alone waited for: their exit codes are not ours to take.
    """

    _SLACK: Final = 50_000
    _MARKS: Final = 9_999

    def __init__(self) -> None:
        self.own: set[int] = set()  # started by us and not waited for yet
        self.marks: set[int] = set()  # in use
        self.lock = threading.Lock()  # a program may end before `Popen` has returned in another loop's thread
        self._users = 0
        self._was_subreaper = ctypes.c_int()
        self._last = 0
        self._prctl: Callable[..., int] | None = ctypes.CDLL(None).prctl if guardian.LINUX else None
        self.adopts = False

    def adopt(self) -> None:
        """Begin to take orphans in; counted, so that each `release` takes one back."""
        self._users += 1
        if self._users == 1 and self._prctl is not None:
            self._prctl(_GET_CHILD_SUBREAPER, ctypes.byref(self._was_subreaper), 0, 0, 0)
            listed = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
            self.adopts = self._prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0 and listed

    def release(self) -> None:
        """After the last one orphans go where they went before."""
        self._users -= 1
        if self._users == 0 and self._prctl is not None and not self._was_subreaper.value:
            self._prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def mark(self) -> int:
        """A mark for a program about to be started, free again after `marks.discard`."""
        for _ in range(self._MARKS):
            self._last = self._last % self._MARKS + 1
            if self._last not in self.marks:
                self.marks.add(self._last)
                break
        return self._last

    def popen(self, mark: int, argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start a child that carries a mark (0: none)."""
        with self.lock:
            try:
                if mark and self._prctl is not None:
                    self._prctl(_SET_TIMERSLACK, self._SLACK + mark, 0, 0, 0)
                child: subprocess.Popen[bytes] = subprocess.Popen(argv, start_new_session=True, **options)  # type: ignore[call-overload]
            finally:
                if mark and self._prctl is not None:
                    self._prctl(_SET_TIMERSLACK, 0, 0, 0, 0)  # 0 = what this thread began with
            self.own.add(child.pid)
            return child

    def mark_of(self, pid: int) -> int | None:
        """The mark a process inherited; None when it has none of ours, or may not be asked."""
        try:
            mark = int(guardian.read(f"/proc/{pid}/timerslack_ns")) - self._SLACK
        except (OSError, ValueError):
            return None
        return mark if 0 < mark <= self._MARKS else None

    def orphans(self) -> dict[int, int]:
        """Living orphans of our programs and their marks; those that have ended are reaped on the way."""
        alive: dict[int, int] = {}
        if not self.adopts:
            return alive
        me = os.getpid()
        with self.lock:
            try:
                pids = {int(pid) for pid in guardian.read(f"/proc/self/task/{me}/children").split()} - self.own
            except OSError:
                return alive
            for pid in pids:
                mark = self.mark_of(pid)
                if mark is not None and not self.reap(pid):
                    alive[pid] = mark
        return alive

    def reap(self, pid: int) -> bool:
        """Wait for one child that has ended; False when it has not, or is nobody's or another's."""
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return False


CHILDREN: Final = _Children()  # one, as the kernel keeps one list of children for the whole process


class SystemProcesses:
    """`Processes` of this machine. Call `close` at the end.

    Every program gets `RETINUE_BOOT` with this node's boot id into its environment, besides what `Launch.env` holds,
    so that the guardian recognizes it; `Launch.env["RETINUE_ATTEMPT"]`, where present, is how `kill` recognizes what
    belongs to the program, so no two programs may share one at a time.

    `start` also raises `OSError` when the node is out of processes, descriptors, memory or disk.
    """

    def __init__(self, boot_id: str) -> None:
        self._boot = boot_id
        self._running: set[_Program] = set()
        self._guardian: _Guardian | None = None
        self._look: asyncio.TimerHandle | None = None

    def guard(self) -> "_Guardian":
        """Start the guardian, once; `start` does. For a node that starts other things marked with its boot id first."""
        if self._guardian is None:
            CHILDREN.adopt()
            self._guardian = _Guardian(self._boot)
        return self._guardian

    async def start(self, launch: Launch) -> Running:
        loop = asyncio.get_running_loop()
        guard = self.guard()
        try:
            launch.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(launch, error) from error
        attempt = launch.env.get("RETINUE_ATTEMPT")
        program = _Program(loop, launch, {**launch.env, guardian.BOOT: self._boot}, attempt, self._ended)
        self._running.add(program)
        guard.started(program.pid, attempt or "-")
        if self._look is None:
            self._look = loop.call_later(_LOOK_SECONDS, self._look_after)
        return program

    async def discard(self, folder: Path) -> None:
        try:
            os.rmdir(folder)  # most commands leave it empty, which needs no thread
        except FileNotFoundError:
            pass
        except OSError:
            await asyncio.get_running_loop().run_in_executor(None, _remove, folder)

    async def close(self) -> None:
        """End whatever still runs, and the guardian."""
        for program in list(self._running):
            await program.kill()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._guardian is not None:
            CHILDREN.orphans()
            guard, self._guardian = self._guardian, None
            await asyncio.get_running_loop().run_in_executor(None, guard.close)
            CHILDREN.release()

    def _ended(self, program: "_Program") -> None:
        self._running.discard(program)
        if self._guardian is not None:
            self._guardian.ended(program.pid)

    def _look_after(self) -> None:
        """While programs run, reap orphans of theirs that have ended, and end those whose program is gone."""
        orphans = CHILDREN.orphans()
        for pid, mark in orphans.items():
            if mark not in CHILDREN.marks:
                try:
                    os.kill(pid, signal.SIGKILL)  # a child not waited for: its number cannot be another's
                except PermissionError:
                    continue
        again = bool(orphans or self._running)
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_after) if again else None


class _Program:
    """A started program (`Running`). `kill` has to be called in every case: it frees what the program took here.

    Not asyncio's own subprocesses: those start a thread for each one before Python 3.12, report the end only once the
    pipes have ended too (a daemon may hold them open for ever), and read ahead of their consumer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launch: Launch,
        env: dict[str, str],
        attempt: str | None,
        ended: "Callable[[_Program], None]",
    ) -> None:
        self._loop = loop
        self._marker = f"RETINUE_ATTEMPT={attempt}" if attempt else None
        self._ended = ended
        self._end: asyncio.Task[None] | None = None
        self._mark = CHILDREN.mark()
        self._outputs: dict[int, str] = {}
        self._rest: deque[tuple[str, bytes]] = deque()  # what stood in the pipes when everything was over
        self._in_a_row = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._stdin: int | None = None
        theirs: list[int] = []
        try:
            for stream in ("stdout", "stderr"):
                mine, their = os.pipe()
                os.set_blocking(mine, False)
                self._outputs[mine] = stream
                theirs.append(their)
            if launch.stdin:
                their, self._stdin = os.pipe()
                os.set_blocking(self._stdin, False)
                theirs.append(their)
            self._popen = CHILDREN.popen(
                self._mark,
                list(launch.argv),
                stdin=theirs[2] if launch.stdin else subprocess.DEVNULL,
                stdout=theirs[0],
                stderr=theirs[1],
                cwd=launch.folder,
                env=env,
            )
        except BaseException as error:
            self._free()
            if isinstance(error, OSError | ValueError):
                raise _refused(launch, error) from error
            raise
        finally:
            for file in theirs:
                os.close(file)
        self.pid = self._popen.pid
        self._group: int | None = self.pid
        self._reaped = False
        self._exit: asyncio.Future[int] = loop.create_future()
        self._watch()

    # ------------------------------------------------------------------ its end

    def _watch(self) -> None:
        """Have `_exit` set when it ends, by the kernel's own word where that can be had, else by a thread."""
        try:
            exit_file = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._await_exit, daemon=True).start()
        else:
            self._loop.add_reader(exit_file, self._on_exit, exit_file)

    def _on_exit(self, exit_file: int) -> None:
        self._loop.remove_reader(exit_file)
        os.close(exit_file)
        self._set_exit(self._exit_code())

    def _await_exit(self) -> None:
        code = self._exit_code()
        try:
            self._loop.call_soon_threadsafe(self._set_exit, code)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _exit_code(self) -> int:
        try:
            if hasattr(os, "waitid"):
                # Not waited for yet: as long as it is a zombie, neither its number nor its group's can be another's.
                if (how := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)) is not None:
                    return how.si_status if how.si_code == os.CLD_EXITED else -how.si_status
            else:
                _, status = os.waitpid(self.pid, 0)
                self._reaped = True
                return os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            log.exception("another part of this process took the exit code of process %s", self.pid)
        return 255

    def _set_exit(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    def terminate(self) -> None:
        if self._group is not None and not self._reaped:
            try:
                os.killpg(self._group, signal.SIGTERM)
            except (ProcessLookupError, PermissionError):
                pass

    async def kill(self) -> None:
        # A task of its own: whoever calls may be cancelled, and the work is still done, once.
        if self._end is None:
            self._end = self._loop.create_task(self._leave_nothing())
        await asyncio.shield(self._end)

    async def _leave_nothing(self) -> None:
        left: set[int] = set()
        try:
            stopped = not self._exit.done()
            if stopped:
                left = await self._end_family()
            if self.pid not in left:
                await self._exit
                self._reap()
            if not stopped and self._left_something():
                left = await self._end_family()
        finally:
            if left:
                log.error("processes %s do not end though they were killed", sorted(left), extra={"pids": sorted(left)})
            self._keep_rest()
            self._free()
            self._ended(self)

    def _reap(self) -> None:
        with CHILDREN.lock:
            CHILDREN.reap(self.pid)
            CHILDREN.own.discard(self.pid)
        self._reaped = True
        self._popen.returncode = self._exit.result()  # `Popen` would warn of a child nobody waited for

    def _left_something(self) -> bool:
        """Whether there is any sign of processes left by a program that ended by itself; costs microseconds.

        Looking through all processes takes milliseconds, which hundreds of short commands a second cannot pay, so
        that is done for a reason only. Where orphans are not handed to us (not Linux), there is no way to know.
        """
        if not CHILDREN.adopts or self._mark in CHILDREN.orphans().values():
            return True
        poll = select.poll()
        for file in self._outputs:
            poll.register(file, 0)
        if sum(1 for _, events in poll.poll(0) if events & select.POLLHUP) < len(self._outputs):
            return True  # somebody holds the other end of its output
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            self._group = None
            return False
        except PermissionError:
            pass
        return True

    async def _end_family(self) -> set[int]:
        """Kill all that grew out of it, in a thread; returns those that could not be ended."""
        killed, left = await self._loop.run_in_executor(None, guardian.end, self._family)
        for pid in killed - CHILDREN.own:
            CHILDREN.reap(pid)
        return left

    def _family(self) -> set[int]:
        table = guardian.processes()
        me = os.getpid()
        table.pop(me, None)
        in_group = {pid for pid, (_, group, session) in table.items() if self._group in (group, session)}
        if not in_group and self._reaped:
            self._group = None  # the number is free for others now
        orphans = {pid for pid, (parent, _, _) in table.items() if parent == me and CHILDREN.mark_of(pid) == self._mark}
        by_name = guardian.marked(self._marker, table) if self._marker else set()
        return guardian.grown(table, in_group | orphans | by_name)

    # ------------------------------------------------------------------ its output

    async def read(self) -> tuple[str, bytes] | None:
        while True:
            for file, stream in list(self._outputs.items()):
                data = self._take(file, CHUNK)
                if data:
                    # The other stream is first next time, and the rest of the node has its turn between.
                    if file in self._outputs:
                        self._outputs[file] = self._outputs.pop(file)
                    self._in_a_row += 1
                    if self._in_a_row >= _IN_A_ROW:
                        self._in_a_row = 0
                        await asyncio.sleep(0)  # noqa: TID251 - yields, does not wait
                    return stream, data
            if self._rest:
                return self._rest.popleft()
            if not self._outputs:
                return None
            self._in_a_row = 0
            await self._readable()

    def _take(self, file: int, most: int) -> bytes | None:
        """What stands in a pipe; None when nothing does, or when it has ended and was closed."""
        try:
            data = os.read(file, most)
        except BlockingIOError:
            return None
        if not data:
            self._close_output(file)
        return data or None

    def _close_output(self, file: int) -> None:
        del self._outputs[file]
        self._loop.remove_reader(file)
        os.close(file)

    async def _readable(self) -> None:
        self._reader = self._loop.create_future()
        files = list(self._outputs)
        for file in files:
            self._loop.add_reader(file, _wake, self._reader)
        try:
            await self._reader
        finally:
            self._reader = None
            for file in files:
                if file in self._outputs:
                    self._loop.remove_reader(file)

    def _keep_rest(self) -> None:
        """Take what is still in the pipes, and no more: whoever could not be killed does not keep the attempt open."""
        for file, stream in list(self._outputs.items()):
            waiting: int = struct.unpack("i", fcntl.ioctl(file, termios.FIONREAD, b"\0" * 4))[0]
            while waiting > 0 and (data := self._take(file, min(waiting, CHUNK))):
                self._rest.append((stream, data))
                waiting -= len(data)

    def _free(self) -> None:
        CHILDREN.marks.discard(self._mark)
        for file in list(self._outputs):
            self._close_output(file)
        if self._reader is not None:
            _wake(self._reader)
        self._close_stdin()

    # ------------------------------------------------------------------ its input

    async def write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view and (file := self._stdin) is not None:
            try:
                view = view[os.write(file, view[:CHUNK]) :]
            except BlockingIOError:
                await self._writable(file)
            except OSError:
                self._close_stdin()
        return self._stdin is not None

    async def end_input(self) -> None:
        self._close_stdin()

    async def _writable(self, file: int) -> None:
        self._writer = self._loop.create_future()
        self._loop.add_writer(file, _wake, self._writer)
        try:
            await self._writer
        finally:
            self._writer = None
            if self._stdin == file:
                self._loop.remove_writer(file)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            if self._writer is not None:
                self._loop.remove_writer(self._stdin)
                _wake(self._writer)
            os.close(self._stdin)
            self._stdin = None


class _Guardian:
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


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _refused(launch: Launch, error: OSError | ValueError) -> Exception:
    """Why a program cannot be started, as a sentence that says what to do."""
    name = launch.argv[0]
    if isinstance(error, ValueError):
        return CommandNotFound(
            f"{name}: an argument or variable holds a character that no program can be given; leave it out."
        )
    number = error.errno
    if number in _EXHAUSTED:
        return error
    if error.filename is not None and Path(os.fsdecode(error.filename)) != Path(name):
        what = f"The work folder cannot be used ({error.strerror}: {error.filename}); check the node's data directory."
    elif number == errno.ENOENT and "/" in name:
        what = f"{name}: there is no such program on this node; check the path, or the interpreter in its first line."
    elif number == errno.ENOENT:
        what = f"{name}: no such program on this node's PATH; install it there, or give its full path."
    elif number in (errno.EACCES, errno.EPERM) and Path(launch.folder, name).is_dir():
        what = f"{name} is a folder; name a program in it."
    elif number in (errno.EACCES, errno.EPERM):
        what = f"{name} may not be executed on this node; make it executable (chmod +x)."
    elif number == errno.ENOEXEC:
        what = (
            f"{name} is no program this node can run; give it a first line such as #!/bin/sh, or name its interpreter."
        )
    elif number == errno.E2BIG:
        what = (
            f"{name}: its arguments and environment are too long for this system; hand them over in a file or on stdin."
        )
    else:
        what = f"{name} could not be started: {error.strerror}."
    return CommandNotFound(what)


def _remove(folder: Path) -> None:
    """Remove a tree, whatever a command made of it; links are removed, not followed."""
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder)
    except (OSError, RecursionError):
        # Folders without write permission (Go's module cache), or deeper than Python can go.
        if not folder.is_symlink():
            for argv in (["chmod", "-R", "u+rwx", "--", str(folder)], ["rm", "-rf", "--", str(folder)]):
                subprocess.run(
                    argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
                )
        if folder.exists():
            log.warning("the work folder %s could not be removed; remove it by hand", folder)
