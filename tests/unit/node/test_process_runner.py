"""The process runner over a scripted program: what it asks of the port, and what it makes of what comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from retinue.client.frames import Assignment
from retinue.clock import SystemClock
from retinue.errors import CommandNotFound
from retinue.node.processes import Launch
from retinue.node.runners.process import PIECE, HeadAndTail, ProcessRunner, environment
from retinue.node.runners.runner import NodeFacts
from retinue.tasks.model import Ending, FailureCode, Hold, Progress, TaskSpec

FACTS = NodeFacts("lab", Path("work"), {"PATH": "/bin", "LC_ALL": "C.UTF-8", "AWS_SECRET": "s", "RETINUE_TOKEN": "t"})


async def turn() -> None:
    """Let everything else that is ready go one step."""
    asyncio.get_running_loop().call_soon((later := asyncio.Event()).set)
    await later.wait()


class Outside:
    """An attempt's outside that remembers; `limit` bytes of output it takes, then it breaks."""

    def __init__(self, *inputs: bytes, limit: int | None = None) -> None:
        self.log: list[str] = []
        self.output_bytes: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self._inputs = list(inputs)
        self._limit = limit

    def started(self) -> None:
        self.log.append("started")

    async def output(self, stream: str, data: bytes) -> None:
        self.output_bytes[stream] += data
        if self._limit is not None and len(self.output_bytes[stream]) > self._limit:
            raise ConnectionError("the link broke")

    async def input(self) -> bytes:
        return self._inputs.pop(0) if self._inputs else b""

    def progress(self, progress: Progress) -> None:
        raise AssertionError(progress)


class Script:
    """`Processes` and its one program: writes `output`, then ends with `code`, or (None) only when it is ended."""

    pid = 1

    def __init__(
        self, *output: tuple[str, bytes], code: int | None = 0, obeys: bool = True, reads: int = 1 << 30
    ) -> None:
        self.log: list[str] = []
        self.launch: Launch | None = None
        self.stdin = b""
        self._output = list(output)
        self._obeys = obeys
        self._reads = reads
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._killed = asyncio.Event()
        self.waited = asyncio.Event()
        self.asked = asyncio.Event()
        self.full = asyncio.Event()
        if code is not None:
            self._exit.set_result(code)

    async def start(self, launch: Launch) -> "Script":
        self.launch = launch
        return self

    async def discard(self, folder: Path) -> None:
        await turn()
        self.log.append(f"discard {folder}")

    async def close(self) -> None:
        raise AssertionError("a runner does not close what others use too")

    async def read(self) -> tuple[str, bytes] | None:
        if not self._output:
            await self._killed.wait()
            return None
        return self._output.pop(0)

    async def write(self, data: bytes) -> bool:
        self.stdin += data
        if len(self.stdin) < self._reads:
            return True
        self.full.set()
        return False

    async def end_input(self) -> None:
        self.log.append("end input")

    async def wait(self) -> int:
        self.waited.set()
        return await asyncio.shield(self._exit)

    def _end(self, code: int) -> None:
        if not self._exit.done():
            self._exit.set_result(code)

    def terminate(self) -> None:
        self.log.append("terminate")
        self.asked.set()
        if self._obeys:
            self._end(-15)

    async def kill(self) -> None:
        if not self._killed.is_set():
            self.log.append("kill")
        self._end(-9)
        await turn()
        self._killed.set()


class Missing(Script):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def start(self, launch: Launch) -> Script:
        raise self._error


class Hurried(SystemClock):
    """Every wait is over as soon as nothing else can go on."""

    def timeout(self, seconds: float | None) -> asyncio.Timeout:
        return asyncio.timeout(None if seconds is None else 0)


class Patient(SystemClock):
    """No time passes: whatever ends, ends for another reason."""

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[None]:
        yield


def assignment(**fields: object) -> Assignment:
    spec = TaskSpec(command=["do", "it"], **fields)  # type: ignore[arg-type]
    return Assignment(Hold("tsk_1", 7, "claim"), "att_1", spec)


