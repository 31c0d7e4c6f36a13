"""`retinue run` without running: what the lines of --each become, exit codes, sizes, documents."""

from datetime import UTC, datetime

import pytest
import typer

from retinue.cli.each import per_line, read_lines
from retinue.cli.foreground import document, exit_code
from retinue.cli.run import pairs, size
from retinue.errors import Invalid
from retinue.nodes.resources import Resources
from retinue.tasks.model import Priority, Task, TaskSpec, TaskStatus


def ended(status: TaskStatus, code: str | None = None, exit_code: int | None = None) -> Task:
    return Task(
        id="tsk_1", name=None, description="", repo=None, command=["x"], function=None, priority=Priority.MEDIUM,
        labels={}, tags={}, requires=[], node=None, resources=Resources(), status=status, claimed_by=None,
        claimed_at=None, attempt=None, attempts=[], created_at=datetime(2026, 1, 1, tzinfo=UTC), ready_at=None,
        started_at=None, finished_at=None, result=None, exit_code=exit_code, code=code, error=None, progress=None,
        parent=None, after=[], max_attempts=1, timeout_seconds=None, deadline=None, on_node_loss="fail",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("task", "code"),
    [
        (ended(TaskStatus.COMPLETED, exit_code=0), 0),
        (ended(TaskStatus.FAILED, "EXIT", 3), 3),
        (ended(TaskStatus.FAILED, "EXIT", 143), 143),
        (ended(TaskStatus.FAILED, "TIMEOUT", 124), 124),
        (ended(TaskStatus.FAILED, "DEADLINE"), 124),
        (ended(TaskStatus.FAILED, "COMMAND_NOT_FOUND", 125), 125),
        (ended(TaskStatus.FAILED, "PARENT_FAILED"), 125),
        (ended(TaskStatus.FAILED, "NODE_LOST"), 125),
        (ended(TaskStatus.CANCELLED, "CANCELLED"), 130),
    ],
)
def test_a_shell_hears_how_it_ended(task: Task, code: int) -> None:
    assert exit_code(task) == code


def test_the_line_stands_wherever_the_braces_are() -> None:
    spec = TaskSpec(command=["{}", "--in={}.txt", "{}{}", "x"])

    made = [one.command for one in per_line(spec, ["a", "b c"])]

    assert made == [["a", "--in=a.txt", "aa", "x"], ["b c", "--in=b c.txt", "b cb c", "x"]]


def test_without_braces_the_line_is_the_last_argument() -> None:
    assert [one.command for one in per_line(TaskSpec(command=["echo", "-n"]), ["a"])] == [["echo", "-n", "a"]]


def test_lines_keep_their_blanks_and_empty_ones_are_passed_over(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/lines"
    with open(path, "wb") as file:
        file.write(b"one\r\n\n  two \nlast")

    assert read_lines(path) == {1: "one", 3: "  two ", 4: "last"}


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(Invalid, match=r"--each /nowhere/at/all: it cannot be read: No such file or directory\."):
        read_lines("/nowhere/at/all")


@pytest.mark.parametrize(("text", "expected"), [("64M", 64 << 20), ("1g", 1 << 30), ("10", 10), ("3k", 3072)])
def test_a_size_may_have_a_unit(text: str, expected: int) -> None:
    assert size(text, "--x") == expected


@pytest.mark.parametrize("text", ["", "M", "0", "-1", "1T", "1.5M"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        size(text, "--x")


def test_pairs_keep_everything_behind_the_first_equals_sign() -> None:
    assert pairs(["A=b=c", "B="], "--env") == {"A": "b=c", "B": ""}


def test_output_that_is_no_text_is_base64() -> None:
    found = document(ended(TaskStatus.COMPLETED), {"stdout": bytearray(b"\xff"), "stderr": bytearray(b"ok")})

    assert (found["stdout_base64"], found["stderr"], "stdout" in found) == ("/w==", "ok", False)
