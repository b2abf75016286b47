"""`--complete`: every entry of a log opened, because an index can only show what it has.

RFC 6962 proves that an entry is in the log. That nothing else is there about somebody is shown by
reading all of it: the root over what was read is the one of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from sealward.tlog.leaf import EVENT_ID_SIZE, PREFIX_SIZE, VERSION
from sealward.tlog.merkle import leaf_hashes
from sealward.tlog.tiledtree import TiledTree
from services.audit.index import Query, Row
from services.audit.reports.found import Found
from services.audit.rows import RowReader
from services.audit.shard import Shard
from services.audit.store import StoreBrokenError

_READ_ENTRIES = 1024


@dataclass(slots=True)
class Scanned:
    """What was read of one log: the matching events, newest first, and how the index compares."""

    origin: str
    entries: int
    root: bytes
    differences: int = 0
    found: list[Found] = field(default_factory=list)


def scan(shard: Shard, query: Query, alive: Callable[[], bool]) -> Scanned:
    """Open every entry of a log; raise SealwardError, StoreError or IndexFailedError.

    `alive` is asked now and then whether anybody still waits.
    """
    result = Scanned(shard.origin, shard.log.head[0], b"")
    for place, row in read_whole(shard, result, alive):
        if row is not None and matches(row, query):
            result.found.append(Found(shard.origin, place, row))
    result.found.reverse()
    return result


def read_whole(
    shard: Shard, result: Scanned, alive: Callable[[], bool]
) -> Iterator[tuple[int, Row | None]]:
    """Yield what each entry of a log is about, None for one that is no event; raise as `scan`.

    `result` says how many there are; its root and differences are there when all were taken.
    """
    size = result.entries
    shard.indexer.wait(size)
    reader = RowReader()
    # Only the edge is needed: full tiles are never asked for again.
    tree = TiledTree(lambda _tile: b"", cached=1)
    for start in range(0, size, _READ_ENTRIES):
        if not alive():
            raise SealwardError(Reason.CANCELLED, "nobody waits for the answer any more")
        leaves = shard.store.leaves(start, min(start + _READ_ENTRIES, size))
        tree.append(leaf_hashes(leaves))
        known = dict(
            shard.index.rows(Query(after_index=start - 1, oldest_first=True, limit=len(leaves)))
        )
        for place, leaf in enumerate(leaves, start):
            row = _row(shard, reader, leaf)
            if row != known.pop(place, None):
                result.differences += 1
            yield place, row
        result.differences += sum(start <= place < start + len(leaves) for place in known)
    result.root = tree.root()
    if result.root != shard.log.root(size):
        raise StoreBrokenError("the entries read do not give the root of the log")


def matches(row: Row, query: Query) -> bool:
    """Tell whether a row is one that a query asks for: what the SQL of an index says, in words."""
    wanted = (
        (query.user, row.actor),
        (query.patient, row.patient),
        (query.model, row.model),
        (query.outcome, row.outcome),
        (query.purpose, row.purpose),
        (query.reason, row.reason),
        (query.session, row.session),
        (query.producer, row.producer),
        (query.instance, row.instance),
        (query.trace_id, row.trace_id),
    )
    # Empty is what an event does not say; nothing matches it.
    if any(asked is not None and (not asked or asked != value) for asked, value in wanted):
        return False
    if query.type is not None:
        whole = not query.type.endswith(".")
        if row.type != query.type if whole else not row.type.startswith(query.type):
            return False
    return (
        (not query.break_glass or row.break_glass == 1)
        and row.time >= query.since
        and (not query.until or row.time < query.until)
    )


def _row(shard: Shard, reader: RowReader, leaf: bytes) -> Row | None:
    if leaf[0] != VERSION:
        return None
    span = shard.segments.open(leaf[:PREFIX_SIZE], leaf[PREFIX_SIZE:])
    return reader.read(leaf[1 : 1 + EVENT_ID_SIZE], span)
