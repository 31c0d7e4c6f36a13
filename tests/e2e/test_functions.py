"""Functions in real host processes: what they give back, and that a bad one harms its own host process only."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from retinue.client.frames import Assignment
from retinue.clock import SystemClock
from retinue.errors import ConfigInvalid
from retinue.node.runners.function import FunctionRunner
from retinue.node.runners.runner import NodeFacts
from retinue.tasks.model import Ending, FailureCode, Hold, Progress, TaskSpec

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(60)]

APP = Path(__file__).with_name("functions_app.py")


class Heard:
    """What an attempt let its executor know."""

    def __init__(self) -> None:
        self.starts = 0
        self.streams = {"stdout": b"", "stderr": b""}
        self.told: list[Progress] = []
        self.wrote = asyncio.Event()

    def started(self) -> None:
        self.starts += 1

    async def output(self, stream: str, data: bytes) -> None:
        self.streams[stream] += data
        self.wrote.set()

    async def input(self) -> bytes:
        return b""

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)

    @property
    def stdout(self) -> str:
        return self.streams["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.streams["stderr"].decode()


def assignment(function: str, *arguments: Any, **fields: Any) -> Assignment:
    name = function if "." in function else f"functions_app.{function}"
    return Assignment(Hold("tsk_1", 7, "token"), "att_1", TaskSpec(function=name, arguments=[*arguments], **fields))


def facts() -> NodeFacts:
    return NodeFacts("node", Path("unused"), dict(os.environ))


@pytest.fixture
async def runner() -> AsyncIterator[FunctionRunner]:
    made = FunctionRunner(SystemClock(), facts(), [str(APP)], workers=2, boot="boot_test")
    yield made
    await made.close()


async def call(runner: FunctionRunner, function: str, *arguments: Any, **fields: Any) -> tuple[Ending, Heard]:
    heard = Heard()
    return await runner.run(assignment(function, *arguments, **fields), heard), heard


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until_gone(*pids: int) -> list[int]:
    """Those that are still there after five seconds."""
    for _ in range(100):
        if not any(map(alive, pids)):
            return []
        await asyncio.sleep(0.05)
    return [pid for pid in pids if alive(pid)]


class TestCalls:
    async def test_the_functions_of_the_apps_are_capabilities(self, runner: FunctionRunner) -> None:
        capabilities = await runner.capabilities()

        assert "function:functions_app.add" in capabilities
        assert "function:functions_app.add_soon" in capabilities

    @pytest.mark.parametrize("function", ["add", "add_soon"])
    async def test_a_function_returns_its_result(self, runner: FunctionRunner, function: str) -> None:
        ending, heard = await call(runner, function, 2, 3)

        assert ending == Ending(ok=True, result=5)
        assert heard.starts == 1

    async def test_typed_arguments_and_results_travel_as_json(self, runner: FunctionRunner) -> None:
        ending, _ = await call(runner, "mirror", {"x": 1, "y": 2})

        assert ending.result == {"x": 2, "y": 1}

    @pytest.mark.parametrize(
        ("function", "arguments", "said"),
        [
            ("add", [1, "2"], "arguments: functions_app.add: b: Expected `int`, got `str`"),
            ("add", [1], "arguments: functions_app.add: takes 2 arguments, not 1"),
            ("os.system", ["true"], "No app of this node has a function os.system."),
        ],
    )
    async def test_a_call_that_cannot_be_made_is_not_tried_again(
        self, runner: FunctionRunner, function: str, arguments: list[Any], said: str
    ) -> None:
        ending, _ = await call(runner, function, *arguments)

        assert ending == Ending(ok=False, error=said, code=FailureCode.FUNCTION_ERROR, retryable=False)

    @pytest.mark.parametrize(
        ("function", "said"),
        [
            ("wrong_result", "result: functions_app.wrong_result: Expected `int`, got `str`"),
            ("unencodable_result", "it cannot be written as JSON: Encoding objects of type object is unsupported"),
        ],
    )
    async def test_a_result_that_is_none_is_an_error(self, runner: FunctionRunner, function: str, said: str) -> None:
        ending, _ = await call(runner, function)

        assert (ending.ok, ending.code) == (False, FailureCode.FUNCTION_ERROR)
        assert said in (ending.error or "")

    async def test_output_of_a_def_function_is_its_own_down_to_its_children(self, runner: FunctionRunner) -> None:
        heard = [(await call(runner, "speak", text))[1] for text in ("one", "two")]

        assert [one.stdout for one in heard] == ["one\nraw\nchild\n", "two\nraw\nchild\n"]
        assert [one.stderr for one in heard] == ["ONE\n", "TWO\n"]

    async def test_output_of_async_functions_is_told_apart(self, runner: FunctionRunner) -> None:
        heard = await asyncio.gather(*(call(runner, "speak_async", f"call-{number}", 3) for number in range(5)))

        assert [one.stdout for _, one in heard] == [
            f"call-{number} 0\ncall-{number} 1\ncall-{number} 2\ncall-{number} thread\n" for number in range(5)
        ]

    @pytest.mark.parametrize("function", ["context", "context_async"])
    async def test_a_function_knows_its_attempt_and_tells_how_far_it_is(
        self, runner: FunctionRunner, function: str
    ) -> None:
        ending, heard = await call(runner, function)

        assert ending.result == ["tsk_1", "att_1", "7", "tsk_1"]
        assert heard.told[-1] == Progress(stage="then", percent=99.0)
        assert len(heard.told) <= 10

    async def test_a_tasks_variables_are_there_for_its_call_only(self, runner: FunctionRunner) -> None:
        during, _ = await call(runner, "variable", "ERRAND", env={"ERRAND": "milk"})
        after, _ = await call(runner, "variable", "ERRAND")

        assert (during.result, after.result) == ("milk", "")

    async def test_def_functions_run_in_as_many_hosts_as_there_are_workers(self, runner: FunctionRunner) -> None:
        await asyncio.gather(*(call(runner, "add", 1, 2) for _ in range(10)))

        assert [host.together for host in runner.hosts()] == [False, False]

    async def test_a_def_function_that_computes_still_shows_life(self, runner: FunctionRunner) -> None:
        spinning = asyncio.create_task(call(runner, "spins", timeout_seconds=3))
        await asyncio.sleep(2.5)

        silent = [host.silent_seconds for host in runner.hosts() if host.calls]
        await spinning

        assert len(silent) == 1
        assert silent[0] < 1.5


# Each harms one host process: how its own call ends, and what is said.
BAD = [
    pytest.param("blocks", {}, FailureCode.HOST_LOST, "event loop", id="blocks the event loop"),
    pytest.param("spins", {"timeout_seconds": 1.0}, FailureCode.TIMEOUT, "longer than its timeout of 1 s", id="spins"),
    pytest.param("sleeps", {"timeout_seconds": 1.0}, FailureCode.TIMEOUT, "longer than its timeout", id="sleeps"),
    pytest.param("computes_in_c", {"timeout_seconds": 1.0}, FailureCode.TIMEOUT, "longer than its timeout", id="C"),
    pytest.param("floods", {"timeout_seconds": 1.0}, FailureCode.TIMEOUT, "longer than its timeout", id="floods"),
    pytest.param("floods_async", {"timeout_seconds": 1.0}, FailureCode.TIMEOUT, "longer", id="floods, async"),
    pytest.param("allocates", {}, FailureCode.FUNCTION_ERROR, "MemoryError", id="allocates"),
    pytest.param(
        "is_killed", {}, FailureCode.HOST_LOST, "SIGKILL during the call; perhaps memory ran out", id="killed"
    ),
    pytest.param("dies", {}, FailureCode.HOST_LOST, "exit code 3 during the call", id="os._exit"),
    pytest.param("dies_async", {}, FailureCode.HOST_LOST, "exit code 3 during the call", id="os._exit, async"),
    pytest.param("segfaults", {}, FailureCode.HOST_LOST, "SIGSEGV during the call", id="segfaults"),
    pytest.param("raises", {}, FailureCode.FUNCTION_ERROR, "ValueError: no such thing", id="raises"),
    pytest.param("raises_async", {}, FailureCode.FUNCTION_ERROR, "ValueError: no such thing", id="raises, async"),
    pytest.param("exits", {}, FailureCode.FUNCTION_ERROR, "SystemExit: 3", id="sys.exit"),
    pytest.param("exits_async", {}, FailureCode.FUNCTION_ERROR, "SystemExit: 3", id="sys.exit, async"),
    pytest.param("recurses", {"arguments": [0]}, FailureCode.FUNCTION_ERROR, "RecursionError: ", id="recursion"),
    pytest.param("will_not_stop", {"timeout_seconds": 0.5}, FailureCode.TIMEOUT, "longer", id="swallows cancellation"),
]


class TestBadCode:
    @pytest.mark.parametrize(("function", "fields", "code", "said"), BAD)
    async def test_it_harms_its_own_host_only(
        self, runner: FunctionRunner, function: str, fields: dict[str, Any], code: FailureCode, said: str
    ) -> None:
        arguments = fields.pop("arguments", [])
        await call(runner, "add", 0, 0)

        bad = asyncio.create_task(call(runner, function, *arguments, output_limit_bytes=2**20, **fields))
        good = [await call(runner, "add", number, 1) for number in range(50)]
        ending, heard = await bad
        after = await asyncio.gather(call(runner, "add", 2, 3), call(runner, "add_soon", 2, 3))

        assert [one.result for one, _ in good] == [number + 1 for number in range(50)]
        assert (ending.ok, ending.code) == (False, code)
        assert said in (ending.error or "")
        assert ending.exit_code == (124 if code is FailureCode.TIMEOUT else None)
        assert ending.retryable
        assert len(heard.stdout) < 2**20 + 1000
        assert [one.result for one, _ in after] == [5, 5]

    async def test_calls_beside_one_that_blocks_the_loop_may_run_again(self, runner: FunctionRunner) -> None:
        await call(runner, "add_soon", 0, 0)

        endings = await asyncio.gather(call(runner, "sleeps_async"), call(runner, "blocks"))

        assert [(one.code, one.retryable) for one, _ in endings] == [(FailureCode.HOST_LOST, True)] * 2
        assert "in blocks" in endings[1][1].stderr  # where it was stuck

    @pytest.mark.parametrize("function", ["raises", "raises_async"])
    async def test_a_traceback_is_on_stderr_and_begins_with_the_authors_code(
        self, runner: FunctionRunner, function: str
    ) -> None:
        _, heard = await call(runner, function)

        lines = heard.stderr.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[1].startswith(f'  File "{APP}"')
        assert lines[-1] == "ValueError: no such thing"

    async def test_output_over_the_limit_keeps_its_head_and_tail(self, runner: FunctionRunner) -> None:
        ending, heard = await call(runner, "floods", timeout_seconds=1.0, output_limit_bytes=100_000)

        assert ending.code == FailureCode.TIMEOUT
        assert len(heard.stdout) < 100_100
        assert "bytes left out" in heard.stdout

    async def test_a_child_that_a_function_forks_and_lets_return_answers_no_call(self, runner: FunctionRunner) -> None:
        ending, _ = await call(runner, "forks")
        after, _ = await call(runner, "add", 2, 3)

        assert ending.result > 0
        assert after.result == 5

    async def test_an_attempt_whose_output_cannot_be_handed_on_ends(self, runner: FunctionRunner) -> None:
        class Broken(Heard):
            async def output(self, stream: str, data: bytes) -> None:
                raise ConnectionError("the link is gone")

        with pytest.raises(ConnectionError):
            await runner.run(assignment("floods"), Broken())
        after, _ = await call(runner, "add", 2, 3)

        assert after.result == 5


class TestEndings:
    async def test_a_cancelled_def_function_runs_no_more_when_run_returns(self, runner: FunctionRunner) -> None:
        heard = Heard()
        running = asyncio.create_task(runner.run(assignment("sleeps"), heard))
        await heard.wrote.wait()
        pid = int(heard.stdout.split()[1])

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert not alive(pid)

    async def test_a_cancelled_async_function_cleans_up_and_its_host_stays(self, runner: FunctionRunner) -> None:
        heard = Heard()
        running = asyncio.create_task(runner.run(assignment("sleeps_async"), heard))
        await heard.wrote.wait()
        before = [host.pid for host in runner.hosts()]

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert [host.pid for host in runner.hosts()] == before
        assert [host.calls for host in runner.hosts()] == [0, 0]

    async def test_a_timed_out_async_function_is_heard_to_its_end(self, runner: FunctionRunner) -> None:
        ending, heard = await call(runner, "sleeps_async", timeout_seconds=0.5)

        assert ending.code == FailureCode.TIMEOUT
        assert heard.stdout == "asleep\nwoken\n"

    @pytest.mark.parametrize("function", ["leaves_a_child", "leaves_a_daemon"])
    async def test_nothing_that_functions_started_outlives_their_host(
        self, runner: FunctionRunner, function: str
    ) -> None:
        ending, _ = await call(runner, function)
        assert alive(ending.result)

        await runner.close()

        assert not alive(ending.result)

    async def test_nothing_is_left_after_close(self) -> None:
        descriptors = set(os.listdir("/proc/self/fd"))
        tasks = asyncio.all_tasks()
        runner = FunctionRunner(SystemClock(), facts(), [str(APP)], workers=2, boot="boot_test")

        await asyncio.gather(*(call(runner, name, 1, 2) for name in ("add", "add", "add_soon")))
        pids = [host.pid for host in runner.hosts()]
        await runner.close()

        assert len(pids) == 3
        assert not any(map(alive, pids))
        assert asyncio.all_tasks() == tasks
        assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


class TestApps:
    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
            ("import os; os._exit(9)", "exit code 9"),
            ("import sys; sys.exit('no')", "SystemExit: no"),
            ("from retinue.agent.function import task\n@task\ndef f(a: 'X'): ...", "name 'X' is not defined"),
            ("from retinue.agent.function import app_modules\napp_modules()", "put its work under `if __name__"),
        ],
    )
    async def test_an_app_that_cannot_be_loaded_is_told_at_the_start(
        self, tmp_path: Path, source: str, said: str
    ) -> None:
        app = tmp_path / "broken.py"
        app.write_text(source)
        runner = FunctionRunner(SystemClock(), facts(), [str(app)], workers=1, boot="boot_test")

        with pytest.raises(ConfigInvalid) as raised:
            await runner.capabilities()
        ending, _ = await call(runner, "broken.f")

        assert said in raised.value.message
        assert (ending.code, said in (ending.error or "")) == (FailureCode.HOST_LOST, True)
        assert runner.hosts() == []

    def test_a_scripts_functions_run_under_the_scripts_name(self, tmp_path: Path) -> None:
        (tmp_path / "tools.py").write_text("FACTOR = 2\n")
        script = tmp_path / "errands.py"
        script.write_text(SCRIPT)

        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=30)

        assert done.stderr == ""
        assert done.stdout == "function:errands.double\n42\n"

    def test_a_module_run_as_the_program_works_too(self, tmp_path: Path) -> None:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "__init__.py").touch()
        (tmp_path / "tools.py").write_text("FACTOR = 2\n")
        (tmp_path / "package" / "errands.py").write_text(SCRIPT.replace('"errands.', '"package.errands.'))

        argv = [sys.executable, "-m", "package.errands"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)

        assert done.stderr == ""
        assert done.stdout == "function:package.errands.double\n42\n"

    def test_a_function_on_the_command_line_is_refused_with_a_sentence(self) -> None:
        source = "from retinue.agent.function import task\ndef f(): ...\ntask(f)"

        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=30)

        assert "f is in no file that a host process could import; save it as one" in done.stderr


SCRIPT = textwrap.dedent(
    """
    import asyncio, os
    from pathlib import Path
    from retinue.agent.function import app_modules, call_of, task
    from retinue.client.frames import Assignment
    from retinue.clock import SystemClock
    from retinue.node.runners.function import FunctionRunner
    from retinue.node.runners.runner import NodeFacts
    from retinue.tasks.model import Hold, TaskSpec
    from tools import FACTOR

    @task
    def double(number: int) -> int:
        return number * FACTOR

    class Nobody:
        def started(self): ...
        async def output(self, stream, data): ...

    async def main():
        facts = NodeFacts("node", Path("unused"), dict(os.environ))
        runner = FunctionRunner(SystemClock(), facts, app_modules(), workers=1, boot="boot_test")
        print(*await runner.capabilities())
        name, arguments = call_of(double, [21])
        assert name == "errands.double"
        spec = TaskSpec(function=name, arguments=arguments)
        ending = await runner.run(Assignment(Hold("tsk_1", 1, "x"), "att_1", spec), Nobody())
        print(ending.result)
        await runner.close()

    if __name__ == "__main__":
        asyncio.run(main())
    """
)


async def test_a_node_that_is_killed_leaves_no_host_process(tmp_path: Path) -> None:
    node = tmp_path / "node.py"
    node.write_text(
        textwrap.dedent(
            f"""
            import asyncio, sys
            sys.path.insert(0, {str(APP.parent)!r})
            from test_functions import *

            async def main():
                runner = FunctionRunner(SystemClock(), facts(), [{str(APP)!r}], workers=4, boot="boot_test")
                child, _ = await call(runner, "leaves_a_child")
                for name in ("spins", "sleeps", "computes_in_c", "blocks"):
                    asyncio.create_task(call(runner, name))
                while sum(host.calls for host in runner.hosts()) < 4:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                print(child.result, *(host.pid for host in runner.hosts()), flush=True)
                await asyncio.sleep(60)

            asyncio.run(main())
            """
        )
    )
    process = await asyncio.create_subprocess_exec(sys.executable, node, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    running = [pid for pid in pids if alive(pid)]

    process.send_signal(signal.SIGKILL)
    await process.wait()
    left = await until_gone(*pids)

    assert len(running) == 5
    assert left == []


@pytest.mark.parametrize(
    ("function", "calls", "at_once"), [("nothing_async", 20_000, 1000), ("nothing", 2_000, 1), ("nothing", 4_000, 2)]
)
async def test_calls_a_second_are_printed(
    runner: FunctionRunner, function: str, calls: int, at_once: int, capsys: pytest.CaptureFixture[str]
) -> None:
    await call(runner, function)
    numbers = iter(range(calls))

    async def one_after_the_other() -> list[bool]:
        return [(await call(runner, function))[0].ok for _ in numbers]

    began = time.perf_counter()
    done = await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    took = time.perf_counter() - began
    with capsys.disabled():
        print(f"\n{function}, {at_once} at once: {calls / took:,.0f} calls a second")

    assert all(all(one) for one in done)
