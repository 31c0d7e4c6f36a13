"""`retinue run` as a process: output, input, exit codes, interruptions, and that nothing is left behind."""

import base64
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from random import randrange

import psutil
import pytest

from command_line import PROGRAM, CommandLine, sleepers

pytestmark = pytest.mark.real


@pytest.fixture
def number() -> str:
    """For `sleep NUMBER`: nobody else sleeps so long."""
    return str(randrange(100_000, 999_999))


def wait_until(true: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


# -- output and input --------------------------------------------------------------------------------------------------


def test_output_goes_where_the_command_wrote_it_and_its_exit_code_is_ours(cli: CommandLine) -> None:
    ran = cli.run("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")

    assert (ran.stdout, ran.stderr, ran.returncode) == (b"out\n", b"err\n", 3)


def test_a_line_arrives_before_the_command_ends(cli: CommandLine, number: str) -> None:
    started = cli.start("run", "--", "sh", "-c", f"echo early; sleep {number}")
    assert started.stdout is not None

    line = started.stdout.readline()

    assert (line, started.poll()) == (b"early\n", None)


def test_output_is_byte_exact(cli: CommandLine) -> None:
    every = "import os; os.write(1, bytes(range(256)) * 1000); os.write(2, bytes(range(255, -1, -1)))"

    ran = cli.run("run", "--", sys.executable, "-c", every)

    assert ran.stdout == bytes(range(256)) * 1000
    assert ran.stderr == bytes(range(255, -1, -1))


def test_what_is_piped_in_goes_to_the_command(cli: CommandLine) -> None:
    data = os.urandom(3_000_000)

    ran = cli.run("run", "--", "cat", stdin=data)

    assert ran.stdout == data


def test_a_file_is_input_too_and_no_input_is_its_end(cli: CommandLine) -> None:
    path = cli.folder / "in"
    path.write_bytes(b"from a file")

    with path.open("rb") as file:
        started = cli.start("run", "--", "cat", stdin=file.fileno())
    out, _ = started.communicate(timeout=10)
    nothing = cli.run("run", "--", "cat")

    assert (out, nothing.stdout, nothing.returncode) == (b"from a file", b"", 0)


def test_input_that_is_not_wanted_holds_nobody_up(cli: CommandLine) -> None:
    started = cli.start("run", "--", "true", stdin=subprocess.PIPE)

    code = started.wait(timeout=10)

    assert code == 0


def test_the_environment_is_what_was_asked_for(cli: CommandLine) -> None:
    cli.env |= {"HANDED_ON": "yes", "KEPT_BACK": "secret"}

    ran = cli.run("run", "--env", "A=b=c", "--pass-env", "HANDED_ON", "--", "env")

    found = dict(line.split("=", 1) for line in ran.stdout.decode().splitlines())
    assert (found["A"], found["HANDED_ON"], "KEPT_BACK" in found) == ("b=c", "yes", False)
    assert found["RETINUE_TASK"].startswith("tsk_")


def test_options_of_the_command_are_its_own(cli: CommandLine) -> None:
    plain = cli.run("run", "echo", "-n", "--json", "--", "x")
    dashed = cli.run("run", "--", "echo", "--", "x")

    assert (plain.stdout, dashed.stdout) == (b"--json -- x", b"-- x\n")


# -- exit codes --------------------------------------------------------------------------------------------------------


def test_our_own_exit_codes(cli: CommandLine) -> None:
    timed_out = cli.run("run", "--timeout", "300ms", "--", "sleep", "100")
    missing = cli.run("run", "--", "no-such-program-here")
    nowhere = cli.run("run", "--label", "pool=gpu", "--", "true")
    signalled = cli.run("run", "--", "sh", "-c", "kill -KILL $$")

    assert [one.returncode for one in (timed_out, missing, nowhere, signalled)] == [124, 125, 125, 137]
    assert timed_out.stderr == b"retinue: The command ran longer than its timeout of 0.3 s and was ended.\n"
    assert nowhere.stderr == b"retinue: No connected node can run it: none has the label pool=gpu.\n"


def test_quiet_says_nothing_of_its_own(cli: CommandLine) -> None:
    ran = cli.run("run", "--quiet", "--timeout", "300ms", "--", "sleep", "100")

    assert (ran.returncode, ran.stderr) == (124, b"")


def test_a_failure_is_tried_again_as_often_as_was_asked(cli: CommandLine) -> None:
    counter = cli.folder / "counter"
    command = ["sh", "-c", f"echo x >> {counter}; test $(wc -l < {counter}) -eq 3"]

    ran = cli.run("run", "--retries", "5", "--", *command)

    assert (ran.returncode, counter.read_text()) == (0, "x\nx\nx\n")


def test_once_is_never_twice(cli: CommandLine) -> None:
    counter = cli.folder / "counter"

    ran = cli.run("run", "--once", "--", "sh", "-c", f"echo x >> {counter}; exit 7")

    assert (ran.returncode, counter.read_text()) == (7, "x\n")


# -- documents ---------------------------------------------------------------------------------------------------------


def test_json_is_one_document_with_everything(cli: CommandLine) -> None:
    ran = cli.run(
        "run", "--json", "--name", "made", "--tag", "a=b", "--", "sh", "-c", "printf 'x\\377'; echo e >&2; exit 4"
    )

    found = json.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (4, b"")
    assert base64.b64decode(found["stdout_base64"]) == b"x\xff"
    assert {key: found[key] for key in ("stderr", "exit_code", "status", "code", "name", "tags")} == {
        "stderr": "e\n", "exit_code": 4, "status": "failed", "code": "EXIT", "name": "made", "tags": {"a": "b"},
    }  # fmt: skip
    assert [attempt["status"] for attempt in found["attempts"]] == ["failed"]


# -- each --------------------------------------------------------------------------------------------------------------


def test_each_line_is_run_and_failures_are_summed_up(cli: CommandLine) -> None:
    lines = "".join(f"{number}\n" for number in range(1, 21))

    ran = cli.run(
        "run", "--each", "-", "--", "sh", "-c", "echo line-{}; [ $(( {} % 10 )) -ne 0 ]", stdin=lines.encode()
    )

    assert ran.returncode == 1
    assert sorted(ran.stdout.decode().split()) == sorted(f"line-{number}" for number in range(1, 21))
    assert ran.stderr.decode().splitlines()[-1] == ("retinue: 2 of 20 failed: lines 10, 20.")


def test_each_with_json_is_a_document_a_line(cli: CommandLine) -> None:
    (cli.folder / "lines").write_text("a\nb c\n")

    ran = cli.run("run", "--each", "lines", "--json", "--", "echo", "-n", "{}!")

    found = sorted((one["line_number"], one["line"], one["stdout"]) for one in map(json.loads, ran.stdout.splitlines()))
    assert (ran.returncode, found) == (0, [(1, "a", "a!"), (2, "b c", "b c!")])


def test_each_with_no_lines_is_done_at_once(cli: CommandLine) -> None:
    ran = cli.run("run", "--each", "-", "--", "false", stdin=b"\n\n")

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_no_line_of_output_is_torn_apart(cli: CommandLine) -> None:
    slow = "for n in range(20):\n for c in '{}{}{}{}':\n  print(c, end='', flush=True)\n print(flush=True)"

    ran = cli.run("run", "--workers", "4", "--each", "-", "--", sys.executable, "-c", slow, stdin=b"a\nb\nc\nd\n")

    lines = ran.stdout.decode().splitlines()
    assert len(lines) == 80
    assert [line for line in lines if line not in ("aaaa", "bbbb", "cccc", "dddd")] == []


# -- interruptions -----------------------------------------------------------------------------------------------------

# A child in a session of its own, and all of them deaf to what asks them to end.
STUBBORN = "trap '' TERM INT HUP; setsid sleep {0} & echo up; sleep {0}; sleep {0}"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_interrupted_it_ends_with_everything_it_started(cli: CommandLine, number: str, name: str) -> None:
    started = cli.start("run", "--", "sh", "-c", f"setsid sleep {number} & echo up; sleep {number}")
    assert started.stdout is not None
    started.stdout.readline()

    started.send_signal(getattr(signal, name))
    code = started.wait(timeout=10)

    assert (code, sleepers(number)) == (130, [])
    assert json.loads(cli.said("task", "show", "last", "--json"))["status"] == "cancelled"


def test_the_command_is_given_time_to_end_by_itself(cli: CommandLine) -> None:
    done = cli.folder / "done"
    started = cli.start(
        "run", "--", "sh", "-c", f"trap 'sleep 0.5; echo x > {done}; exit' TERM; echo up; sleep 100 & wait"
    )
    assert started.stdout is not None
    started.stdout.readline()

    started.send_signal(signal.SIGINT)
    started.wait(timeout=10)

    assert done.read_text() == "x\n"


def test_interrupted_twice_it_does_not_wait_and_still_leaves_nothing(cli: CommandLine, number: str) -> None:
    started = cli.start("run", "--", "sh", "-c", STUBBORN.format(number))
    assert started.stdout is not None
    started.stdout.readline()
    began = time.monotonic()

    started.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    code = started.wait(timeout=10)

    assert (code, sleepers(number)) == (130, [])
    assert time.monotonic() - began < 4


def test_killed_it_leaves_no_process_and_the_next_run_repeats_nothing(cli: CommandLine, number: str) -> None:
    counter = cli.folder / "counter"
    started = cli.start("run", "--retries", "3", "--", "sh", "-c", f"echo x >> {counter}; echo up; sleep {number}")
    assert started.stdout is not None
    started.stdout.readline()

    started.kill()
    started.wait()
    wait_until(lambda: not sleepers(number))
    again = cli.run("run", "--", "echo", "next")
    tasks = json.loads(cli.said("tasks", "--json"))["tasks"]

    assert (again.returncode, again.stdout, counter.read_text()) == (0, b"next\n", "x\n")
    assert [task["status"] for task in tasks] == ["completed", "cancelled"]


def test_a_reader_that_leaves_ends_the_command_quietly(cli: CommandLine) -> None:
    started = cli.start("run", "--", "yes")
    assert started.stdout is not None
    assert started.stderr is not None

    line = started.stdout.readline()
    started.stdout.close()
    code = started.wait(timeout=10)

    assert (line, code, started.stderr.read()) == (b"y\n", 141, b"")


def test_a_reader_that_stops_reading_holds_the_command_up_and_nothing_else(cli: CommandLine) -> None:
    started = cli.start("run", "--", "sh", "-c", "seq 1 300000")
    assert started.stdout is not None

    time.sleep(2)
    memory = psutil.Process(started.pid).memory_info().rss
    out, _ = started.communicate(timeout=15)

    assert out == "".join(f"{number}\n" for number in range(1, 300_001)).encode()
    assert memory < 200 << 20


def test_a_terminal_shows_progress_and_is_left_clean(cli: CommandLine) -> None:
    ours, theirs = pty.openpty()
    (cli.folder / "lines").write_text("1\n2\n3\n")
    started = subprocess.Popen(
        [PROGRAM, "run", "--each", "lines", "--", "sleep", "0.{}"],
        cwd=cli.folder, env=cli.env, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)

    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:
        pass  # how a terminal says that its other side is closed
    os.close(ours)

    assert started.wait(timeout=10) == 0
    assert b"0/3 done" in shown
    assert shown.endswith(b"\r\x1b[K")


def test_output_beyond_the_limit_keeps_both_ends_and_says_so(cli: CommandLine) -> None:
    ran = cli.run("run", "--output-limit", "1K", "--", "seq", "1", "1000")

    lines = ran.stdout.decode().splitlines()
    assert (lines[0], lines[-1], len(ran.stdout) < 1200) == ("1", "1000", True)
    assert ran.stderr == b"retinue: its output is longer than 1,024 bytes: the middle is left out.\n"
