"""`retinue task …`: submit tasks, look at them, read their output, wait for them, cancel and retry them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from retinue.cli.front import Front
from retinue.cli.text import plain, shown_command, span

if TYPE_CHECKING:
    from retinue.client.client import Fleet, LogPiece
    from retinue.embedded import Embedded
    from retinue.tasks.model import Task, TaskSpec

LAST: Final = "last"
TIMED_OUT: Final = 124
Id = Annotated[str, typer.Argument(metavar="TASK", help="A task's id, or `last` for the newest.")]
Ids = Annotated[list[str], typer.Argument(metavar="TASK…", help="Ids of tasks, or `last` for the newest.")]


def listing(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="Only tasks in this status, such as failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 50,
) -> None:
    """Tasks, newest first.

    Examples:

        retinue task list

        retinue task list --status failed --json
    """
    front: Front = context.obj
    tasks = front.look(lambda fleet: fleet.tasks.list(status=status, limit=limit))
    if front.json:
        front.document({"tasks": tasks})
        return
    now = datetime.now(UTC)  # noqa: TID251 - a command line shows ages by the machine's clock
    rows = [
        [task.id, _how(task), span(now - task.created_at), _took(task), task.claimed_by or "", _what(task)]
        for task in tasks
    ]
    if rows:
        front.table(["task", "status", "age", "took", "node", "what"], rows)
    else:
        front.note("there are no such tasks.")


def show(context: typer.Context, task: Id) -> None:
    """A task with its attempts and, while it waits, why.

    Examples:

        retinue task show last

        retinue task show TASK --json
    """
    front: Front = context.obj
    found = front.look(lambda fleet: _get(fleet, task))
    if front.json:
        front.document(found)
        return
    lines: list[tuple[str, Any]] = [
        ("task", found.id), ("name", found.name), ("description", found.description), ("status", _how(found)),
        ("waits", found.waiting_because and found.waiting_because.sentence), ("error", found.error),
        ("runs", _what(found)), ("priority", found.priority), ("labels", _pairs(found.labels)),
        ("requires", ", ".join(one for one in found.requires if not one.startswith("client:"))),
        ("tags", _pairs(found.tags)), ("after", ", ".join(found.after)), ("created", _when(found.created_at)),
        ("started", _when(found.started_at)), ("finished", _when(found.finished_at)), ("took", _took(found)),
        ("result", found.result), ("progress", found.progress and (found.progress.message or found.progress.stage)),
    ]  # fmt: skip
    for name, value in lines:
        if value not in (None, "", [], {}):
            print(f"{name:<12} {plain(str(value))}")
    for attempt in found.attempts:
        code = "" if attempt.exit_code is None else f" with exit code {attempt.exit_code}"
        took = attempt.ended_at and attempt.started_at and f" after {span(attempt.ended_at - attempt.started_at)}"
        print(f"{'attempt':<12} {attempt.id} {attempt.status}{code}{took or ''} on {plain(attempt.node)}")


def log(
    context: typer.Context,
    task: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    attempt: Annotated[str | None, typer.Option(help="Only this attempt's.")] = None,
    stream: Annotated[str | None, typer.Option(help="Only stdout or only stderr.")] = None,
) -> None:
    """The output of a task: what it wrote to standard output on ours, its standard error on ours.

    Bytes as they came; on a terminal without the sequences that would steer it.

    Examples:

        retinue task log last

        retinue task log TASK --stream stdout > output.bin
    """
    front: Front = context.obj
    if stream not in (None, "stdout", "stderr"):
        raise typer.BadParameter(f"{stream!r}: stdout or stderr", param_hint="--stream")

    async def showing(fleet: "Fleet") -> None:
        from retinue.cli.stdio import Shown

        out = Shown()
        found = await _get(fleet, task)
        async for piece in fleet.tasks.log(found.id, follow=follow, attempt=attempt):
            if stream in (None, piece.stream):
                if front.json:
                    front.document(_piece(piece))
                else:
                    await out.write(piece.stream, piece.base64)
        await out.end()

    front.look(showing)


def cancel(context: typer.Context, tasks: Ids) -> None:
    """Cancel tasks and everything below them.

    Examples:

        retinue task cancel TASK
    """
    front: Front = context.obj
    ended = front.steer(lambda fleet: _each(fleet, tasks, fleet.tasks.cancel))
    _answer(front, ended)


def retry(context: typer.Context, tasks: Ids) -> None:
    """Run tasks that have ended once more. They wait for `retinue task wait`, or for whoever serves.

    Examples:

        retinue task retry last
    """
    front: Front = context.obj
    again = front.steer(lambda fleet: _each(fleet, tasks, fleet.tasks.retry))
    _answer(front, again)


def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="YAML or JSON: a task, or a list of them.")],
) -> None:
    """Submit tasks and print their ids, one a line. All of them are checked before the first is taken.

    A task has the fields of the interface (`command`, `name`, `env`, `labels`, `after`, `max_attempts`, …), with
    `timeout: 10m` and `backoff: 5s` for the ones in seconds. It is kept, and runs when somebody serves.

    Examples:

        retinue task submit tasks.yaml

        echo 'command: [echo, hello]' | retinue task submit -
    """
    front: Front = context.obj
    specs = _read(file, front.loaded.config.tasks.default_priority)
    ids = front.steer(lambda fleet: fleet.tasks.submit_many(specs))
    if front.json:
        front.document({"tasks": [{"id": task} for task in ids]})
    else:
        for task in ids:
            print(task)
    if ids:
        front.note("kept until somebody serves; `retinue task wait` with their ids runs them now.")


def wait(
    context: typer.Context,
    tasks: Ids,
    timeout: Annotated[
        str | None, typer.Option(metavar="10m", help="Give up after this long, with exit code 124.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Run so many at once; one per core unless given.")] = None,
) -> None:
    """Wait until tasks have ended: exit code 0 when all of them completed, else 1.

    When no other process works on the data directory, this one runs what waits there until they have ended.

    Examples:

        retinue task wait last

        retinue task wait TASK --timeout 10m
    """
    from retinue.cli.run import seconds
    from retinue.coordinator.datadir import holder

    front: Front = context.obj
    limit = seconds(timeout, "--timeout")
    if workers is not None:
        front.flags["coordination.max_workers"] = ("--workers", workers)
    known = front.look(lambda fleet: _each(fleet, tasks, fleet.tasks.get))
    try:
        if holder(front.data_dir) is None and any(task.finished_at is None for task in known):
            ended = front.serve("all", lambda embedded, fleet: _serving(front, embedded, fleet, known, limit))
        else:
            ended = front.look(lambda fleet: _ended(fleet, known, limit))
    except TimeoutError:
        front.note("not all of them have ended yet.")
        raise typer.Exit(TIMED_OUT) from None
    _answer(front, ended)
    raise typer.Exit(0 if all(task.status == "completed" for task in ended) else 1)


GROUP: Final = {
    "": "Tasks: durable units of work with a result.",
    "list": listing,
    "show": show,
    "log": log,
    "submit": submit,
    "wait": wait,
    "cancel": cancel,
    "retry": retry,
}


# -- waiting -----------------------------------------------------------------------------------------------------------


async def _ended(fleet: "Fleet", tasks: "list[Task]", limit: float | None) -> "list[Task]":
    import asyncio

    from retinue.clock import SystemClock

    async with SystemClock().timeout(limit):
        return list(await asyncio.gather(*(fleet.tasks.wait(task.id) for task in tasks)))


async def _serving(
    front: Front, embedded: "Embedded", fleet: "Fleet", tasks: "list[Task]", limit: float | None
) -> "list[Task]":
    """Run what waits until those have ended, then take nothing new and let the rest of what was begun end too."""
    import asyncio

    for task in tasks:
        now = await fleet.tasks.get(task.id)
        if now.waiting_because is not None and now.waiting_because.code == "NO_MATCHING_NODE":
            front.note(f"{task.id}: {now.waiting_because.sentence}")
    ended = await _ended(fleet, tasks, limit)
    embedded.coordinator.dispatcher.paused = True
    begun = [task for status in ("claimed", "running") for task in await fleet.tasks.list(status=status, limit=500)]
    if begun:
        front.note(f"{len(begun)} others that were begun meanwhile are let end; Ctrl-C hands them back.")
        await asyncio.gather(*(fleet.tasks.wait(task.id) for task in begun))
    return ended


# -- tasks out of files ------------------------------------------------------------------------------------------------


def _read(file: str, priority: str) -> "list[TaskSpec]":
    """The specs in a file.

    Raises:
        Invalid: the file, or one of the tasks in it, is wrong.
    """
    import sys

    import yaml

    from retinue.config import documents
    from retinue.errors import Invalid, RetinueError

    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        found = documents(text.decode())
    except OSError as error:
        raise Invalid(f"{name}: it cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Invalid(f"{name}: it is not UTF-8 text.") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise Invalid(
            f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or 'nested too deeply'}."
        ) from None
    many = [one for document in found for one in (document if isinstance(document, list) else [document])]
    specs = []
    for number, one in enumerate(many, 1):
        try:
            specs.append(_spec(one, priority))
        except RetinueError as error:
            raise type(error)(f"{name}: task {number}: {error.message}", **error.details) from None
    return specs


def _spec(document: Any, priority: str) -> "TaskSpec":
    import msgspec

    from retinue.config import duration
    from retinue.errors import Invalid
    from retinue.tasks.model import TaskSpec, check

    if not isinstance(document, dict):
        raise Invalid("a task is a mapping such as `command: [echo, hello]`.")
    fields = {"priority": priority, **document}
    for name in ("timeout", "backoff"):
        if name in fields:
            try:
                fields[f"{name}_seconds"] = duration(str(fields.pop(name))).total_seconds()
            except ValueError as error:
                raise Invalid.field(name, str(error)) from None
    try:
        return check(msgspec.convert(fields, TaskSpec))
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `")
        raise Invalid(f"{path.rstrip('`').removeprefix('$.')}{': ' if path else ''}{problem}.") from None


# -- looking -----------------------------------------------------------------------------------------------------------


async def _get(fleet: "Fleet", task: str) -> "Task":
    return (await _each(fleet, [task], fleet.tasks.get))[0]


async def _id(fleet: "Fleet", task: str) -> str:
    from retinue.errors import NotFound

    if task != LAST:
        return task
    newest = await fleet.tasks.list(limit=1)
    if not newest:
        raise NotFound("There are no tasks yet; `retinue run -- CMD` makes one.")
    return newest[0].id


async def _each(fleet: "Fleet", tasks: list[str], verb: Any) -> "list[Task]":
    from retinue.errors import NotFound

    done: list[Task] = []
    for task in tasks:
        try:
            done.append(await verb(await _id(fleet, task)))
        except NotFound as error:
            raise NotFound(
                f"There is no task {plain(task)}; `retinue task list` shows them.", **error.details
            ) from None
    return done


def _answer(front: Front, tasks: "list[Task]") -> None:
    if front.json:
        front.document({"tasks": tasks})
        return
    for task in tasks:
        print(f"{task.id} {_how(task)}")


def _how(task: "Task") -> str:
    """Its status, with the exit code or the reason where it failed."""
    if task.status != "failed":
        return str(task.status)
    return f"failed ({task.exit_code})" if task.code == "EXIT" else f"failed ({task.code})"


def _what(task: "Task") -> str:
    what = shown_command(task.command) if task.command is not None else f"{plain(task.function or '')}()"
    return f"{plain(task.name)}: {what}" if task.name else what


def _took(task: "Task") -> str:
    return span(task.finished_at - task.started_at) if task.finished_at and task.started_at else ""


def _when(at: datetime | None) -> str:
    return "" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _pairs(pairs: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in pairs.items())


def _piece(piece: "LogPiece") -> dict[str, Any]:
    import base64

    said: dict[str, Any] = {"attempt": piece.attempt, "stream": piece.stream, "offset": piece.offset}
    try:
        return said | {"text": piece.base64.decode()}
    except UnicodeDecodeError:
        return said | {"base64": base64.b64encode(piece.base64).decode()}
