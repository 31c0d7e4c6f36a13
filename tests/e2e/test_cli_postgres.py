"""The command line on PostgreSQL: the same verbs, with nothing but a setting."""

import pytest

from command_line import CommandLine

pytestmark = [pytest.mark.real, pytest.mark.postgres]


@pytest.fixture
def on_postgres(cli: CommandLine, postgres_url: str) -> CommandLine:
    cli.env["RETINUE_STORE__URL"] = postgres_url
    return cli


def test_run_brings_output_and_exit_code(on_postgres: CommandLine) -> None:
    ran = on_postgres.run("run", "--", "sh", "-c", "echo hi; exit 3")

    assert (ran.returncode, ran.stdout) == (3, b"hi\n")


def test_a_submitted_task_is_run_by_task_wait_and_seen_by_every_verb_that_looks(on_postgres: CommandLine) -> None:
    submitted = on_postgres.run("task", "submit", "-", stdin=b"command: [echo, hello]\n")
    task = submitted.stdout.decode().strip()

    waited = on_postgres.run("task", "wait", task)

    assert waited.returncode == 0, waited.stderr
    assert task in on_postgres.said("task", "list")
    assert on_postgres.said("task", "log", task) == "hello\n"
    assert "1 completed" in on_postgres.said("status")
    assert "task.completed" in on_postgres.said("events")
