"""The other verbs as processes, and bad days: held, restored, newer, broken, full, unreadable. One sentence each."""

import contextlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from command_line import PROGRAM, CommandLine
from retinue.cli.main import VERBS
from retinue.cli.tree import examples

pytestmark = pytest.mark.real


def tasks_of(cli: CommandLine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cli.said("tasks", "--json"))["tasks"]
    return found


def submit(cli: CommandLine, text: str) -> list[str]:
    ran = cli.run("task", "submit", "-", stdin=text.encode())
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.decode().split()


def database(cli: CommandLine) -> Path:
    return Path(cli.env["RETINUE_DATA_DIR"]) / "retinue.db"


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_a_submitted_task_waits_until_somebody_serves(cli: CommandLine) -> None:
    counter = cli.folder / "counter"
    [task] = submit(cli, f"command: [sh, -c, 'echo x >> {counter}; echo done']\nname: kept\n")

    ran = cli.run("run", "--", "true")
    looked = cli.said("task", "show", task)
    before = counter.exists()
    waited = cli.run("task", "wait", task)

    assert (ran.returncode, before) == (0, False)
    assert "No node takes it just now" in looked
    assert (waited.returncode, waited.stdout, counter.read_text()) == (0, f"{task} completed\n".encode(), "x\n")
    assert cli.said("task", "log", task) == "done\n"


def test_a_run_that_is_retried_is_nobodys_and_runs_without_its_client(cli: CommandLine) -> None:
    counter = cli.folder / "counter"
    cli.run("run", "--", "sh", "-c", f"cat; echo x >> {counter}", stdin=b"input")
    cli.said("task", "retry", "last")

    other = cli.run("run", "--", "true")
    once = counter.read_text()
    first = tasks_of(cli)[-1]["id"]
    waited = cli.run("task", "wait", first)

    assert (other.returncode, once) == (0, "x\n")
    assert (waited.returncode, counter.read_text()) == (0, "x\nx\n")


def test_cancel_and_what_cannot_be_cancelled(cli: CommandLine) -> None:
    [task] = submit(cli, "command: [echo, never]\n")

    cancelled = cli.run("task", "cancel", task)
    waited = cli.run("task", "wait", task)
    cli.run("run", "--", "true")
    final = cli.run("task", "cancel", "last")
    missing = cli.run("task", "show", "tsk_nothing")

    assert (cancelled.returncode, cancelled.stdout) == (0, f"{task} cancelled\n".encode())
    assert waited.returncode == 1
    assert (final.returncode, final.stderr) == (
        1,
        b"retinue: The task has ended; only `retry` makes a new attempt of it.\n",
    )
    assert (missing.returncode, missing.stderr) == (
        1, b"retinue: There is no task tsk_nothing; `retinue task list` shows them.\n",
    )  # fmt: skip


def test_waiting_gives_up_when_told_to(cli: CommandLine) -> None:
    [task] = submit(cli, "command: [echo, x]\nlabels: {pool: gpu}\n")

    waited = cli.run("task", "wait", task, "--timeout", "500ms")

    assert waited.returncode == 124
    assert b"none has the label pool=gpu" in waited.stderr


def test_tasks_come_from_yaml_with_durations_and_several_at_once(cli: CommandLine) -> None:
    submit(cli, "- command: [echo, a]\n  timeout: 10m\n  backoff: 5s\n- {command: [echo, b], priority: high}\n")

    found = [(task["command"][1], task["timeout_seconds"], task["priority"]) for task in tasks_of(cli)]
    assert found == [("b", None, "high"), ("a", 600.0, "medium")]


WRONG_TASKS = {
    "no mapping": ("hello", "task 1: a task is a mapping such as `command: [echo, hello]`."),
    "unknown field": ("{command: [a], colour: red}", "task 1: Object contains unknown field `colour`."),
    "wrong type": ("command: echo", "task 1: command: Expected `array | null`, got `str`."),
    "nothing to run": ("name: x", "task 1: command: give exactly one of command and function"),
    "second is wrong": (
        "[{command: [a]}, {command: []}]",
        "task 2: command: name the program to run, then its arguments",
    ),
    "no duration": ("{command: [a], timeout: 10}", "task 1: timeout: expected a duration such as 30s, 5m, 1h or 30d"),
    "not built": (
        "{command: [a], repo: x}",
        "task 1: repo: this part of Retinue is not built yet; leave the field out.",
    ),
    "no YAML": ("{a: [", "standard input:1: not valid YAML: expected the node content, but found '<stream end>'."),
}


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_a_wrong_task_is_told_and_none_is_taken(name: str, cli: CommandLine) -> None:
    text, sentence = WRONG_TASKS[name]

    ran = cli.run("task", "submit", "-", stdin=text.encode())

    expected = sentence if sentence.startswith("standard") else f"standard input: {sentence}"
    assert (ran.returncode, ran.stdout, ran.stderr.decode()) == (2, b"", f"retinue: {expected}\n")
    assert tasks_of(cli) == []


