"""The routes of the event feed (API.md 4)."""

from collections.abc import AsyncIterator
from typing import Final

from retinue.errors import Invalid
from retinue.events.model import Event
from retinue.events.service import EventService
from retinue.routes import Answer, Request, Route


def _position(text: str | None) -> int:
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Invalid.field("cursor", "a position of the feed: the last event's, as it came")
    return int(text)


async def page(events: EventService, request: Request) -> Answer:
    """GET /events"""
    after = _position(request.query.get("cursor"))
    found, upto = await events.page(
        request.caller.team, after=after, types=request.listed("types"), limit=request.limit()
    )
    return Answer({"events": found, "next": str(upto) if found else None})


async def follow(events: EventService, request: Request) -> AsyncIterator[Event]:
    """GET /events/stream; without a position from now on."""
    after = request.query.get("after")
    team = request.caller.team
    begin = await events.last(team) if after is None else _position(after)
    async for event in events.follow(team, after=begin, types=request.listed("types")):
        yield event


async def last(events: EventService, request: Request) -> Answer:
    """GET /events/last: the position of the newest event."""
    return Answer({"position": await events.last(request.caller.team)})


ROUTES: Final[tuple[Route[EventService], ...]] = (
    Route("GET", "/events", page),
    Route("GET", "/events/last", last),
    Route("GET", "/events/stream", stream=follow),
)
