"""Keeps the producers' numbers with the log, and records what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from sealward.kit.errors import SealwardError
from services.audit.index import IndexFailedError, Query, Row
from services.audit.metrics import AuditMetrics
from services.audit.producers import Gap, Producers
from services.audit.shard import Shard
from services.audit.shards import Shards
from services.audit.store import StoreError

_STATE = "producers"
_PAGE = 4096
_SAVE_TICKS = 10
# Whatever a producer makes of its numbers, the thread that calls has other things to do.
_MOST_A_TICK = 200


class GapKeeper:
    """Feeds `producers` from the indexes of all growing logs; thread-safe.

    `record` appends an event about a gap, or raises SealwardError.
    """

    def __init__(
        self,
        producers: Producers,
        record: Callable[[Gap], None],
        metrics: AuditMetrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.producers = producers
        self._record = record
        self._metrics = metrics
        self._logger = logger
        self._shards: Shards | None = None
        self._ticks = 0
        self._saved = b""
        self._waiting: list[Gap] = []

    def start(self, shards: Shards) -> None:
        """Take up where the last run left off, and see what was indexed since."""
        state = self._stored(shards)
        if state is None:
            # The first start with this version: what came before has no instances to follow.
            for tenant in shards.tenants:
                current = shards.current(tenant)
                self.producers.indexed(current.origin, 0, [None] * current.log.head[0])
        else:
            try:
                self.producers.load(state)
            except ValueError:
                self._logger.error("gaps.state-damaged")
        self._shards = shards
        self._catch_up(shards)

    def indexed(self, shard: Shard, first: int, rows: Sequence[Row | None]) -> None:
        """See rows that were just indexed (shard.Hooks.on_rows)."""
        # Before the state is there nothing is taken; start() reads it from the index.
        if self._shards is not None:
            self.producers.indexed(shard.origin, first, rows)

    def tick(self) -> None:
        """Record what is due, and keep the state. To be called every second."""
        shards = self._shards
        if shards is None:
            return
        self._waiting += self.producers.due()
        for _ in range(min(len(self._waiting), _MOST_A_TICK)):
            gap = self._waiting[0]
            try:
                self._record(gap)
            except SealwardError:
                # Not lost: it waits for the log.
                break
            self._waiting.pop(0)
            if not gap.closed:
                self._metrics.gaps.inc()
                self._logger.error("gaps.found", name=gap.producer, count=gap.count)
        self._metrics.missing.set(self.producers.missing())
        self._ticks += 1
        if self._ticks % _SAVE_TICKS == 0:
            self._catch_up(shards)
            self.save()

    def save(self) -> None:
        """Keep the state."""
        state = self.producers.dump()
        if self._shards is None or state == self._saved or self._waiting:
            return
        try:
            self._shards.current().store.put([(_STATE, state)])
        except StoreError:
            # The disk is full or worse; whoever appends finds that out and says so.
            return
        self._saved = state

    def _stored(self, shards: Shards) -> bytes | None:
        """Return the newest state: of the log that grows, or of the one before it."""
        try:
            for shard in shards.all():
                state = shard.store.get(_STATE)
                if state is not None:
                    return state
        except StoreError:
            return None
        return b'{"positions":{},"known":[]}' if len(shards.all()) > 1 else None

    def _catch_up(self, shards: Shards) -> None:
        for tenant in shards.tenants:
            shard = shards.current(tenant)
            if self.producers.position(shard.origin) < shard.index.size:
                self._replay(shard)

    def _replay(self, shard: Shard) -> None:
        try:
            at = self.producers.position(shard.origin)
            while at < shard.index.size:
                found = shard.index.rows(Query(after_index=at - 1, oldest_first=True, limit=_PAGE))
                rows: list[Row | None] = [None] * (
                    (found[-1][0] + 1 if len(found) == _PAGE else shard.index.size) - at
                )
                for place, row in found:
                    if place - at < len(rows):
                        rows[place - at] = row
                self.producers.indexed(shard.origin, at, rows)
                at += len(rows)
        except IndexFailedError:
            # The next round tries again.
            self._logger.error("gaps.index-not-read")
