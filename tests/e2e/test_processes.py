"""Commands as real processes: whatever they do, they are told truthfully, and nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from random import SystemRandom

import psutil
import pytest

from retinue.client.frames import Assignment
from retinue.clock import SystemClock
from retinue.node import guardian
from retinue.node.processes import Launch
from retinue.node.runners import process, system
from retinue.node.runners.children import CHILDREN
from retinue.node.runners.function import FunctionRunner
from retinue.node.runners.process import ProcessRunner
from retinue.node.runners.runner import NodeFacts
from retinue.node.runners.system import SystemProcesses
from retinue.tasks.model import Ending, Hold, Progress, TaskSpec

pytestmark = pytest.mark.real

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")

# A daemon as daemons are: forked twice, in a session of its own, holding nothing but `sleep`'s own pipes.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "quiet" in sys.argv:
            os.closerange(0, 100)
        os.execvpe("sleep", ["sleep", sys.argv[1]], {} if "bare" in sys.argv else os.environ)
    os._exit(0)
os.wait()
print("left behind", flush=True)
if "stay" in sys.argv:
    time.sleep(1000)
"""

# A tree 3 deep and 3 wide: each process in a group of its own, each second one in a session, all ignoring TERM.
TREE = """
import os, signal, sys, time
def grow(depth):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in range(3 if depth else 0):
        if os.fork() == 0:
            os.setsid() if number % 2 else os.setpgid(0, 0)
            grow(depth - 1)
            os.execvp("sleep", ["sleep", sys.argv[1]])
grow(3)
time.sleep(0.2)
print("grown", flush=True)
if "stay" in sys.argv:
    time.sleep(1000)
"""


# A living parent whose child shares nothing with it but being its child.
ESTRANGED = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    os.execvpe("sleep", ["sleep", sys.argv[1]], {})
print("born", flush=True)
time.sleep(1000)
"""

# Every process gives way to a child in a session of its own and with nothing in its environment: 20,000 at most.
RUNAWAY = """
import os, sys, time
if os.fork():
    print("away", flush=True)
    time.sleep(0.2)
    os._exit(0)
os.closerange(0, 100)
for _ in range(20000):
    if os.fork():
        os._exit(0)
    os.setsid()
os.execvpe("sleep", ["sleep", sys.argv[1]], {})
"""


class Outside:
    """An attempt's outside: remembers, and may hold its output back or be asked to wait for some."""

    def __init__(self, *inputs: bytes) -> None:
        self.stdout = b""
        self.stderr = b""
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self._inputs = list(inputs)

    def started(self) -> None:
        pass

    async def output(self, stream: str, data: bytes) -> None:
        assert len(data) <= 65536
        setattr(self, stream, getattr(self, stream) + data)
        self.arrived.set()
        await self.open.wait()

    async def input(self) -> bytes:
        return self._inputs.pop(0) if self._inputs else b""

    def progress(self, progress: Progress) -> None:
        raise AssertionError(progress)


class Node:
    """A node's runner over the real processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot = f"boot_{SystemRandom().getrandbits(64):x}"  # two nodes never share one, nor do tests side by side
        self.processes = SystemProcesses(self.boot)
        environment = {**os.environ, "RETINUE_TOKEN": "secret", "DATABASE_PASSWORD": "secret", "CHOSEN": "yes"}
        self.runner = ProcessRunner(self.processes, SystemClock(), NodeFacts("lab", folder, environment))
        self._attempts = 0

    async def run(self, *command: str, io: Outside | None = None, **fields: object) -> tuple[Ending, Outside]:
        self._attempts += 1
        outside = io or Outside()
        spec = TaskSpec(command=list(command), **fields)  # type: ignore[arg-type]
        attempt = f"att_{os.getpid()}_{self._attempts}"
        return await self.runner.run(Assignment(Hold("tsk_1", 4, "claim"), attempt, spec), outside), outside

    async def python(self, program: str, *arguments: str, **fields: object) -> tuple[Ending, Outside]:
        return await self.run(sys.executable, "-I", "-S", "-c", program, *arguments, **fields)  # type: ignore[arg-type]


def remove(folder: Path) -> None:
    """Also what is deeper than Python recurses, and so than pytest can remove."""
    subprocess.run(["chmod", "-R", "u+rwx", "--", folder], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", "--", folder], check=False)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    here = Node(tmp_path / "work")
    yield here
    await here.processes.close()
    left = list(here.folder.glob("*"))
    remove(here.folder)
    assert not left


@pytest.fixture
def length() -> Iterator[str]:
    """How long this test's `sleep`s sleep: a number nobody else sleeps, so they can be counted."""
    seconds = f"{SystemRandom().randint(10**6, 10**7)}"
    yield seconds
    for pid in sleepers(seconds):
        os.kill(pid, signal.SIGKILL)


