"""`retinue node …`: what machines there are."""

from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from retinue.cli.front import Front
from retinue.cli.text import plain, span


def listing(context: typer.Context) -> None:
    """Every node, by name.

    Examples:

        retinue node list

        retinue nodes --json
    """
    front: Front = context.obj
    nodes = front.look(lambda fleet: fleet.nodes.list())
    if front.json:
        front.document({"nodes": nodes})
        return
    now = datetime.now(UTC)  # noqa: TID251 - a command line shows ages by the machine's clock
    rows = [
        [
            plain(node.name),
            node.status,
            str(node.workers),
            span(now - node.seen_at),
            plain(" ".join(f"{key}={value}" for key, value in node.labels.items())),
        ]
        for node in nodes
    ]
    if rows:
        front.table(["node", "status", "workers", "seen", "labels"], rows)
    else:
        front.note("there are no nodes yet.")


def show(
    context: typer.Context, name: Annotated[str, typer.Argument(metavar="NODE", help="Its name or its id.")]
) -> None:
    """A node: what it offers and when it was last heard of.

    Examples:

        retinue node show NODE
    """
    from retinue.errors import NotFound

    front: Front = context.obj
    nodes = front.look(lambda fleet: fleet.nodes.list())
    found = next((node for node in nodes if name in (node.id, node.name)), None)
    if found is None:
        raise NotFound(f"There is no node {plain(name)}; `retinue nodes` shows them.")
    if front.json:
        front.document(found)
        return
    resources = found.resources
    for title, value in (
        ("node", found.name),
        ("id", found.id),
        ("status", found.status),
        ("workers", found.workers),
        ("has", f"{resources.cpu:g} cores, {resources.memory_mb} MiB of memory, {resources.gpu} GPUs"),
        ("labels", ", ".join(f"{key}={value}" for key, value in found.labels.items())),
        ("can", ", ".join(one for one in found.capabilities if not one.startswith("client:"))),
        ("seen", found.seen_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")),
    ):
        if value not in ("", None):
            print(f"{title:<8} {plain(str(value))}")


GROUP: Final = {"": "Nodes: the machines that run tasks.", "list": listing, "show": show}