async def run(
    script: Script, outside: Outside | None = None, clock: SystemClock | None = None, **fields: object
) -> Ending:
    return await ProcessRunner(script, clock or Patient(), FACTS).run(assignment(**fields), outside or Outside())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, Ending(ok=True, exit_code=0)),
        (3, Ending(ok=False, exit_code=3, error="The command ended with exit code 3.", code="EXIT")),
        (-9, Ending(ok=False, exit_code=137, error="The command was ended by signal 9 (SIGKILL).", code="EXIT")),
    ],
)
async def test_an_exit_code_becomes_an_ending(code: int, expected: Ending) -> None:
    script = Script(code=code)

    ending = await run(script)

    assert ending == expected


async def test_what_a_program_wrote_is_delivered_before_its_end_and_whatever_it_left_is_ended() -> None:
    script, outside = Script(("stdout", b"a"), ("stderr", b"\xff\0"), ("stdout", b"b")), Outside()

    await run(script, outside)

    assert outside.log == ["started"]
    assert outside.output_bytes == {"stdout": b"ab", "stderr": b"\xff\0"}
    assert script.log == ["kill", "discard work/att_1"]


@pytest.mark.parametrize(
    ("error", "code", "retryable", "sentence"),
    [
        (CommandNotFound("do: not here."), FailureCode.COMMAND_NOT_FOUND, False, "do: not here."),
        (
            OSError(24, "Too many open files"),
            FailureCode.NODE_EXHAUSTED,
            True,
            "This node cannot start any command just now: Too many open files.",
        ),
    ],
)
async def test_a_program_that_cannot_start_ends_with_125_and_no_start(
    error: Exception, code: FailureCode, retryable: bool, sentence: str
) -> None:
    outside, script = Outside(), Missing(error)

    ending = await run(script, outside)

    assert ending == Ending(ok=False, exit_code=125, error=sentence, code=code, retryable=retryable)
    assert outside.log == []
    assert script.log == ["discard work/att_1"]


@pytest.mark.parametrize("obeys", [True, False])
async def test_a_timeout_asks_then_kills_and_ends_with_124(obeys: bool) -> None:
    script = Script(("stdout", b"so far"), code=None, obeys=obeys)
    outside = Outside()

    ending = await run(script, outside, Hurried(), timeout_seconds=1.5)

    sentence = "The command ran longer than its timeout of 1.5 s and was ended."
    assert ending == Ending(ok=False, exit_code=124, error=sentence, code=FailureCode.TIMEOUT)
    assert script.log == ["terminate", "kill", "discard work/att_1"]
    assert outside.output_bytes["stdout"] == b"so far"


async def test_a_cancelled_run_asks_then_kills_and_removes_its_folder() -> None:
    script = Script(code=None)
    task = asyncio.create_task(run(script))
    await script.waited.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert script.log == ["terminate", "kill", "discard work/att_1"]


async def test_a_second_cancel_during_the_grace_kills_at_once() -> None:
    script = Script(code=None, obeys=False)
    task = asyncio.create_task(run(script))
    await script.waited.wait()

    task.cancel()
    await script.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert script.log == ["terminate", "kill", "discard work/att_1"]


