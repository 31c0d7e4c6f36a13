"""Nodes in SQL: registration at each start, presence by the last time we heard of them."""

from collections.abc import Sequence

import msgspec

from retinue.clock import moment
from retinue.errors import NodeDuplicate, RetinueError
from retinue.events.model import NewEvent
from retinue.events.store import APPEND
from retinue.nodes.model import Node, NodeStatus, Registration
from retinue.nodes.resources import Resources
from retinue.storage.database import Connection, Kind, Transaction
from retinue.storage.sql import Row, Statement

# A new name is inserted, not looked for: of two processes that bring it at once, the second meets the first one's row.
ADD = Statement(
    "INSERT INTO nodes (id, team, name, status, boot, workers, labels, capabilities, resources, created_at, seen_at)"
    " VALUES (?, ?, ?, 'offline', ?, 0, '{}', '[]', '{}', retinue_now(), retinue_now()) ON CONFLICT DO NOTHING"
)
FIND = Statement(
    "SELECT id, boot, status, seen_at, retinue_now() FROM nodes WHERE team = ? AND name = ?{postgres: FOR UPDATE}"
)
REGISTERED = Statement(
    "UPDATE nodes SET status = 'online', boot = ?, workers = ?, labels = ?, capabilities = ?, resources = ?,"
    " seen_at = retinue_now() WHERE id = ?"
)
SEEN = Statement(
    "UPDATE nodes SET seen_at = retinue_now() FROM {rows s(id text, boot text)}"
    " WHERE nodes.id = s.id AND nodes.boot = s.boot RETURNING nodes.id, nodes.boot, nodes.status"
)
BACK = Statement(
    "UPDATE nodes SET status = 'online' FROM {rows s(id text, boot text)}"
    " WHERE nodes.id = s.id AND nodes.boot = s.boot AND nodes.status = 'offline'"
    " RETURNING nodes.team, nodes.id, nodes.name"
)
LEAVE = Statement(
    "UPDATE nodes SET status = 'offline' FROM {rows s(id text, boot text)}"
    " WHERE nodes.id = s.id AND nodes.boot = s.boot AND nodes.status <> 'offline'"
    " RETURNING nodes.team, nodes.id, nodes.name, nodes.seen_at"
)
SILENT = Statement(
    "UPDATE nodes SET status = 'offline' WHERE status <> 'offline' AND seen_at < retinue_now() - ?"
    " RETURNING team, id, name, seen_at"
)
LIST = Statement(
    "SELECT id, name, status, boot, workers, labels, capabilities, resources, created_at, seen_at FROM nodes"
    " WHERE team = ? ORDER BY name"
)


def _register(transaction: Transaction, items: Sequence[tuple[Registration, int]]) -> list[str | RetinueError]:
    """Each item is a registration and for how many microseconds an older boot counts as still answering."""
    outcomes: list[str | RetinueError] = []
    for new, answers_for in items:
        transaction.run(ADD, new.id, new.team, new.name, new.boot)
        found = transaction.row(FIND, new.team, new.name)
        if found is None:
            raise LookupError(f"the id {new.id} is another node's")
        node, boot, status, seen_at, now = found
        if boot != new.boot and status != NodeStatus.OFFLINE and seen_at > now - answers_for:
            outcomes.append(NodeDuplicate(node=new.name))
            continue
        encoded = [msgspec.json.encode(part).decode() for part in (new.labels, new.capabilities, new.resources)]
        transaction.run(REGISTERED, new.boot, new.workers, *encoded, node)
        data = {"node_id": new.name, "boot": new.boot, "workers": new.workers}
        facts = [NewEvent(new.team, "node.registered", node, data, node)]
        if status == NodeStatus.OFFLINE:
            facts.append(NewEvent(new.team, "node.online", node, {"node_id": new.name}, node))
        transaction.later(APPEND, facts)
        outcomes.append(str(node))
    return outcomes


def _leave(transaction: Transaction, items: Sequence[tuple[str, str]]) -> list[None]:
    _offline(transaction, transaction.rows(LEAVE, items))
    return [None] * len(items)


def _silent(transaction: Transaction, items: Sequence[int]) -> list[int | RetinueError]:
    outcomes: list[int | RetinueError] = []
    for silence in items:
        gone = transaction.rows(SILENT, silence)
        _offline(transaction, gone)
        outcomes.append(len(gone))
    return outcomes


def _offline(transaction: Transaction, gone: Sequence[Row]) -> None:
    transaction.later(
        APPEND,
        [
            NewEvent(team, "node.offline", node, {"node_id": name, "last_seen": moment(seen)}, node)
            for team, node, name, seen in sorted(gone)
        ],
    )


REGISTER: Kind[tuple[Registration, int], str] = Kind("node.register", 5, _register)
LEAVES: Kind[tuple[str, str], None] = Kind("node.leave", 6, _leave)
SILENCE: Kind[int, int] = Kind("node.silence", 7, _silent)


def seen(transaction: Transaction, boots: Sequence[tuple[str, str]]) -> None:
    """Note that these (node, boot) were heard of now; one that was offline is online again."""
    boots = sorted(boots)  # in one order, so that two groups of renewals wait for each other and do not deadlock
    back = [(node, boot) for node, boot, status in transaction.rows(SEEN, boots) if status == NodeStatus.OFFLINE]
    if back:
        online = sorted(transaction.rows(BACK, sorted(back)))
        transaction.later(
            APPEND, [NewEvent(team, "node.online", node, {"node_id": name}, node) for team, node, name in online]
        )


def nodes(connection: Connection, team: str) -> list[Node]:
    """Every node of a team, by name."""
    return [
        Node(
            id=node,
            name=name,
            status=NodeStatus(status),
            boot=boot,
            workers=workers,
            labels=msgspec.json.decode(labels),
            capabilities=msgspec.json.decode(capabilities),
            resources=msgspec.json.decode(resources, type=Resources),
            created_at=moment(created),
            seen_at=moment(seen_at),
        )
        for node, name, status, boot, workers, labels, capabilities, resources, created, seen_at in connection.rows(
            LIST, team
        )
    ]
