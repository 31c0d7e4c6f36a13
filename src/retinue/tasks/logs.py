"""Output in SQL: one row a segment, small ones inline, large ones by digest in the blobs. Only the holder may add."""

from collections.abc import Sequence
from typing import Final

import msgspec

from retinue.errors import RetinueError
from retinue.storage.database import Connection, Kind, Transaction
from retinue.storage.sql import Insert, Statement
from retinue.tasks.rows import stale

SEGMENT: Final = 256 * 1024
INLINE: Final = 16 * 1024

# Locked against the claim's end, so that nothing is taken from a holder that is stale when it is committed.
HELD: Final = Statement("SELECT 1 FROM running WHERE id = ? AND fence = ? AND attempt = ?{postgres: FOR KEY SHARE}")
# The last segment only: a talkative attempt has thousands.
END_OF: Final = Statement("SELECT start + size FROM logs WHERE attempt = ? AND stream = ? ORDER BY start DESC LIMIT 1")
ADD: Final = Insert(
    "logs",
    "attempt text, stream text, start bigint, size bigint, at bigint, digest text, data bytea",
)
NOW: Final = Statement("SELECT retinue_now()")
SEGMENTS: Final = Statement(
    "SELECT start, size, digest, data FROM logs WHERE attempt = ? AND stream = ? AND start + size > ?"
    " AND start >= COALESCE((SELECT MAX(start) FROM logs WHERE attempt = ? AND stream = ? AND start <= ?), 0)"
    " ORDER BY start LIMIT ?"
)
SIZES: Final = Statement("SELECT stream, MAX(start + size) FROM logs WHERE attempt = ? GROUP BY stream ORDER BY stream")


class Segment(msgspec.Struct, frozen=True):
    """A piece of one stream of an attempt, from `start` on: its bytes, or the digest of the blob that has them."""

    task: str
    fence: int
    attempt: str
    stream: str
    start: int
    size: int
    digest: str | None
    data: bytes | None


def _append(transaction: Transaction, items: Sequence[Segment]) -> list[int | RetinueError]:
    """How far the stream is kept now. A segment that overlaps what is kept adds nothing; a stale one is refused."""
    outcomes: list[int | RetinueError] = []
    at = int(transaction.rows(NOW)[0][0])
    for item in items:
        if not transaction.row(HELD, item.task, item.fence, item.attempt):
            outcomes.append(stale(transaction, item.task, item.fence))
            continue
        last = transaction.row(END_OF, item.attempt, item.stream)
        kept = int(last[0]) if last else 0
        if item.start == kept:
            transaction.insert(ADD, [(item.attempt, item.stream, item.start, item.size, at, item.digest, item.data)])
            kept += item.size
        outcomes.append(kept)
    return outcomes


KEEP_LOG: Final[Kind[Segment, int]] = Kind("task.log", 35, _append)


def segments(
    connection: Connection, attempt: str, stream: str, offset: int, most: int = 16
) -> list[tuple[int, int, str | None, bytes | None]]:
    """(start, size, digest, data) of the segments that hold what comes after `offset`."""
    return [
        (r[0], r[1], r[2], None if r[3] is None else bytes(r[3]))
        for r in connection.rows(SEGMENTS, attempt, stream, offset, attempt, stream, offset, most)
    ]


def sizes(connection: Connection, attempt: str) -> dict[str, int]:
    """How many bytes of each stream are kept."""
    return {str(stream): int(size) for stream, size in connection.rows(SIZES, attempt)}