def sleepers(seconds: str) -> list[int]:
    found = []
    for one in psutil.process_iter():
        try:
            # A forked process that has not called exec yet shows its parent's command line.
            if seconds in one.cmdline() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
        except psutil.Error:
            continue
    return found


def zombies() -> list[int]:
    return [one.pid for one in psutil.Process().children() if one.status() == psutil.STATUS_ZOMBIE]


def until(true: Callable[[], object], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (holds := true()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds)


def start(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


def line_of(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    with program.stdout:
        return program.stdout.readline()


def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.3)


# ---------------------------------------------------------------- output and ends


async def test_output_and_exit_code_arrive(node: Node) -> None:
    ending, outside = await node.run("sh", "-c", "echo out; echo err >&2; exit 3")

    assert (ending.ok, ending.exit_code, ending.error) == (False, 3, "The command ended with exit code 3.")
    assert (outside.stdout, outside.stderr) == (b"out\n", b"err\n")


async def test_exiting_0_with_nothing_is_ok_with_nothing(node: Node) -> None:
    ending, outside = await node.run("true")

    assert ending == Ending(ok=True, exit_code=0)
    assert (outside.stdout, outside.stderr) == (b"", b"")


async def test_a_program_killed_by_a_signal_says_which(node: Node) -> None:
    ending, _ = await node.run("sh", "-c", "kill -SEGV $$")

    assert ending.exit_code == 128 + signal.SIGSEGV
    assert ending.error == "The command was ended by signal 11 (SIGSEGV)."


async def test_bytes_that_are_no_text_arrive_as_they_are(node: Node) -> None:
    odd = bytes(range(256)) * 3 + b"\0\xff\xfe\xc3\x28"

    ending, outside = await node.python(
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 3 + b'\\0\\xff\\xfe\\xc3\\x28')"
    )

    assert ending.ok
    assert outside.stdout == odd


async def test_a_line_of_megabytes_arrives_whole(node: Node) -> None:
    ending, outside = await node.python("import sys; sys.stdout.write('x' * 5_000_001)")

    assert ending.ok
    assert len(outside.stdout) == 5_000_001


async def test_a_program_that_closes_its_pipes_and_goes_on_is_awaited(node: Node) -> None:
    ending, outside = await node.run("sh", "-c", "echo bye; exec >&- 2>&-; sleep 0.3; exit 4")

    assert ending.exit_code == 4
    assert outside.stdout == b"bye\n"


async def test_programs_get_default_signals(node: Node) -> None:
    ending, outside = await node.run("sh", "-c", "yes | head -n 1")

    assert ending.ok
    assert (outside.stdout, outside.stderr) == (b"y\n", b"")


async def test_a_flood_is_cut_and_neither_stops_nor_fills_the_node(node: Node) -> None:
    limit = 1_000_000
    memory = psutil.Process().memory_info().rss
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    alive = asyncio.create_task(others())
    ending, outside = await node.run("yes", timeout_seconds=1, output_limit_bytes=limit)
    alive.cancel()

    assert ending.exit_code == 124
    assert b"bytes left out" in outside.stdout
    assert limit <= len(outside.stdout) < limit + 100
    assert turns > 100
    assert psutil.Process().memory_info().rss - memory < 64 << 20


async def test_a_program_waits_for_a_slow_link_and_nothing_is_lost(node: Node) -> None:
    outside = Outside()
    outside.open.clear()
    running = asyncio.create_task(node.python("import sys; sys.stdout.write('x' * 3_000_000)", io=outside))
    await outside.arrived.wait()

    await asyncio.sleep(0.3)
    held = len(outside.stdout)
    busy = not running.done()
    outside.open.set()
    ending, _ = await running

    assert busy
    assert held <= 65536
    assert ending.ok
    assert len(outside.stdout) == 3_000_000


async def test_what_stood_in_the_pipes_at_the_end_arrives_however_late(node: Node) -> None:
    outside = Outside()
    outside.open.clear()
    running = asyncio.create_task(
        node.run("sh", "-c", "echo first; sleep 0.2; printf %050000d; printf %040000d >&2", io=outside)
    )
    await outside.arrived.wait()

    ended = await asyncio.to_thread(until, lambda: len(CHILDREN.own) == 1)  # the guardian's alone
    outside.open.set()
    ending, _ = await running

    assert ended
    assert ending.ok
    assert (len(outside.stdout), len(outside.stderr)) == (50_006, 40_000)


# ---------------------------------------------------------------- input


async def test_a_mebibyte_goes_through_cat(node: Node) -> None:
    data = SystemRandom().randbytes(1 << 20)

    ending, outside = await node.run("cat", io=Outside(data[:100], data[100:700_000], data[700_000:]), stdin=True)

    assert ending.ok
    assert outside.stdout == data


async def test_input_that_nobody_reads_harms_nobody(node: Node) -> None:
    ending, _ = await node.run("true", io=Outside(*[b"x" * 65536] * 64), stdin=True)

    assert ending.ok


async def test_input_that_a_daemon_holds_unread_does_not_keep_the_attempt(node: Node, length: str) -> None:
    ending, _ = await node.run("sh", "-c", f"sleep {length} <&0 & exit 0", io=Outside(*[b"x" * 65536] * 64), stdin=True)

    assert ending.ok
    assert sleepers(length) == []


async def test_without_input_a_program_reads_the_end_at_once(node: Node) -> None:
    ending, outside = await node.run("cat")

    assert ending.ok
    assert outside.stdout == b""


# ---------------------------------------------------------------- what cannot run


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (None, "no such program on this node's PATH"),
        ("missing", "there is no such program"),
        ("plain", "may not be executed"),
        ("folder", "is a folder"),
        ("data", "no program this node can run"),
        ("lost interpreter", "the interpreter in its first line"),
        ("nul", "holds a character"),
        ("long", "too long"),
    ],
)
async def test_what_cannot_run_ends_with_125_and_says_what_to_do(
    node: Node, tmp_path: Path, make: str | None, sentence: str
) -> None:
    program = tmp_path / "program"
    arguments = ["\0"] if make == "nul" else ["x" * 3_000_000] if make == "long" else []
    if make in ("plain", "data", "lost interpreter"):
        program.write_bytes(b"#!/no/such\n" if make == "lost interpreter" else b"\x01\x02\x03\x04")
        program.chmod(0o644 if make == "plain" else 0o755)
    elif make == "folder":
        program.mkdir()
    name = {None: "retinue-no-such-program", "nul": "echo", "long": "echo"}.get(make, str(program))

    ending, _ = await node.run(name, *arguments)

    assert (ending.ok, ending.exit_code, ending.code, ending.retryable) == (False, 125, "COMMAND_NOT_FOUND", False)
    assert sentence in str(ending.error)