def test_output_of_others_cannot_steer_the_terminal_and_is_exact_elsewhere(cli: CommandLine) -> None:
    raw = b"\x1b]0;owned\x07red \x1b[31mtext\x1b[0m\n"
    cli.run("run", "--", "cat", stdin=raw)

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [PROGRAM, "task", "log", "last"], cwd=cli.folder, env=cli.env, stdin=subprocess.DEVNULL, stdout=theirs
    ) as started:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that its other side is closed
            while piece := os.read(ours, 65536):
                shown += piece
        started.wait(timeout=10)
    os.close(ours)

    assert shown == b"red text\r\n"
    assert cli.run("task", "log", "last").stdout == raw


# -- a data directory that is in use -----------------------------------------------------------------------------------


@pytest.fixture
def busy(cli: CommandLine) -> Iterator["subprocess.Popen[bytes]"]:
    """A run that holds the data directory."""
    started = cli.start("run", "--", "sh", "-c", "echo up; sleep 1000")
    assert started.stdout is not None
    started.stdout.readline()
    yield started
    started.send_signal(signal.SIGINT)
    started.wait(timeout=10)


def test_whoever_writes_is_told_who_holds_it(cli: CommandLine, busy: "subprocess.Popen[bytes]") -> None:
    run = cli.run("run", "--", "true")
    cancel = cli.run("task", "cancel", "last")

    sentence = (
        f"retinue: The data directory {cli.env['RETINUE_DATA_DIR']} is in use by process {busy.pid} (retinue run --); "
        "wait for it, stop it, or choose another with --data-dir.\n"
    )
    assert (run.returncode, run.stderr.decode()) == (3, sentence)
    assert (cancel.returncode, cancel.stderr.decode()) == (3, sentence)


def test_whoever_reads_sees_what_happens_there(cli: CommandLine, busy: "subprocess.Popen[bytes]") -> None:
    listed = cli.run("tasks", "--json")
    status = json.loads(cli.said("status", "--json"))
    nodes = json.loads(cli.said("nodes", "--json"))["nodes"]
    events = cli.said("events", "--json").splitlines()

    assert [task["status"] for task in json.loads(listed.stdout)["tasks"]] == ["running"]
    assert listed.stderr.startswith(f"retinue: Only looking: process {busy.pid} ".encode())
    assert (status["pool"]["status"], status["held_by"]["pid"]) == ("running", busy.pid)
    assert [node["status"] for node in nodes] == ["online"]
    assert "task.started" in [json.loads(event)["type"] for event in events]


def test_a_task_of_another_process_can_be_followed_to_its_end(cli: CommandLine) -> None:
    started = cli.start("run", "--", "sh", "-c", "echo one; sleep 1.5; echo two; exit 5")
    assert started.stdout is not None
    started.stdout.readline()

    followed = cli.run("task", "log", "-f", "last")
    waited = cli.run("task", "wait", "last")

    assert (followed.stdout, waited.returncode) == (b"one\ntwo\n", 1)


def test_events_can_be_followed_from_another_process(cli: CommandLine) -> None:
    cli.run("run", "--", "true")
    following = cli.start("events", "-f", "--json", "--limit", "0", "--type", "task.completed")
    assert following.stdout is not None
    time.sleep(1)

    cli.run("run", "--", "echo", "seen")
    line = json.loads(following.stdout.readline())
    following.send_signal(signal.SIGINT)

    assert (line["type"], following.wait(timeout=10)) == ("task.completed", 130)


def test_looking_makes_nothing(cli: CommandLine) -> None:
    ran = cli.run("status")

    assert ran.returncode == 0
    assert b"There is nothing in " in ran.stderr
    assert not database(cli).parent.exists()


# -- bad days ----------------------------------------------------------------------------------------------------------


def test_a_mistake_in_the_configuration_is_one_line(cli: CommandLine) -> None:
    (cli.folder / "retinue.yaml").write_text("tasks:\n  claim_timout: 5m\nretention: {logs: x}\n")
    began = time.monotonic()

    ran = cli.run("run", "--", "true")
    took = time.monotonic() - began
    validated = cli.run("config", "validate")

    line = "retinue.yaml:2: tasks.claim_timout: unknown key; did you mean claim_timeout?"
    assert (ran.returncode, ran.stderr.decode()) == (2, f"retinue: {line}\n")
    assert (validated.returncode, validated.stderr.decode().splitlines()[0]) == (2, line)
    assert took < 2


def test_settings_are_used(cli: CommandLine) -> None:
    (cli.folder / "retinue.yaml").write_text(
        "coordination: {node_id: box, max_workers: 3, labels: {pool: gpu}}\ntasks: {default_priority: low}\n"
    )

    ran = cli.run("run", "--label", "pool=gpu", "--json", "--", "true")
    nodes = json.loads(cli.said("nodes", "--json"))["nodes"]

    assert (ran.returncode, json.loads(ran.stdout)["priority"]) == (0, "low")
    assert [(node["name"], node["workers"], node["labels"]) for node in nodes] == [("box", 3, {"pool": "gpu"})]


