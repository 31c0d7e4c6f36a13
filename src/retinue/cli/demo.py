"""`retinue demo`: real work over a git repository, with live progress and a readable report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue.cli.front import Front

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.demo.run import Ran
    from retinue.embedded import Embedded


def command(
    context: typer.Context,
    repo: Annotated[Path, typer.Argument(metavar="[REPO]", help="A git repository, or a folder in one.")] = Path(),
    workers: Annotated[
        int | None, typer.Option(help="Tasks that run at once; the number of cores, if unset.", min=1)
    ] = None,
) -> None:
    """Look at a git repository with dozens of tasks: where its lines are, what changes, what is left to do.

    Starts a coordinator and a node in this process, fans tasks out over slices of files and history, and merges what
    they find. Changes nothing in the repository; a big one is sampled, so that it takes less than a minute. The tasks
    and their output are kept in a new temporary folder, or in --data-dir.

    Examples:

        retinue demo

        retinue demo . --json
    """
    import shutil
    import tempfile

    from rich.console import Console

    from retinue.clock import SystemClock
    from retinue.demo.progress import watcher
    from retinue.demo.report import Report, document
    from retinue.demo.repository import find
    from retinue.demo.run import run

    front: Front = context.obj
    repository = find(repo)
    temporary = None if front.common.data_dir else tempfile.mkdtemp(prefix="retinue-demo-")
    if temporary is not None:
        front.flags["data_dir"] = ("demo", temporary)
        if front.loaded.config.store.url is not None:  # it keeps to its folder, whatever store is configured
            front.flags["store.url"] = ("demo", f"sqlite://{temporary}/retinue.db")
    if workers is not None:
        front.flags["coordination.max_workers"] = ("--workers", workers)
    vars(front).pop("loaded", None)  # it was read without these
    kept = front.data_dir
    clock = SystemClock()

    async def look(embedded: "Embedded", fleet: "Fleet") -> "Ran":
        with watcher(Console(stderr=True), quiet=front.quiet) as watching:
            return await run(fleet, repository, kept, clock, watching, requires=embedded.requires)

    try:
        ran = front.serve("own", look)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if front.json:
        front.document(document(ran, kept))
    else:
        Report(Console(), ran, kept, clock.now()).print()
    if ran.failed:
        raise typer.Exit(1)
