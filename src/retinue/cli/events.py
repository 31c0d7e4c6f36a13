"""`retinue events`: what happened, in order."""

from collections import deque
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli.front import Front
from retinue.cli.text import plain

if TYPE_CHECKING:
    from retinue.client.client import Fleet
    from retinue.events.model import Event

PAGE = 500
DETAILS = frozenset({"task_id", "attempt", "boot", "digest"})  # for programs: --json has them


def command(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    types: Annotated[
        list[str] | None, typer.Option("--type", metavar="PATTERN", help="Only such events: task.failed, node.*.")
    ] = None,
    after: Annotated[int | None, typer.Option(min=0, help="All behind this position.")] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="The newest so many; with --after, the oldest; with both and -f, all.")
    ] = 50,
) -> None:
    """What happened, oldest first. With --json one event a line.

    Examples:

        retinue events

        retinue events --type task.failed --type 'node.*' --json

        retinue events --after 0 --limit 10
    """
    front: Front = context.obj

    async def showing(fleet: "Fleet") -> None:
        position = after
        if after is None or not follow:
            position = await _past(fleet, lambda event: _print(front, event), types or [], after, limit)
        if follow:
            async for event in fleet.events.stream(after=position, types=types or []):
                _print(front, event)

    front.look(showing)


async def _past(fleet: "Fleet", show: Any, types: list[str], after: int | None, limit: int) -> int:
    """Show what is past; the position to follow from."""
    from retinue.errors import CursorExpired

    kept: deque[Event] = deque(maxlen=limit)
    last = await fleet.transport.call("GET", "/events/last", dict)
    end = int(last["position"])
    position = after if after is not None else 0 if types else max(0, end - limit)
    while limit:
        try:
            events, following = await fleet.events.page(after=str(position), types=types, limit=PAGE)
        except CursorExpired as error:
            position = int(error.details["start"])
            continue
        kept.extend(events[: limit - len(kept)] if after is not None else events)
        if following is None or (after is not None and len(kept) == limit):
            break
        position = int(following)
    for event in kept:
        show(event)
    return max(end, kept[-1].position) if kept else end


def _print(front: Front, event: "Event") -> None:
    if front.json:
        front.document(event)
        return
    time = event.time.astimezone().strftime("%m-%d %H:%M:%S")
    said = plain(" ".join(f"{name}={value}" for name, value in event.data.items() if name not in DETAILS and value))
    print(f"{event.position:>6}  {time}  {event.type:<16} {event.correlation_id}  {said}", flush=True)