def test_a_store_of_a_newer_program_is_refused(cli: CommandLine) -> None:
    cli.run("run", "--", "true")
    with contextlib.closing(sqlite3.connect(database(cli))) as store:
        store.execute("UPDATE meta SET value = '99' WHERE key IN ('version', 'min_compatible')")
        store.commit()

    ran = [cli.run("run", "--", "true"), cli.run("tasks"), cli.run("task", "cancel", "last")]

    assert [one.returncode for one in ran] == [2, 2, 2]
    assert {one.stderr.decode().partition(" (schema")[0] for one in ran} == {
        "retinue: The store was written by a newer Retinue"
    }


def test_a_store_that_was_put_back_is_noticed_and_taken_when_told_to(cli: CommandLine) -> None:
    cli.run("run", "--", "true")
    kept = cli.folder / "backup.db"
    shutil.copy(database(cli), kept)
    cli.run("run", "--", "true")
    shutil.copy(kept, database(cli))
    for name in ("retinue.db-wal", "retinue.db-shm"):
        database(cli).with_name(name).unlink(missing_ok=True)

    refused = cli.run("run", "--", "true")
    accepted = cli.run("restore", "--accept")
    after = cli.run("run", "--json", "--", "true")

    assert refused.returncode == 2
    assert b"`retinue restore --accept` takes it as it is." in refused.stderr
    assert (accepted.returncode, b"epoch 1" in accepted.stdout) == (0, True)
    assert json.loads(after.stdout)["attempts"][0]["fence"] > 1 << 32


def test_a_folder_that_cannot_be_used_is_one_sentence(cli: CommandLine) -> None:
    (cli.folder / "file").write_text("")

    ran = cli.run("run", "--data-dir", "file/data", "--", "true")
    looked = cli.run("tasks", "--data-dir", "file/data")

    assert ran.returncode == 2
    assert b"file/data cannot be used: Not a directory; choose another with --data-dir.\n" in ran.stderr
    assert (looked.returncode, looked.stderr.count(b"\n")) == (3, 1)


def test_a_file_that_is_no_store_is_one_sentence(cli: CommandLine) -> None:
    database(cli).parent.mkdir()
    database(cli).write_bytes(b"not a database, only some text" * 100)

    ran = cli.run("run", "--", "true")
    looked = cli.run("tasks")

    assert (ran.returncode, looked.returncode) == (2, 2)
    assert ran.stderr == b"retinue: This file is not a database of Retinue; choose another data directory.\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_work_goes_on_when_there_is_room(cli: CommandLine, small_disk: Path) -> None:
    cli.env["RETINUE_DATA_DIR"] = str(small_disk / "data")
    before = cli.run("run", "--", "echo", "before")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)

    full = cli.run("run", "--", "true")
    looked = cli.run("task", "log", "--json", "last")
    filler.unlink()
    after = cli.run("run", "--", "echo", "after")

    assert (before.stdout, looked.returncode) == (b"before\n", 0)
    assert (full.returncode, full.stdout) == (3, b"")
    assert full.stderr.startswith(b"retinue: The disk is full")
    assert full.stderr.count(b"\n") == 1
    assert after.stdout == b"after\n"


def test_an_error_of_ours_shows_its_origin_only_when_asked(cli: CommandLine) -> None:
    plain = cli.run("task", "show", "nothing")
    debug = cli.run("task", "show", "nothing", "--debug")

    assert b"Traceback" not in plain.stderr
    assert b"Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == 1


def test_doctor_finds_this_machine_fit(cli: CommandLine) -> None:
    cli.run("run", "--", "true")

    found = {one["what"]: one for one in json.loads(cli.said("doctor", "--json"))["findings"]}

    assert found["store"]["says"] == "sqlite: 1 tasks; every commit is synced to the disk"
    assert (found["data"]["state"], found["python"]["state"]) == ("ok", "ok")


# -- every example runs ------------------------------------------------------------------------------------------------


def shown() -> Iterator[str]:
    for verb in VERBS.values():
        if verb.target is None or verb.target.startswith("demo"):
            continue  # the demo and the simulator take their time, and have tests of their own
        module, _, attribute = verb.target.partition(":")
        found = getattr(import_module(f"retinue.cli.{module}"), attribute)
        functions: list[Callable[..., Any]] = (
            [function for name, function in found.items() if name] if isinstance(found, dict) else [found]
        )
        for function in functions:
            yield from examples(function)


@pytest.mark.parametrize("line", sorted(set(shown())))
def test_every_example_of_the_help_runs(line: str, cli: CommandLine) -> None:
    (cli.folder / "tasks.yaml").write_text("- command: [echo, one]\n- command: [echo, two]\n")
    [waiting] = submit(cli, "command: [echo, waiting]\n")
    cli.run("run", "--", "echo", "done")
    node = json.loads(cli.said("nodes", "--json"))["nodes"][0]["name"]
    typed = line.replace("TASK", waiting).replace("NODE", node).replace("\\\\n", "\\n")

    ran = subprocess.run(
        ["sh", "-c", typed], cwd=cli.folder, env=cli.env | {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=15, check=False,
    )  # fmt: skip

    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False), ran.stderr.decode()
