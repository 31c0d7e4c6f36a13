"""`retinue demo`: real work over a git repository, with live progress and a readable report."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    repo: Annotated[Path, typer.Argument(help="A git repository, or a folder in one.")] = Path(),
    data_dir: Annotated[
        Path | None, typer.Option(help="Where to keep the tasks and their logs; a new temporary folder unless given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Tasks that run at once; one a processor unless given.", min=1)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Look at a git repository with a fleet of this machine: where its lines are, what changes, what is left to do.

    Starts a coordinator and a node in this process, fans dozens of tasks out over slices of files and history, and
    merges what they find. Changes nothing in the repository. A big one is sampled, so that it takes less than a minute.

    Examples:

        retinue demo

        retinue demo ~/src/project --json
    """
    import asyncio

    asyncio.run(_demo(repo, data_dir, workers, quiet=quiet, as_json=as_json))


async def _demo(repo: Path, data_dir: Path | None, workers: int | None, *, quiet: bool, as_json: bool) -> None:
    import shutil
    import tempfile

    import msgspec
    from rich.console import Console

    from retinue.clock import SystemClock
    from retinue.demo.progress import watcher
    from retinue.demo.report import Report, document
    from retinue.demo.repository import find
    from retinue.demo.run import run
    from retinue.embedded import connect

    repository = find(repo)
    kept = data_dir or Path(tempfile.mkdtemp(prefix="retinue-demo-"))
    clock = SystemClock()
    done = False
    try:
        async with connect(data_dir=kept, apps=(), workers=workers) as fleet:
            with watcher(Console(stderr=True), quiet=quiet) as watching:
                ran = await run(fleet, repository, kept, clock, watching)
        done = True
    finally:
        if not done and data_dir is None:
            shutil.rmtree(kept, ignore_errors=True)
    if as_json:
        typer.echo(msgspec.json.encode(document(ran, kept)))
    else:
        Report(Console(), ran, kept, clock.now()).print()
    if ran.failed:
        raise typer.Exit(1)
