"""The feed in SQL: written last in its transaction, so that a position is gap-free and in commit order."""

from collections.abc import Sequence

import msgspec

from retinue.errors import CursorExpired
from retinue.events.model import Event, NewEvent, event, link
from retinue.storage.database import Chore, Connection, Transaction
from retinue.storage.sql import Insert, Row, Statement

TAKE = Statement("UPDATE teams SET position = position + ? WHERE id = ? RETURNING position, chain, retinue_now()")
CHAIN = Statement("UPDATE teams SET chain = ? WHERE id = ?")
EVENTS = Insert(
    "events", "team text, position bigint, type text, at bigint, subject text, node text, actor text, data text"
)
LINKS = Insert("links", "team text, last bigint, first bigint, digest text, at bigint")
PAGE = Statement(
    "SELECT team, position, type, at, subject, node, actor, data FROM events"
    " WHERE team = ? AND position > ? ORDER BY position LIMIT ?"
)
TIP = Statement("SELECT position, chain FROM teams WHERE id = ?")
ENDS = Statement("SELECT start, position FROM teams WHERE id = ?")
ALL_LINKS = Statement("SELECT first, last, digest FROM links WHERE team = ? ORDER BY last")
HIGHEST = Statement("SELECT COALESCE(SUM(position), 0) FROM teams")
DENY = Statement(
    "INSERT INTO denials (team, who, what, minute, times)"
    " SELECT team, who, what, retinue_now() / 60000000, times"
    " FROM {rows d(team text, who text, what text, times bigint)} WHERE true"
    " ON CONFLICT (team, who, what, minute) DO UPDATE SET times = denials.times + excluded.times"
)
# A bite ends at a link, so that what is kept still verifies; the first link goes whole, however long it is.
NEXT_LINKS = Statement("SELECT last, at FROM links WHERE team = ? AND last > ? ORDER BY last LIMIT ?")
PRUNE_EVENTS = Statement("DELETE FROM events WHERE team = ? AND position <= ? AND position > ?")
PRUNE_LINKS = Statement("DELETE FROM links WHERE team = ? AND last < ?")
SET_START = Statement("UPDATE teams SET start = ? WHERE id = ? AND start < ?")

# What those who wait for one task want to be told of: its attempt is over.
ENDINGS = frozenset(
    {"task.completed", "task.failed", "task.cancelled", "task.retried", "task.orphaned", "task.released"}
)

_encode = msgspec.json.Encoder().encode


def _append(transaction: Transaction, events: Sequence[NewEvent]) -> None:
    teams: dict[str, list[NewEvent]] = {}
    for fact in events:
        teams.setdefault(fact.team, []).append(fact)
    for team in sorted(teams):
        facts = teams[team]
        taken = transaction.row(TAKE, len(facts), team)
        if taken is None:
            raise LookupError(f"events for a team that does not exist: {team}")
        position, chain, at = taken
        first = position - len(facts) + 1
        rows: list[Row] = [
            (team, first + place, fact.type, at, fact.subject, fact.node, fact.actor, _encode(fact.data).decode())
            for place, fact in enumerate(facts)
        ]
        transaction.insert(EVENTS, rows)
        digest = link(chain, rows)
        transaction.insert(LINKS, [(team, position, first, digest, at)])
        transaction.run(CHAIN, digest, team)
        transaction.hint(f"events.{team}")
        for fact in facts:
            if fact.type in ENDINGS:
                transaction.hint(f"ended.{fact.subject}")


def _deny(transaction: Transaction, denials: Sequence[tuple[str, str, str]]) -> None:
    times: dict[tuple[str, str, str], int] = {}
    for denial in denials:
        times[denial] = times.get(denial, 0) + 1
    transaction.run(DENY, [(*denial, count) for denial, count in sorted(times.items())])


APPEND: Chore[NewEvent] = Chore(90, _append)
DENIED: Chore[tuple[str, str, str]] = Chore(50, _deny)  # (team, who, what)


def page(connection: Connection, team: str, after: int, limit: int) -> list[Event]:
    """The next events behind position `after`.

    Raises:
        CursorExpired: some of them are pruned; `details.start` is where the feed begins now.
    """
    ends = connection.rows(ENDS, team)
    if ends and after < ends[0][0]:
        raise CursorExpired(start=ends[0][0])
    return [event(*row) for row in connection.rows(PAGE, team, after, limit)]


def last(connection: Connection, team: str) -> int:
    """The position of the last event; 0 before the first."""
    ends = connection.rows(ENDS, team)
    return int(ends[0][1]) if ends else 0


def start(connection: Connection, team: str) -> int:
    """The position up to which events are pruned."""
    ends = connection.rows(ENDS, team)
    return int(ends[0][0]) if ends else 0


def highest(connection: Connection) -> int:
    """A number that grows with every event of any team: how far this store has come."""
    return int(connection.rows(HIGHEST)[0][0])


def broken_links(connection: Connection, team: str) -> list[int]:
    """The positions of links that do not verify: an event was changed, removed or added behind our back."""
    broken = []
    reached = pruned = start(connection, team)
    previous = ""
    for first, upto, digest in connection.rows(ALL_LINKS, team):
        if upto > pruned:  # what is before it is the sealed checkpoint that pruning ends at
            rows = connection.rows(PAGE, team, first - 1, upto - first + 1)
            if first != reached + 1 or link(previous, rows) != digest:
                broken.append(int(upto))
            reached = int(upto)
        previous = digest
    ends = connection.rows(TIP, team)
    if ends and ((reached, previous) != ends[0][:2] or connection.rows(PAGE, team, reached, 1)):
        broken.append(reached)  # the last ones are gone, or there are some that no link covers
    return broken


def prune(transaction: Transaction, team: str, before: int, most: int = 10_000) -> int:
    """Delete at most `most` events older than `before`, up to a link, which stays as the checkpoint; how many."""
    begin = upto = start(transaction.connection, team)
    for last_of_link, at in transaction.rows(NEXT_LINKS, team, begin, most):
        if at >= before or (upto > begin and last_of_link > begin + most):
            break
        upto = int(last_of_link)
    if upto == begin or not transaction.run(SET_START, upto, team, upto):
        return 0
    gone = transaction.run(PRUNE_EVENTS, team, upto, begin)
    transaction.run(PRUNE_LINKS, team, upto)
    return gone