async def test_a_work_folder_that_cannot_be_made_is_told(node: Node) -> None:
    node.folder.parent.mkdir(exist_ok=True)
    node.folder.write_text("a file")

    ending, _ = await node.run("true")
    node.folder.unlink()

    assert ending.exit_code == 125
    assert "work folder" in str(ending.error)


# ---------------------------------------------------------------- nothing is left


@pytest.fixture(params=["as here", "without /proc and pidfd"])
def system_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux as it is, and what other systems have."""
    if request.param != "as here":
        monkeypatch.setattr(guardian, "LINUX", False)
        monkeypatch.setattr(CHILDREN, "_prctl", None)
        monkeypatch.setattr(CHILDREN, "adopts", False)
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(os, "waitid", raising=False)


@pytest.mark.usefixtures("system_kind")
@pytest.mark.parametrize("how", ["loud", "quiet"])
async def test_a_daemon_left_behind_neither_keeps_the_attempt_nor_survives_it(
    node: Node, length: str, how: str
) -> None:
    ending, outside = await node.python(DAEMON, length, how)

    assert ending == Ending(ok=True, exit_code=0)
    assert outside.stdout == b"left behind\n"
    assert sleepers(length) == []


@LINUX_ONLY
@pytest.mark.parametrize("how", ["loud", "quiet"])
async def test_a_daemon_that_forgot_its_environment_is_found_too(node: Node, length: str, how: str) -> None:
    ending, outside = await node.python(DAEMON, length, how, "bare")

    assert ending.ok
    assert outside.stdout == b"left behind\n"
    assert sleepers(length) == []


async def test_a_background_job_does_not_outlive_its_command(node: Node, length: str) -> None:
    ending, _ = await node.run("sh", "-c", f"sleep {length} >/dev/null 2>&1 & exit 0")

    assert ending.ok
    assert sleepers(length) == []


async def test_another_attempts_daemon_is_left_alone(node: Node, length: str) -> None:
    outside = Outside()
    first = asyncio.create_task(node.python(DAEMON, length, "stay", io=outside))
    await outside.arrived.wait()

    await node.python(DAEMON, length + "1")
    left = len(sleepers(length))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first

    assert left == 2  # the program and its daemon
    assert sleepers(length) == sleepers(length + "1") == []


@pytest.mark.usefixtures("system_kind")
async def test_a_program_that_ignores_term_is_killed_at_its_timeout(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    swift(monkeypatch)

    ending, outside = await node.run(
        "sh", "-c", "trap 'echo no' TERM; while :; do sleep 0.05; done", timeout_seconds=0.4
    )

    assert (ending.exit_code, ending.code) == (124, "TIMEOUT")
    assert ending.error == "The command ran longer than its timeout of 0.4 s and was ended."
    assert outside.stdout == b"no\n"


async def test_a_program_may_clean_up_when_asked_to_end(node: Node) -> None:
    began = time.monotonic()

    ending, outside = await node.run(
        "sh", "-c", "trap 'echo cleaned; exit 0' TERM; sleep 1000 & wait", timeout_seconds=0.3
    )

    assert ending.exit_code == 124
    assert outside.stdout == b"cleaned\n"
    assert time.monotonic() - began < process.GRACE_SECONDS


@pytest.mark.usefixtures("system_kind")
async def test_a_timeout_ends_the_whole_tree(node: Node, length: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swift(monkeypatch)

    ending, outside = await node.python(TREE, length, "stay", timeout_seconds=1)

    assert ending.exit_code == 124
    assert outside.stdout == b"grown\n"
    assert sleepers(length) == []


@pytest.mark.usefixtures("system_kind")
async def test_a_child_without_session_or_environment_is_ended_with_its_parent(
    node: Node, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swift(monkeypatch)

    ending, outside = await node.python(ESTRANGED, length, timeout_seconds=1)

    assert ending.exit_code == 124
    assert outside.stdout == b"born\n"
    assert sleepers(length) == []


async def test_a_cancel_ends_the_whole_tree(node: Node, length: str, monkeypatch: pytest.MonkeyPatch) -> None:
    swift(monkeypatch)
    outside = Outside()
    running = asyncio.create_task(node.python(TREE, length, "stay", io=outside))
    await outside.arrived.wait()
    grown = len(sleepers(length))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert grown == 1 + 3 + 9 + 27
    assert sleepers(length) == []


async def test_a_tree_left_by_a_finished_program_is_ended(node: Node, length: str) -> None:
    ending, _ = await node.python(TREE, length)

    assert ending.ok
    assert sleepers(length) == []


async def test_a_program_that_forks_without_end_is_caught(
    node: Node, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swift(monkeypatch)

    ending, outside = await node.python(RUNAWAY, length)

    assert ending.ok
    assert outside.stdout == b"away\n"
    assert sleepers(length) == []


async def test_close_ends_what_runs(node: Node, length: str) -> None:
    running = await node.processes.start(Launch(["sleep", length], {"PATH": os.environ["PATH"]}, node.folder))

    await node.processes.close()
    code = await running.wait()
    await node.processes.discard(node.folder)

    assert code == -signal.SIGKILL
    assert sleepers(length) == []
    assert (CHILDREN.own, CHILDREN.marks) == (set(), set())


@LINUX_ONLY
async def test_orphans_that_end_by_themselves_are_reaped_while_their_program_runs(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_LOOK_SECONDS", 0.05)
    outside = Outside()
    running = asyncio.create_task(
        node.run(
            "sh",
            "-c",
            "for i in 1 2 3 4 5 6 7 8; do setsid -f true; (true &); done; sleep 0.3; echo up; sleep 1000",
            io=outside,
        )
    )
    await outside.arrived.wait()

    left = zombies()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert left == []


APP = """
import os, sys
from retinue import task