async def test_cancels_in_every_step_of_the_end_leave_nothing_undone() -> None:
    script = Script(code=None, obeys=False)
    task = asyncio.create_task(run(script))
    await script.waited.wait()

    while not task.done():
        task.cancel()
        await turn()

    assert task.cancelled()
    assert script.log == ["terminate", "kill", "discard work/att_1"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("timeout", [None, 5.0])
async def test_input_is_handed_over_and_closed_at_its_end(timeout: float | None) -> None:
    script = Script(code=None)
    script.end_input = lambda: _note(lambda: script._end(0))  # type: ignore[method-assign]

    ending = await run(script, Outside(b"one ", b"two"), stdin=True, timeout_seconds=timeout)

    assert ending.ok
    assert script.stdin == b"one two"


async def _note(action: Callable[[], None]) -> None:
    action()


async def test_a_program_that_wants_no_more_input_gets_no_more() -> None:
    outside = Outside(*[b"x"] * 10)
    script = Script(code=None, reads=3)
    task = asyncio.create_task(run(script, outside, stdin=True))
    await script.waited.wait()

    await script.full.wait()
    script._end(0)
    ending = await task

    assert ending.ok
    assert script.stdin == b"xxx"


async def test_a_broken_outside_ends_the_program_and_is_told() -> None:
    script = Script(("stdout", b"12345"), code=None)

    with pytest.raises(ConnectionError):
        await run(script, Outside(limit=3))

    assert script.log == ["kill", "discard work/att_1"]


async def test_broken_input_is_not_taken_for_its_end() -> None:
    outside, script = Outside(), Script(code=None)
    outside.input = lambda: _broken()  # type: ignore[method-assign]

    with pytest.raises(ConnectionError):
        await run(script, outside, stdin=True)

    assert script.log == ["kill", "discard work/att_1"]


async def _broken() -> bytes:
    raise ConnectionError


async def test_an_attempt_id_that_is_a_path_is_refused_and_nothing_removed() -> None:
    script = Script()
    bad = Assignment(Hold("tsk_1", 1, "c"), "../..", TaskSpec(command=["true"]))

    ending = await ProcessRunner(script, Patient(), FACTS).run(bad, Outside())

    assert (ending.ok, ending.code) == (False, "POLICY")
    assert script.launch is None
    assert script.log == []


def test_a_command_sees_the_allowed_the_named_the_set_and_who_it_is() -> None:
    task = assignment(env={"MODE": "fast", "RETINUE_FENCE": "0"}, pass_env=["AWS_SECRET", "RETINUE_TOKEN", "UNSET"])

    seen = environment(task, FACTS)

    assert seen == {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "AWS_SECRET": "s",
        "MODE": "fast",
        "RETINUE_TASK": "tsk_1",
        "RETINUE_ATTEMPT": "att_1",
        "RETINUE_FENCE": "7",
        "RETINUE_IDEMPOTENCY_KEY": "tsk_1",
        "RETINUE_NODE": "lab",
    }


def test_a_secret_of_the_node_that_nobody_named_stays_with_the_node() -> None:
    seen = environment(assignment(), FACTS)

    assert not {"AWS_SECRET", "RETINUE_TOKEN"} & set(seen)


def passed(window: HeadAndTail, *output: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    live = [(stream, part) for stream, data in output if (part := window.take(stream, data))]
    return live + list(window.rest())


def test_output_within_the_limit_passes_whole() -> None:
    parts = passed(HeadAndTail(10), ("stdout", b"12345678"), ("stderr", b"9a"))

    assert b"".join(part for _, part in parts) == b"123456789a"
    assert parts[0] == ("stdout", b"12345")


def test_of_output_beyond_the_limit_the_middle_is_left_out_and_counted() -> None:
    parts = passed(HeadAndTail(8), *[("stdout", str(digit).encode()) for digit in range(10)] * 200)

    assert b"".join(part for _, part in parts) == "0123\n[… 1,992 bytes left out …]\n6789".encode()


@pytest.mark.parametrize("before", [1, 50])
def test_a_few_lines_of_errors_outlive_a_flood(before: int) -> None:
    flood = ("stdout", b"x" * 1000)

    parts = passed(HeadAndTail(2000), *[flood] * before, ("stderr", b"why it broke"), *[flood] * 50)

    assert [part for stream, part in parts if stream == "stderr"] == [b"why it broke"]
    assert sum(len(part) for stream, part in parts if stream == "stdout" and b"left out" not in part) == 2000 - 12


def test_a_flood_of_single_bytes_is_kept_in_few_pieces() -> None:
    window = HeadAndTail(PIECE)

    for _ in range(2 * PIECE):
        window.take("stdout", b"x")
    kept = list(window.rest())

    assert sum(len(part) for _, part in kept[1:]) == PIECE // 2
    assert len(kept) <= 3
