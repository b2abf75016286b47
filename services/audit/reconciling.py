"""ReconcileService: what the logs hold, for whoever looks for what they lack.

The joining is the caller's (sealward/reconcile): this service streams numbers, times and ids of all
events of a time, of all tenants, because a producer numbers its events across tenants and logs. The
call is recorded by the chain around its first answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import islice

import grpc

from sealward.api.audit.v1 import audit_pb2, reconcile_pb2, reconcile_pb2_grpc
from sealward.kit import attributes as names
from sealward.kit.chain import call_of
from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.audit.index import IndexFailedError, Query, Row
from services.audit.reading import rows_of, unavailable
from services.audit.scanning import Scanned, read_whole
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.store import StoreError
from services.audit.streaming import MOST_SECONDS, STALL_SECONDS, Streams

SLACK = 3600 * 1_000_000_000
"""Nanoseconds that are read on both sides of the time asked for."""

GAP = "audit.gap"

_PART_ROWS = 2048
_PAGE = 4096
_MOST_RUNS = 10_000
_MAX_TIME = (1 << 63) - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Placed = tuple[int, Row | None]


class ReconcileServicer(reconcile_pb2_grpc.ReconcileServiceServicer):
    """See reconcile.proto. One reading at a time. Bounds in seconds: for a part, for the whole."""

    def __init__(
        self,
        shards: Shards,
        stall_seconds: float = STALL_SECONDS,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        self._shards = shards
        self._streams = Streams("reconciliation", 1, stall_seconds, most_seconds)

    def ReadTrail(
        self, request: reconcile_pb2.ReadTrailRequest, context: grpc.ServicerContext
    ) -> Iterator[reconcile_pb2.ReadTrailResponse]:
        """See reconcile.proto."""
        left = call_of(context).attributes
        if max(request.since_unix_nano, request.until_unix_nano) > _MAX_TIME:
            raise SealwardError(
                Reason.FIELD_INVALID, "a time is too large", field="since_unix_nano"
            )
        ends = self._streams.enter(context)
        reading = _Reading(self._shards, request)
        left[names.TARGET] = described(request)
        left[names.COUNT] = sum(size for _, size in reading.logs)
        try:
            yield from self._streams.watched(context, reading.first())
            for part in reading.parts(context):
                self._streams.check(ends)
                yield from self._streams.watched(context, part)
            yield from self._streams.watched(context, reading.last())
        except (StoreError, IndexFailedError):
            raise unavailable() from None


class _Reading:
    """One reading of all logs, from the sizes that they had when it began."""

    def __init__(self, shards: Shards, request: reconcile_pb2.ReadTrailRequest) -> None:
        self._request = request
        # Of each tenant the oldest log first.
        everything = [shard for tenant in shards.tenants for shard in reversed(shards.all(tenant))]
        self.logs: list[tuple[Shard, int]] = [
            (shard, 0 if shard.state == "purged" else shard.log.head[0]) for shard in everything
        ]
        since, until = request.since_unix_nano, request.until_unix_nano
        self._since = max(0, since - SLACK)
        self._until = min(_MAX_TIME, until + SLACK) if until else 0
        self._done = 0
        self._scans: list[Scanned] = []
        # The lowest number of each run that was met.
        self._runs: dict[tuple[str, str], int] = {}

    def first(self) -> reconcile_pb2.ReadTrailResponse:
        """The logs."""
        return reconcile_pb2.ReadTrailResponse(
            logs=[
                reconcile_pb2.TrailLog(
                    origin=shard.origin,
                    tenant=shard.tenant,
                    size=size,
                    purged=shard.state == "purged",
                )
                for shard, size in self.logs
            ]
        )

    def parts(self, context: grpc.ServicerContext) -> Iterator[reconcile_pb2.ReadTrailResponse]:
        """The events."""
        for number, (shard, size) in enumerate(self.logs):
            if not size:
                continue
            begun = self._done
            placed = (
                self._opened(shard, size, context)
                if self._request.complete
                else self._indexed(shard, size)
            )
            while taken := list(islice(placed, _PART_ROWS)):
                self._done = begun + taken[-1][0] + 1
                rows = [self._row(number, place, row) for place, row in taken if row is not None]
                yield reconcile_pb2.ReadTrailResponse(rows=rows, done=self._done)
                # Whoever appends has the next turn: this is long work.
                time.sleep(0)
            self._done = begun + size

    def last(self) -> reconcile_pb2.ReadTrailResponse:
        """What was heard before, and what was opened."""
        return reconcile_pb2.ReadTrailResponse(
            done=self._done,
            earlier=[
                reconcile_pb2.TrailRun(producer=producer, instance=instance)
                for (producer, instance), lowest in self._runs.items()
                if lowest > 1 and self._heard_before(producer, instance)
            ],
            scans=[
                audit_pb2.Scan(
                    origin=scanned.origin,
                    entries=scanned.entries,
                    root=scanned.root,
                    differences=scanned.differences,
                )
                for scanned in self._scans
            ],
        )

    def _indexed(self, shard: Shard, size: int) -> Iterator[Placed]:
        query = Query(since=self._since, until=self._until, oldest_first=True, limit=_PAGE)
        while page := rows_of(shard, query, _PAGE):
            yield from ((found.place, found.row) for found in page if found.place < size)
            if len(page) < _PAGE or page[-1].place >= size:
                return
            query = Query(
                since=self._since,
                until=self._until,
                oldest_first=True,
                after_index=page[-1].place,
                limit=_PAGE,
            )

    def _opened(self, shard: Shard, size: int, context: grpc.ServicerContext) -> Iterator[Placed]:
        result = Scanned(shard.origin, size, b"")
        for place, row in read_whole(shard, result, context.is_active):
            inside = row is not None and self._since <= row.time < (self._until or _MAX_TIME)
            yield place, row if inside else None
        self._scans.append(result)

    def _row(self, log: int, place: int, row: Row) -> reconcile_pb2.TrailRow:
        if row.producer_seq and row.instance:
            run = row.producer, row.instance
            if run in self._runs or len(self._runs) < _MOST_RUNS:
                self._runs[run] = min(self._runs.get(run, row.producer_seq), row.producer_seq)
        return reconcile_pb2.TrailRow(
            log=log,
            log_index=place,
            event_id=row.event_id,
            time_unix_nano=row.time,
            type=row.type,
            outcome=row.outcome,
            producer=row.producer,
            instance=row.instance,
            producer_seq=row.producer_seq,
            session=row.session,
            caller_seq=row.caller_seq,
            trace_id=row.trace_id,
            span_id=row.span_id,
            parent_span_id=row.parent_id,
            target=row.target if row.type == GAP else "",
            asked=self._request.user in ("", row.actor),
        )

    def _heard_before(self, producer: str, instance: str) -> bool:
        if not self._since:
            return False
        query = Query(producer=producer, instance=instance, until=self._since)
        return any(rows_of(shard, query, 1) for shard, size in self.logs if size)


def described(request: reconcile_pb2.ReadTrailRequest) -> str:
    """Say in codes what is read: the time, how, and for what."""
    words = [name for name in ("complete", "against") if getattr(request, name)]
    if request.user:
        words.append(f"user={request.user}" if _NAME.fullmatch(request.user) else "user")
    if request.since_unix_nano:
        words.append(f"since={request.since_unix_nano // 1_000_000_000}")
    if request.until_unix_nano:
        words.append(f"until={request.until_unix_nano // 1_000_000_000}")
    return " ".join(words)