@task
def leaves(bare: bool, seconds: str) -> int:
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            os.closerange(0, 1000)
            os.execvpe("sleep", ["sleep", seconds], {"PATH": os.environ["PATH"]} if bare else os.environ)
        os.write(theirs, str(pid).encode())
        os._exit(0)
    os.wait()
    return int(os.read(ours, 100))
"""


@LINUX_ONLY
@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
async def test_an_orphan_of_a_function_is_reaped_when_it_ends_and_ended_with_its_host(
    node: Node, tmp_path: Path, length: str, bare: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_LOOK_SECONDS", 0.05)
    (tmp_path / "leaving.py").write_text(APP)
    facts = NodeFacts("lab", node.folder, dict(os.environ))
    functions = FunctionRunner(SystemClock(), facts, [str(tmp_path / "leaving.py")], workers=1, boot=node.boot)
    node.processes.guard()

    async def leave(seconds: str) -> int:
        spec = TaskSpec(function="leaving.leaves", arguments=[bare, seconds])
        ending = await functions.run(Assignment(Hold("tsk_1", 4, "claim"), "att_1", spec), Outside())
        assert ending.ok, ending.error
        return int(ending.result)

    short, long = await leave("0"), await leave(length)
    reaped = await asyncio.to_thread(until, lambda: not psutil.pid_exists(short))
    lived = psutil.pid_exists(long)
    await functions.close()

    assert (reaped, lived) == (True, True)
    assert not psutil.pid_exists(long)
    assert (CHILDREN.marks, len(CHILDREN.own)) == (set(), 1)  # the guardian


@LINUX_ONLY
async def test_no_zombie_is_left_by_programs_and_their_orphans(node: Node, length: str) -> None:
    for _ in range(5):
        await node.run("sh", "-c", f"setsid -f true; (true &); setsid -f sleep {length}; sleep 0.02")

    assert zombies() == []


async def test_the_exit_code_of_somebody_elses_child_is_not_taken(node: Node) -> None:
    theirs = start(["sh", "-c", "exit 7"])
    ended = line_of(theirs) == "" and until(lambda: theirs.pid in zombies())

    await node.run("sh", "-c", "setsid -f true; (true &); true")

    assert ended
    assert theirs.wait() == 7


async def test_descriptors_threads_and_tasks_are_back_where_they_were(node: Node) -> None:
    me = psutil.Process()
    await node.run("true", io=Outside(b"x"), stdin=True)
    descriptors, tasks = me.num_fds(), len(asyncio.all_tasks())

    for number in range(50):
        await node.run(
            *[("true",), ("sh", "-c", "sleep 9 & echo x"), ("no-such",)][number % 3],
            io=Outside(b"x"),
            stdin=number % 2 == 0,
        )

    assert me.num_fds() == descriptors
    assert len(asyncio.all_tasks()) == tasks
    assert CHILDREN.marks == set()
    assert len(CHILDREN.own) == 1  # the guardian


class Looks:
    """A family that is seen as told, one look after the other, and how its first member fared by then."""

    def __init__(self, first: int, *looks: set[int]) -> None:
        self.fared: list[str] = []
        self._first = psutil.Process(first)
        self._looks = list(looks)

    def __call__(self) -> set[int]:
        until(lambda: self._first.status() != psutil.STATUS_RUNNING, 1)
        self.fared.append(self._first.status())
        return self._looks.pop(0) if self._looks else set()


def test_nobody_is_killed_while_a_look_still_finds_new_ones(length: str) -> None:
    one, other = start(["sleep", length]), start(["sleep", length])
    family = Looks(one.pid, {one.pid}, {one.pid, other.pid}, {one.pid, other.pid})

    killed, left = guardian.end(family)
    ends = [line_of(program) or program.wait() for program in (one, other)]

    assert family.fared[:3] == ["sleeping", "stopped", "stopped"]
    assert (killed, left) == ({one.pid, other.pid}, set())
    assert ends == [-signal.SIGKILL, -signal.SIGKILL]


def test_a_stranger_that_was_stopped_goes_on(length: str) -> None:
    stranger = start(["sleep", length])
    family = Looks(stranger.pid, {stranger.pid}, set())

    killed, _ = guardian.end(family)
    on = until(lambda: psutil.Process(stranger.pid).status() == psutil.STATUS_SLEEPING)
    stranger.kill()
    ended = line_of(stranger) or stranger.wait()

    assert killed == set()
    assert family.fared == ["sleeping", "stopped"]
    assert on
    assert ended == -signal.SIGKILL


# ---------------------------------------------------------------- environment and folder


async def test_a_command_sees_what_it_needs_and_no_secret_of_the_node(node: Node) -> None:
    _, outside = await node.run("env", env={"MODE": "fast"}, pass_env=["CHOSEN", "RETINUE_TOKEN"])

    seen = dict(line.split("=", 1) for line in outside.stdout.decode().splitlines())
    assert seen["PATH"] == os.environ["PATH"]
    assert (seen["MODE"], seen["CHOSEN"]) == ("fast", "yes")
    assert {name: value for name, value in seen.items() if name.startswith("RETINUE_")} == {
        "RETINUE_TASK": "tsk_1",
        "RETINUE_ATTEMPT": f"att_{os.getpid()}_1",
        "RETINUE_FENCE": "4",
        "RETINUE_IDEMPOTENCY_KEY": "tsk_1",
        "RETINUE_NODE": "lab",
        "RETINUE_BOOT": node.boot,
    }
    assert "secret" not in outside.stdout.decode()


async def test_a_command_works_in_an_empty_folder_of_its_own(node: Node) -> None:
    ending, outside = await node.run("sh", "-c", "pwd -P; ls -A; mkdir -p a/b; echo x > a/b/c")

    assert ending.ok
    assert outside.stdout.decode() == f"{node.folder.resolve()}/att_{os.getpid()}_1\n"


@pytest.mark.parametrize(
    "mess",
    [
        "ln -s $KEEP link; ln -s $KEEP/file file",
        "here=$PWD; cd ..; rmdir $here; ln -s $KEEP $here",
        "mkdir -p a/b; touch a/b/c; chmod 500 a/b a .",
        "i=0; while [ $i -lt 1500 ]; do mkdir d; cd -P d; i=$((i + 1)); done",
    ],
    ids=["links inside", "itself a link", "read-only", "deep"],
)
async def test_whatever_a_command_makes_of_its_folder_it_is_removed_and_nothing_else(
    node: Node, tmp_path: Path, mess: str
) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").write_text("mine")

    ending, outside = await node.run("sh", "-c", mess, env={"KEEP": str(keep)})

    assert (ending.ok, outside.stderr) == (True, b"")
    assert list(node.folder.iterdir()) == []
    assert (keep / "file").read_text() == "mine"


# ---------------------------------------------------------------- the guardian

NODE = """
import asyncio, os, sys, time
from pathlib import Path
from retinue.node.processes import Launch
from retinue.node.runners.system import SystemProcesses

