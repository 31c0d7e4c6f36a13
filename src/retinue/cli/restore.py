"""`retinue restore --accept`: take a store that was put back to an older state as it is."""

import asyncio
from typing import Annotated

import typer

from retinue.cli.front import Front


def command(
    context: typer.Context,
    accept: Annotated[
        bool, typer.Option("--accept", help="Go on with the store as it is; every claim of before is void.")
    ] = False,
) -> None:
    """Go on with a store that is older than what this machine remembers of it, as after putting back a backup.

    What happened after the backup is forgotten. Tasks that ran at its time are run again, or fail, as they say
    themselves; whoever still holds one of their claims is refused from now on.

    Examples:

        retinue restore --accept
    """
    from retinue.clock import SystemClock
    from retinue.coordinator.datadir import DataDir
    from retinue.coordinator.opening import accept_restore

    front: Front = context.obj
    if not accept:
        raise typer.BadParameter("say --accept to go on with the store as it is", param_hint="--accept")
    data_dir = DataDir(front.data_dir)
    data_dir.hold()
    try:
        accepted = asyncio.run(accept_restore(data_dir, front.loaded.config.store.url, SystemClock()))
    finally:
        data_dir.release()
    if front.json:
        front.document({"accepted": accepted is not None, "epoch": accepted and accepted.epoch})
    elif accepted is None:
        print("The store is not behind what this machine remembers; there is nothing to accept.")
    else:
        lost = max(0, accepted.remembered[1] - accepted.found[1])
        print(f"Accepted: {lost} events are forgotten, and every claim of before is void (epoch {accepted.epoch}).")
