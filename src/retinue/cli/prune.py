"""`retinue prune`: delete now what is past its retention."""

from typing import Any

import typer

from retinue.cli.front import Front


def command(context: typer.Context) -> None:
    """Delete now what is past its retention (settings `retention.*`); it happens by itself while somebody serves.

    Examples:

        retinue prune
    """
    front: Front = context.obj
    gone: dict[str, Any] = front.steer(lambda fleet: fleet.transport.call("POST", "/prune", dict))
    gone.pop("blobs", None)
    if front.json:
        front.document(gone)
    else:
        print(", ".join(f"{number} {kind}" for kind, number in gone.items()) + " deleted.")