async def main():
    processes = SystemProcesses("boot_" + sys.argv[2])
    commands = [
        ["sleep", sys.argv[2]],
        [sys.executable, "-c", sys.argv[3], sys.argv[2], "quiet", "stay"],
        ["env", "-i", "sh", "-c", "sleep " + sys.argv[2]],
    ]
    for number, command in enumerate(commands):
        env = {"PATH": os.environ["PATH"], "RETINUE_ATTEMPT": f"att_{sys.argv[2]}_{number}"}
        running = await processes.start(Launch(command, env, Path(sys.argv[1])))
        if number == 1:
            await running.read()
    fork = os.fork() if "fork" in sys.argv else ""
    if fork == 0:
        os.close(1)
        time.sleep(6)
        os._exit(0)
    if "tell" in sys.argv:
        os.kill(processes._guardian._process.pid, 9)
        await asyncio.sleep(0.2)
        env["RETINUE_ATTEMPT"] += "x"
        await processes.start(Launch(["sleep", sys.argv[2]], env, Path(sys.argv[1])))
    print(processes._guardian._process.pid, fork, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "case", ["", "fork", "tell"], ids=["plain", "a fork holds the pipe", "after its guardian was killed"]
)
async def test_kill_9_of_the_node_leaves_no_child(tmp_path: Path, length: str, case: str) -> None:
    argv = [sys.executable, "-c", NODE, str(tmp_path), length, DAEMON, case]
    node = start(argv)
    guardian_pid, *forks = map(int, line_of(node).split())
    expected = 5 if case == "tell" else 4

    def programs() -> int:
        return len(set(sleepers(length)) - {node.pid, *forks})

    ran = until(lambda: programs() == expected)
    node.kill()
    node.wait()

    assert ran
    assert until(lambda: programs() == 0, 4)
    assert until(lambda: not psutil.pid_exists(guardian_pid), 4)


async def test_the_guardian_cannot_be_talked_out_of_its_work(node: Node) -> None:
    await node.run("true")
    pid = node.processes._guardian._process.pid  # type: ignore[union-attr]
    await asyncio.sleep(0.3)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, number)
    await asyncio.sleep(0.1)

    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    assert os.getsid(pid) == pid
    assert psutil.Process(pid).environ() == {} or sys.platform != "linux"


async def test_close_ends_the_guardian(node: Node) -> None:
    await node.run("true")
    pid = node.processes._guardian._process.pid  # type: ignore[union-attr]

    await node.processes.close()

    assert not psutil.pid_exists(pid)
