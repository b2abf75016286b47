"""Reading the index of several logs in pages, the oldest events first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sealward.api.audit.v1 import audit_pb2
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.index import IndexFailedError, Query
from services.audit.queries import query_of
from services.audit.reports.found import Found
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.store import StoreError

_PAGE = 4096


def rows_of(shard: Shard, query: Query, most: int) -> list[Found]:
    """Return rows of one log as its index has them, once it is up; raise SealwardError."""
    try:
        shard.indexer.wait(shard.log.head[0])
        found = shard.index.rows(replace(query, limit=most))
    except (IndexFailedError, StoreError):
        raise unavailable() from None
    return [Found(shard.origin, place, row) for place, row in found]


def events(shards: Shards, request: audit_pb2.QueryEventsRequest) -> Iterator[Found]:
    """Yield every event of a tenant that matches, the oldest first; raise SealwardError."""
    for shard in reversed(shards.readable(request.tenant)):
        query = replace(query_of(shard, request, _PAGE), oldest_first=True)
        while page := rows_of(shard, query, _PAGE):
            yield from page
            if len(page) < _PAGE:
                break
            query = replace(query, after_index=page[-1].place)


def unavailable() -> SealwardError:
    """Return the error of a log or an index that cannot be read."""
    return SealwardError(Reason.AUDIT_UNAVAILABLE, "the audit log cannot be read", retry_after=1.0)
