"""`retinue run`: a command in the foreground, as if started by itself: its output live, its input, its exit code."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from retinue.cli.foreground import document, exit_code, refuse_hopeless, tied
from retinue.cli.front import Front

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.embedded import Embedded
    from retinue.tasks.model import Task, TaskSpec

SETTINGS: Final = {"allow_interspersed_args": False}


def command(
    context: typer.Context,
    argv: Annotated[list[str], typer.Argument(metavar="CMD…", help="The command and its arguments.")],
    each: Annotated[
        str | None,
        typer.Option(metavar="FILE|-", help="Run once per line of FILE (-: of standard input), `{}` being the line."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Set a variable. Repeatable.")] = None,
    pass_env: Annotated[
        list[str] | None, typer.Option(metavar="K", help="Hand on a variable of this environment. Repeatable.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="10m", help="End it after this long, with exit code 124.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, max=99, help="Try it again so often when it fails.")] = 0,
    once: Annotated[bool, typer.Option("--once", help="Never start it twice, whatever happens; the default.")] = False,
    name: Annotated[str | None, typer.Option(help="A name for the task.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Run where this label is. Repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="K=V", help="A note to find it by. Repeatable.")] = None,
    requires: Annotated[
        list[str] | None, typer.Option(metavar="CAPABILITY", help="Run where this is, such as tool:git. Repeatable.")
    ] = None,
    node: Annotated[str | None, typer.Option(help="Run on this node.")] = None,
    priority: Annotated[str | None, typer.Option(help="critical, high, medium or low.", show_default=False)] = None,
    after: Annotated[list[str] | None, typer.Option(metavar="TASK", help="Run after this task. Repeatable.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Run so many at once; one per core unless given.")] = None,
    output_limit: Annotated[
        str, typer.Option(metavar="64M", help="Of longer output the middle is left out.", show_default=False)
    ] = "64M",
    no_repo: Annotated[
        bool, typer.Option("--no-repo", help="Run in an empty folder, without a note about it.")
    ] = False,
    repo: Annotated[str | None, typer.Option(hidden=True)] = None,
    ref: Annotated[str | None, typer.Option(hidden=True)] = None,
    clean: Annotated[bool, typer.Option("--clean", hidden=True)] = False,
    check: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    artifact: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    secret_env: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    detach: Annotated[bool, typer.Option("--detach", hidden=True)] = False,
) -> None:
    """Run a command in the foreground: its output comes as it is written, and its exit code is ours.

    It runs in an empty folder. What is piped in goes to it. Ctrl-C ends it with everything it has started. Our own
    exit codes are 124 (timed out), 125 (could not be run) and 130 (interrupted). With --json the output is not
    streamed: one document at the end has it, the exit code and all attempts; with --each, one line per finished task.

    Examples:

        retinue run -- echo hello

        retinue run --timeout 10m --retries 2 -- sh -c 'exit 0'

        printf 'one\\ntwo\\n' | retinue run --each - -- echo 'this is {}.'

        echo some text | retinue run -- wc -w

        retinue run --env GREETING=hello --json -- printenv GREETING
    """
    front: Front = context.obj
    _refuse(repo=repo, ref=ref, clean=clean, check=check, artifact=artifact, secret_env=secret_env, detach=detach)
    if once and retries:
        raise typer.BadParameter("it contradicts --retries", param_hint="--once")
    if workers is not None:
        front.flags["coordination.max_workers"] = ("--workers", workers)
    spec = _spec(
        front,
        name=name,
        command=list(argv),
        env=pairs(env, "--env"),
        pass_env=pass_env or [],
        timeout_seconds=seconds(timeout, "--timeout"),
        max_attempts=retries + 1,
        on_node_loss="requeue" if retries else "fail",
        labels=pairs(label, "--label"),
        tags=pairs(tag, "--tag"),
        requires=requires or [],
        node=node,
        priority=priority,
        after=after or [],
        output_limit_bytes=size(output_limit, "--output-limit"),
    )
    if not no_repo and _in_work_tree(Path.cwd()):
        front.note("in an empty folder, not in this repository: that is not built yet. (--no-repo: no note)")
    if each is not None:
        from retinue.cli.each import run_each

        raise typer.Exit(run_each(front, spec, each))
    raise typer.Exit(front.serve("own", lambda embedded, fleet: Single(front, embedded, fleet, spec).run()))


@dataclass
class Single:
    """One command in the foreground."""

    front: Front
    embedded: "Embedded"
    fleet: "Fleet"
    spec: "TaskSpec"
    output: dict[str, bytearray] = field(default_factory=dict)

    async def run(self) -> int:
        """Its exit code, after it has ended."""
        import asyncio

        from retinue.cli.stdio import piped
        from retinue.errors import RetinueError

        task = await self.fleet.tasks.submit(await tied(self.embedded, self.fleet, self.spec, stdin=piped()))
        try:
            await refuse_hopeless(self.fleet, task)
            feeding = asyncio.create_task(self._feed(task.id)) if piped() else None
            try:
                await self._show(task.id)
            finally:
                if feeding is not None:
                    feeding.cancel()
                    await asyncio.gather(feeding, return_exceptions=True)
            ended = await self.fleet.tasks.get(task.id)
        except BaseException:
            try:
                await self.fleet.tasks.cancel(task.id)
            except RetinueError:
                pass  # it has ended meanwhile, or ends with our session
            raise
        if self.front.json:
            self.front.document(document(ended, self.output))
        else:
            self._say_how(ended)
        return exit_code(ended)

    async def _feed(self, task: str) -> None:
        """Hand standard input on until its end, or until the command has had enough."""
        from retinue.cli.stdio import incoming
        from retinue.errors import RetinueError

        try:
            async for data in incoming():
                await self.fleet.tasks.write(task, data)
            await self.fleet.tasks.write(task, b"", end=True)
        except RetinueError:
            pass  # the task has ended

    async def _show(self, task: str) -> None:
        from retinue.cli.stdio import Out

        out = Out()
        attempt: str | None = None
        size = 0
        async for piece in self.fleet.tasks.log(task, follow=True):
            if attempt not in (None, piece.attempt):
                self.front.note("the attempt failed; the next one begins.")
                size = 0
            attempt = piece.attempt
            size += len(piece.base64)
            if piece.offset == 0 and self.front.json:
                self.output[piece.stream] = bytearray()
            if self.front.json:
                self.output[piece.stream] += piece.base64
            else:
                await out.write(piece.stream, piece.base64)
        if size > self.spec.output_limit_bytes:
            self.front.note(
                f"its output is longer than {self.spec.output_limit_bytes:,} bytes: the middle is left out."
            )

    def _say_how(self, task: "Task") -> None:
        """A line about an end that the command itself said nothing about."""
        if task.code not in (None, "EXIT"):
            self.front.note(task.error or f"it ended as {task.status}.")
        elif task.exit_code and task.exit_code > 128:
            self.front.note(task.error or "")


# -- options -----------------------------------------------------------------------------------------------------------


def _spec(front: Front, **given: Any) -> "TaskSpec":
    from retinue.tasks.model import Priority, TaskSpec, check

    priority = given.pop("priority") or front.loaded.config.tasks.default_priority
    if priority not in set(Priority):
        raise typer.BadParameter(f"{priority!r} is none of {', '.join(Priority)}", param_hint="--priority")
    return check(TaskSpec(priority=Priority(priority), **given))


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """`K=V` options as a mapping."""
    for text in given or ():
        if not text.partition("=")[0] or "=" not in text:
            raise typer.BadParameter(f"{text!r}: write K=V", param_hint=option)
    return dict(text.split("=", 1) for text in given or ())


def seconds(text: str | None, option: str) -> float | None:
    """A duration option in seconds."""
    from retinue.config import duration

    try:
        return None if text is None else duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}", param_hint=option) from None


def size(text: str, option: str) -> int:
    """`64M`, `1G` or a number of bytes."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    factor = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit)
    if factor is None or not number.isdecimal() or not int(number):
        raise typer.BadParameter(f"{text!r}: write a size such as 64M or 1G", param_hint=option)
    return int(number) * factor


def _refuse(**options: Any) -> None:
    from retinue.errors import NotSupported

    for name, value in options.items():
        if value:
            option = name.replace("_", "-")
            raise NotSupported(f"--{option}: this part of Retinue is not built yet; leave it out.")


def _in_work_tree(folder: Path) -> bool:
    return any((above / ".git").exists() for above in [folder, *folder.parents]) and not os.environ.get("RETINUE_TASK")
